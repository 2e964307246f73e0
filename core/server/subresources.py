"""Subresources with a form of their own: scale, binding, eviction, finalize."""

from __future__ import annotations

from ..api import patch as patches
from ..api import times
from ..api.errors import JSON, BadRequest, Cause, conflict, invalid
from ..api.kinds import Kind
from . import metadata
from .requests import Ref
from .writes import Change

SCALE = Kind("autoscaling", "v1", "Scale", "scales", "lightkube.models.autoscaling_v1:Scale")
BINDING = Kind("", "v1", "Binding", "bindings", "lightkube.models.core_v1:Binding")
EVICTION = Kind("policy", "v1", "Eviction", "evictions", "lightkube.models.policy_v1:Eviction")
_COPIED = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")


def scale_of(obj: JSON) -> JSON:
    """The autoscaling/v1 Scale of a workload."""
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    meta = {key: obj["metadata"][key] for key in _COPIED if key in obj["metadata"]}
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": meta,
        "spec": {"replicas": spec.get("replicas", 1)},
        "status": {"replicas": status.get("replicas", 0), "selector": _selector_text(spec.get("selector") or {})},
    }


def _selector_text(selector: JSON) -> str:
    # A replication controller's selector is the bare map of labels.
    labels = selector.get("matchLabels") if "matchLabels" in selector or "matchExpressions" in selector else selector
    terms = [f"{key}={value}" for key, value in sorted((labels or {}).items())]
    for rule in selector.get("matchExpressions") or ():
        key, operator, values = rule["key"], rule["operator"], ",".join(rule.get("values") or ())
        forms = {
            "In": f"{key} in ({values})",
            "NotIn": f"{key} notin ({values})",
            "Exists": key,
            "DoesNotExist": f"!{key}",
        }
        terms.append(forms[operator])
    return ",".join(terms)


def scaled(ref: Ref, obj: JSON, scale: JSON) -> JSON:
    """The workload with the replicas of a Scale, whose resourceVersion and uid are preconditions."""
    given = metadata.check_identity(Ref(SCALE, ref.namespace, ref.name), scale)
    spec = scale.get("spec")
    replicas = spec.get("replicas", 0) if isinstance(spec, dict) else 0
    if not isinstance(replicas, int) or isinstance(replicas, bool) or not 0 <= replicas < 2**31:
        text = f"Invalid value: {replicas!r}: must be an integer greater than or equal to 0"
        raise invalid("Scale", ref.name, [Cause("spec.replicas", text)], "autoscaling")
    obj["spec"]["replicas"] = replicas
    obj["metadata"]["uid"] = given.get("uid") or obj["metadata"]["uid"]
    obj["metadata"]["resourceVersion"] = given.get("resourceVersion") or obj["metadata"]["resourceVersion"]
    return obj


def scale_change(ref: Ref, scale: JSON) -> Change:
    return lambda obj: scaled(ref, obj, patches.copy(scale))


def scale_patch(ref: Ref, media_type: str, patch: bytes) -> Change:
    return lambda obj: scaled(ref, obj, patches.apply_patch(SCALE, scale_of(obj), media_type, patch))


def finalize_change(body: JSON) -> Change:
    """Only spec.finalizers is taken from the body."""

    def change(obj: JSON) -> JSON:
        meta = body.get("metadata") if isinstance(body.get("metadata"), dict) else {}
        for field in ("resourceVersion", "uid"):
            if (meta or {}).get(field):
                obj["metadata"][field] = (meta or {})[field]
        finalizers = (body.get("spec") or {}).get("finalizers") or []
        if not isinstance(finalizers, list) or not all(isinstance(name, str) for name in finalizers):
            raise BadRequest("Namespace cannot be read: spec.finalizers: expected a list of strings")
        obj.setdefault("spec", {})["finalizers"] = finalizers
        return obj

    return change


def bind_change(name: str, uid: str, node: str, annotations: dict[str, str]) -> Change:
    """Assigns a pod to a node, once; in the words of Kubernetes' BindingREST."""

    def change(pod: JSON) -> JSON:
        metadata_of, spec = pod["metadata"], pod["spec"]
        if uid and uid != metadata_of["uid"]:
            why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {metadata_of['uid']}"
            raise conflict("pods/binding", name, why)
        if metadata_of.get("deletionTimestamp"):
            raise conflict("pods/binding", name, f"pod {name} is being deleted, cannot be assigned to a host")
        if spec.get("nodeName"):
            raise conflict("pods/binding", name, f'pod {name} is already assigned to node "{spec["nodeName"]}"')
        spec["nodeName"] = node
        if annotations:
            metadata_of["annotations"] = (metadata_of.get("annotations") or {}) | annotations
        status = pod.setdefault("status", {})
        kept = [c for c in status.get("conditions") or [] if c.get("type") != "PodScheduled"]
        scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": times.now_rfc3339()}
        status["conditions"] = [*kept, scheduled]
        return pod

    return change


def binding_target(body: JSON) -> tuple[str, str, dict[str, str]]:
    """Node name, uid precondition and annotations of a Binding."""
    target = body.get("target")
    node = target.get("name") if isinstance(target, dict) else None
    if not isinstance(node, str) or not node:
        text = "Required value"
        raise invalid("Binding", "", [Cause("target.name", text, "FieldValueRequired")])
    if isinstance(target, dict) and target.get("kind") not in (None, "", "Node"):
        text = f'Unsupported value: "{target["kind"]}": supported values: "Node"'
        raise invalid("Binding", "", [Cause("target.kind", text, "FieldValueNotSupported")])
    meta = body.get("metadata") if isinstance(body.get("metadata"), dict) else {}
    annotations = (meta or {}).get("annotations") or {}
    return node, str((meta or {}).get("uid") or ""), annotations
