"""Kubernetes' defaults, applied in place before an object is validated and stored.

One function a kind, in one table; the pod template of every workload goes through `pod_defaults`. Fields of a wrong
type are left alone: validation names them. Applying defaults twice changes nothing more.
Source: k8s.io/kubernetes pkg/apis/core/v1/defaults.go and pkg/apis/apps/v1/defaults.go.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Any

from .errors import JSON
from .jsontools import child, children, default, default_map, prune_nulls
from .kinds import Kind
from .pod_defaults import pod_spec_defaults

NAMESPACE_LABEL = "kubernetes.io/metadata.name"


def apply_defaults(kind: Kind, obj: JSON) -> None:
    """Fills in what was left out, and drops nulls, which mean the same."""
    prune_nulls(obj)
    default(obj, "apiVersion", kind.api_version)
    default(obj, "kind", kind.kind)
    default_map(obj, "metadata")
    function = _DEFAULTS.get((kind.group, kind.kind))
    if function is not None:
        function(obj)


def _pod(obj: JSON) -> None:
    pod_spec_defaults(default_map(obj, "spec"))
    default(default_map(obj, "status"), "phase", "Pending")


def _template(spec: JSON) -> JSON:
    """The pod template of a workload's spec, with defaults; an unattached object where there is none."""
    template = child(spec, "template")
    if template:
        default_map(template, "metadata")
        pod_spec_defaults(default_map(template, "spec"))
    return template


def _replicated(obj: JSON) -> JSON:
    spec = default_map(obj, "spec")
    spec.setdefault("replicas", 1)
    default_map(obj, "status").setdefault("replicas", 0)
    return spec


def _replica_set(obj: JSON) -> None:
    _template(_replicated(obj))


def _replication_controller(obj: JSON) -> None:
    """Selector and labels come from the template, as in the first API."""
    spec = _replicated(obj)
    labels = child(child(_template(spec), "metadata"), "labels")
    if labels:
        if not spec.get("selector"):
            spec["selector"] = dict(labels)
        metadata = child(obj, "metadata")
        if not metadata.get("labels"):
            metadata["labels"] = dict(labels)


def _deployment(obj: JSON) -> None:
    spec = default_map(obj, "spec")
    spec.setdefault("replicas", 1)
    spec.setdefault("revisionHistoryLimit", 10)
    spec.setdefault("progressDeadlineSeconds", 600)
    strategy = default_map(spec, "strategy")
    default(strategy, "type", "RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        rolling = default_map(strategy, "rollingUpdate")
        rolling.setdefault("maxUnavailable", "25%")
        rolling.setdefault("maxSurge", "25%")
    default_map(obj, "status")
    _template(spec)


def _service(obj: JSON) -> None:
    spec = default_map(obj, "spec")
    default(spec, "type", "ClusterIP")
    default(spec, "sessionAffinity", "None")
    if spec["sessionAffinity"] == "None":
        spec.pop("sessionAffinityConfig", None)
    elif spec["sessionAffinity"] == "ClientIP":
        default_map(default_map(spec, "sessionAffinityConfig"), "clientIP").setdefault("timeoutSeconds", 10800)
    for port in children(spec, "ports"):
        default(port, "protocol", "TCP")
        if port.get("targetPort") in (None, 0, "") and "port" in port:
            port["targetPort"] = port["port"]
    for entry in children(default_map(default_map(obj, "status"), "loadBalancer"), "ingress"):
        if entry.get("ip"):
            default(entry, "ipMode", "VIP")
    if spec["type"] == "ExternalName":
        return
    spec.setdefault("internalTrafficPolicy", "Cluster")
    if spec["type"] in ("NodePort", "LoadBalancer") or spec.get("externalIPs"):
        default(spec, "externalTrafficPolicy", "Cluster")
    if spec["type"] == "LoadBalancer":
        spec.setdefault("allocateLoadBalancerNodePorts", True)


def _endpoints(obj: JSON) -> None:
    for subset in children(obj, "subsets"):
        for port in children(subset, "ports"):
            default(port, "protocol", "TCP")


def _endpoint_slice(obj: JSON) -> None:
    obj.setdefault("endpoints", [])
    for port in children(obj, "ports"):
        port.setdefault("name", "")
        default(port, "protocol", "TCP")


def _secret(obj: JSON) -> None:
    default(obj, "type", "Opaque")
    plain = obj.get("stringData")
    if not isinstance(plain, dict) or not all(isinstance(value, str) for value in plain.values()):
        return
    data = default_map(obj, "data")
    if obj["data"] is data:
        for key, value in plain.items():
            data[key] = base64.b64encode(value.encode(errors="replace")).decode()
        del obj["stringData"]


def decode_secret_value(value: Any) -> bytes | None:
    """The bytes of one entry of a Secret's data, or None where it is no base64."""
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error):
        return None


def _namespace(obj: JSON) -> None:
    metadata = child(obj, "metadata")
    name = metadata.get("name")
    if isinstance(name, str) and name:
        default_map(metadata, "labels")[NAMESPACE_LABEL] = name
    spec = default_map(obj, "spec")
    if not metadata.get("deletionTimestamp"):
        spec.setdefault("finalizers", ["kubernetes"])
    default(default_map(obj, "status"), "phase", "Active")


def _node(obj: JSON) -> None:
    default_map(obj, "spec")
    status = default_map(obj, "status")
    capacity = status.get("capacity")
    if capacity and isinstance(capacity, dict):
        status.setdefault("allocatable", dict(capacity))


_DEFAULTS: dict[tuple[str, str], Callable[[JSON], None]] = {
    ("", "Pod"): _pod,
    ("", "Service"): _service,
    ("", "Endpoints"): _endpoints,
    ("", "ReplicationController"): _replication_controller,
    ("", "Secret"): _secret,
    ("", "Namespace"): _namespace,
    ("", "Node"): _node,
    ("apps", "ReplicaSet"): _replica_set,
    ("apps", "Deployment"): _deployment,
    ("discovery.k8s.io", "EndpointSlice"): _endpoint_slice,
}
