"""Whether an object may be stored: types by its model, then Kubernetes' rules of the kind.

`validate` expects defaults to have been applied. Every finding is a Cause with a JSON path and Kubernetes' wording.
Source: k8s.io/kubernetes pkg/apis/*/validation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import msgspec

from . import validation_kinds as kinds
from . import validation_workloads as workloads
from .causes import forbidden, immutable, invalid_value, required, type_invalid
from .errors import JSON, Cause
from .kinds import Kind
from .models import split_error, to_model
from .names import check_name, dns_label_problem, name_problem, qualified_name_problem
from .validation_labels import check_labels
from .validation_pod import check_pod, check_pod_update
from .validation_service import check_service, check_service_update

_MAX_ANNOTATIONS = 256 * 1024
_MISSING = re.compile(r"Object missing required field `(.*)`")
_TOO_DEEP = 200

_RULES: dict[tuple[str, str], Callable[[JSON], Iterator[Cause]]] = {
    ("", "Pod"): check_pod,
    ("", "Service"): check_service,
    ("", "Endpoints"): kinds.check_endpoints,
    ("", "ConfigMap"): kinds.check_config_map,
    ("", "Secret"): kinds.check_secret,
    ("", "Namespace"): kinds.check_namespace,
    ("", "Node"): kinds.check_node,
    ("", "Event"): kinds.check_event,
    ("", "ReplicationController"): workloads.check_replication_controller,
    ("apps", "ReplicaSet"): workloads.check_replica_set,
    ("apps", "Deployment"): workloads.check_deployment,
    ("discovery.k8s.io", "EndpointSlice"): kinds.check_endpoint_slice,
    ("coordination.k8s.io", "Lease"): kinds.check_lease,
}
_UPDATE_RULES: dict[tuple[str, str], Callable[[JSON, JSON], Iterator[Cause]]] = {
    ("", "Pod"): check_pod_update,
    ("", "Service"): check_service_update,
    ("", "ConfigMap"): kinds.check_immutable_data,
    ("", "Secret"): kinds.check_secret_update,
    ("", "Node"): kinds.check_node_update,
    ("apps", "ReplicaSet"): workloads.check_selector_update,
    ("apps", "Deployment"): workloads.check_selector_update,
    ("discovery.k8s.io", "EndpointSlice"): kinds.check_endpoint_slice_update,
}


def validate(kind: Kind, obj: JSON, old: JSON | None) -> list[Cause]:
    """What is wrong with an object that defaults were applied to; empty when it may be stored.

    `old` is the stored object an update replaces: fields that may not change are compared with it.
    """
    wrong = _check_types(kind, obj)
    if wrong:
        return wrong
    key = (kind.group, kind.kind)
    causes = list(_check_metadata(kind, obj["metadata"]))
    rules = _RULES.get(key)
    if rules is not None:
        causes += rules(obj)
    if old is not None:
        causes += _check_metadata_update(obj["metadata"], old.get("metadata") or {})
        update_rules = _UPDATE_RULES.get(key)
        if update_rules is not None:
            causes += update_rules(obj, old)
    return causes


def _check_types(kind: Kind, obj: JSON) -> list[Cause]:
    """The first type error, as one cause; rules are checked only on objects of the right shape."""
    if obj.get("apiVersion") != kind.api_version:
        return [invalid_value("apiVersion", obj.get("apiVersion"), f"must be {kind.api_version}")]
    if obj.get("kind") != kind.kind:
        return [invalid_value("kind", obj.get("kind"), f"must be {kind.kind}")]
    if not isinstance(obj.get("metadata"), dict):
        return [required("metadata")]
    try:
        msgspec.convert(obj, kind.model, strict=True)
    except msgspec.ValidationError as error:
        path, text = split_error(error)
        missing = _MISSING.fullmatch(text)
        if missing:
            return [required(f"{path}.{missing[1]}" if path else missing[1])]
        return [type_invalid(path, text)]
    except RecursionError:
        return [type_invalid("", "the object is nested too deeply")]
    return []


def _check_metadata(kind: Kind, metadata: JSON) -> Iterator[Cause]:
    name = metadata.get("name") or ""
    problem = check_name(kind, name)
    if problem is not None and (name or not metadata.get("generateName")):
        yield problem
    base = metadata.get("generateName") or ""
    if base and (wrong := name_problem(kind, f"{base}x" if base.endswith(("-", ".")) else base)):
        yield invalid_value("metadata.generateName", base, wrong)
    namespace = metadata.get("namespace") or ""
    if kind.namespaced:
        if namespace and (wrong := dns_label_problem(namespace)):
            yield invalid_value("metadata.namespace", namespace, wrong)
    elif namespace:
        yield forbidden("metadata.namespace", "not allowed on this type")
    yield from check_labels("metadata.labels", metadata.get("labels"))
    yield from check_annotations("metadata.annotations", metadata.get("annotations"))
    yield from _check_owners(metadata.get("ownerReferences") or [])
    for index, finalizer in enumerate(metadata.get("finalizers") or []):
        if wrong := qualified_name_problem(finalizer):
            yield invalid_value(f"metadata.finalizers[{index}]", finalizer, wrong)


def _check_owners(owners: list[JSON]) -> Iterator[Cause]:
    controllers = 0
    for index, owner in enumerate(owners):
        path = f"metadata.ownerReferences[{index}]"
        for field in ("apiVersion", "kind", "name", "uid"):
            if not owner[field]:
                yield invalid_value(f"{path}.{field}", owner[field], "must not be empty")
        controllers += owner.get("controller") is True
    if controllers > 1:
        yield invalid_value(
            "metadata.ownerReferences", controllers, "only one reference can have controller set to true"
        )


def check_annotations(path: str, annotations: Any) -> Iterator[Cause]:
    size = 0
    for key, value in (annotations or {}).items():
        if not isinstance(value, str):
            yield type_invalid(f"{path}.{key}", f"Expected `str`, got `{type(value).__name__}`")
            continue
        size += len(key) + len(value)
        if wrong := qualified_name_problem(key.lower()):
            yield invalid_value(path, key, wrong)
    if size > _MAX_ANNOTATIONS:
        yield Cause(path, f"Too long: may not be more than {_MAX_ANNOTATIONS} bytes", "FieldValueTooLong")


def _check_metadata_update(metadata: JSON, old: JSON) -> Iterator[Cause]:
    for field in ("name", "namespace", "uid", "creationTimestamp"):
        before, after = old.get(field), metadata.get(field)
        if before and after != before:
            yield immutable(f"metadata.{field}", after)


def unknown_fields(kind: Kind, obj: JSON) -> list[str]:
    """JSON paths of members the kind's model does not have, in the object's order."""
    found: list[str] = []
    _collect_unknown(kind.model, obj, "", found, 0)
    return found


def check_readable(kind: Kind, obj: JSON) -> None:
    """Raises BadRequest naming the JSON path where an object has not the types of its kind."""
    to_model(kind, obj)


@cache
def _fields(model: Any) -> dict[str, Any]:
    """Member name -> the struct below it (itself or in a list), or None."""
    return {field.encode_name: _struct_in(field.type) for field in msgspec.structs.fields(model)}


def _struct_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return annotation
    if getattr(annotation, "__origin__", None) is dict:
        return None
    for argument in getattr(annotation, "__args__", ()):
        found = _struct_in(argument)
        if found is not None:
            return found
    return None


def _collect_unknown(model: Any, value: Any, path: str, found: list[str], depth: int) -> None:
    if depth > _TOO_DEEP:
        return
    if isinstance(value, list):
        for index, item in enumerate(value):
            _collect_unknown(model, item, f"{path}[{index}]", found, depth + 1)
    elif isinstance(value, dict):
        known = _fields(model)
        for key, item in value.items():
            below = f"{path}.{key}" if path else key
            if key not in known:
                found.append(below)
            elif known[key] is not None:
                _collect_unknown(known[key], item, below, found, depth + 1)
