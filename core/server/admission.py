"""What the server adds to objects before they are checked: the admission plug-ins Kubernetes runs by default.

Pods: ServiceAccount and DefaultTolerationSeconds, the quality-of-service class. All kinds: the status a client may
not invent on creation.
"""

from __future__ import annotations

from ..api.errors import JSON
from ..api.jsontools import child, children, default, default_map
from ..api.kinds import Kind
from ..api.resources import parse_quantity

NOT_READY = "node.kubernetes.io/not-ready"
UNREACHABLE = "node.kubernetes.io/unreachable"
_STATUS_KEPT_ON_CREATE = {"nodes"}
"""A kubelet registers its node together with its status."""


def prepare_new(kind: Kind, obj: JSON, toleration_seconds: int) -> None:
    """Runs before defaulting, on creation."""
    if kind.has("status") and kind.plural not in _STATUS_KEPT_ON_CREATE:
        obj.pop("status", None)
    if kind.group == "" and kind.plural == "pods":
        spec = default_map(obj, "spec")
        default(spec, "serviceAccountName", str(spec.get("serviceAccount") or "default"))
        _tolerate(spec, toleration_seconds)
        obj["status"] = {"phase": "Pending", "qosClass": qos_class(spec)}


def _tolerate(spec: JSON, seconds: int) -> None:
    if not isinstance(spec.get("tolerations", []), list):
        return
    present = children(spec, "tolerations")
    for key in (NOT_READY, UNREACHABLE):
        if not any(t.get("key") in (key, "", None) and t.get("effect") in ("NoExecute", "", None) for t in present):
            added = {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}
            spec.setdefault("tolerations", []).append(added)


def qos_class(spec: JSON) -> str:
    """Guaranteed, Burstable or BestEffort, by the containers' cpu and memory (KEP-753 counts init containers too)."""
    any_set, all_equal = False, True
    for container in [*children(spec, "containers"), *children(spec, "initContainers")]:
        resources = child(container, "resources")
        limits, requests = child(resources, "limits"), child(resources, "requests")
        for name in ("cpu", "memory"):
            limit, request = limits.get(name), requests.get(name, limits.get(name))
            any_set = any_set or _positive(limit) or _positive(request)
            all_equal = all_equal and _positive(limit) and _same(limit, request)
    if not any_set:
        return "BestEffort"
    return "Guaranteed" if all_equal else "Burstable"


def _positive(quantity: object) -> bool:
    try:
        return quantity is not None and parse_quantity(str(quantity)) > 0
    except ValueError:
        return False  # validation names it


def _same(left: object, right: object) -> bool:
    try:
        return parse_quantity(str(left)) == parse_quantity(str(right))
    except ValueError:
        return False  # validation names it
