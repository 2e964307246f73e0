"""Objects as rows of a table, in the columns a kubectl user knows.

Source: k8s.io/kubernetes pkg/printers/internalversion. Priority 0 is always shown, 1 in wide output only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .errors import JSON
from .jsontools import child, children
from .kinds import Kind
from .table_pods import NONE, human_age, pod_cells, since

__all__ = ["Column", "columns", "human_age", "row", "since"]

_MAX_ADDRESSES = 3
_ROLE_PREFIX = "node-role.kubernetes.io/"
Cells = list[Any]


@dataclass(frozen=True, slots=True)
class Column:
    """meta/v1 TableColumnDefinition."""

    name: str
    type: str = "string"
    format: str = ""
    description: str = ""
    priority: int = 0

    def to_json(self) -> JSON:
        return {
            "name": self.name,
            "type": self.type,
            "format": self.format,
            "description": self.description,
            "priority": self.priority,
        }


def columns(kind: Kind) -> list[Column]:
    """The columns of a kind; of one this module does not know, Name and Age."""
    return list(_PRINTERS.get((kind.group, kind.kind), _PLAIN)[0])


def row(kind: Kind, obj: JSON, now: datetime) -> Cells:
    """One cell a column: texts and integers. Missing fields print as kubectl prints them, nothing raises."""
    return _PRINTERS.get((kind.group, kind.kind), _PLAIN)[1](obj, now)


def _name(obj: JSON) -> str:
    return str(child(obj, "metadata").get("name", ""))


def _age(obj: JSON, now: datetime) -> str:
    return since(child(obj, "metadata").get("creationTimestamp"), now)


def format_labels(labels: Any) -> str:
    """`a=b,c=d`, or `<none>`."""
    return ",".join(f"{key}={value}" for key, value in sorted((labels or {}).items())) or NONE


def format_selector(selector: JSON) -> str:
    """A meta/v1 LabelSelector in its string form."""
    parts = [f"{key}={value}" for key, value in sorted(child(selector, "matchLabels").items())]
    for item in children(selector, "matchExpressions"):
        key, operator, values = item.get("key", ""), item.get("operator"), ",".join(item.get("values") or [])
        shown = {"In": f"{key} in ({values})", "NotIn": f"{key} notin ({values})", "DoesNotExist": f"!{key}"}
        parts.append(shown.get(str(operator), str(key)))
    return ",".join(parts) or NONE


def _some(items: list[str], empty: str) -> str:
    """The first few of a list and how many more there are."""
    if not items:
        return empty
    text = ",".join(items[:_MAX_ADDRESSES])
    return text if len(items) <= _MAX_ADDRESSES else f"{text} + {len(items) - _MAX_ADDRESSES} more..."


def _containers(pod: JSON) -> Cells:
    listed = children(pod, "containers")
    names = ",".join(str(item.get("name", "")) for item in listed)
    return [names, ",".join(str(item.get("image", "")) for item in listed)]


def _template_containers(spec: JSON) -> Cells:
    return _containers(child(child(spec, "template"), "spec"))


def _service(obj: JSON, now: datetime) -> Cells:
    spec = child(obj, "spec")
    kind = str(spec.get("type", "ClusterIP"))
    ports = ",".join(_service_port(port) for port in children(spec, "ports")) or NONE
    address = spec.get("clusterIP") or NONE
    return [
        _name(obj),
        kind,
        address,
        _external_ip(obj, kind),
        ports,
        _age(obj, now),
        format_labels(spec.get("selector")),
    ]


def _service_port(port: JSON) -> str:
    number = f"{port.get('port')}:{port['nodePort']}" if port.get("nodePort") else str(port.get("port"))
    return f"{number}/{port.get('protocol', 'TCP')}"


def _external_ip(obj: JSON, kind: str) -> str:
    spec = child(obj, "spec")
    if kind == "ExternalName":
        return str(spec.get("externalName") or NONE)
    addresses = list(spec.get("externalIPs") or [])
    if kind != "LoadBalancer":
        return ",".join(addresses) or NONE
    ingress = children(child(child(obj, "status"), "loadBalancer"), "ingress")
    addresses = [str(item.get("ip") or item.get("hostname", "")) for item in ingress] + addresses
    return ",".join(addresses) or "<pending>"


def _deployment(obj: JSON, now: datetime) -> Cells:
    spec, status = child(obj, "spec"), child(obj, "status")
    ready = f"{status.get('readyReplicas', 0)}/{spec.get('replicas', 0)}"
    counts = [status.get("updatedReplicas", 0), status.get("availableReplicas", 0)]
    selector = format_selector(child(spec, "selector"))
    return [_name(obj), ready, *counts, _age(obj, now), *_template_containers(spec), selector]


def _replicas(obj: JSON, now: datetime) -> Cells:
    spec, status = child(obj, "spec"), child(obj, "status")
    counts = [spec.get("replicas", 0), status.get("replicas", 0), status.get("readyReplicas", 0)]
    return [_name(obj), *counts, _age(obj, now), *_template_containers(spec)]


def _replica_set(obj: JSON, now: datetime) -> Cells:
    return [*_replicas(obj, now), format_selector(child(child(obj, "spec"), "selector"))]


def _replication_controller(obj: JSON, now: datetime) -> Cells:
    return [*_replicas(obj, now), format_labels(child(obj, "spec").get("selector"))]


def node_status(obj: JSON) -> str:
    """`Ready`, `NotReady` or `Unknown`, with `,SchedulingDisabled` where the node is cordoned."""
    conditions = children(child(obj, "status"), "conditions")
    ready = next((item.get("status") for item in conditions if item.get("type") == "Ready"), None)
    text = "Unknown" if ready is None else "Ready" if ready == "True" else "NotReady"
    return f"{text},SchedulingDisabled" if child(obj, "spec").get("unschedulable") else text


def _node_roles(obj: JSON) -> str:
    labels = child(child(obj, "metadata"), "labels")
    roles = {key.removeprefix(_ROLE_PREFIX) for key in labels if key.startswith(_ROLE_PREFIX)}
    roles.add(str(labels.get("kubernetes.io/role", "")))
    return ",".join(sorted(roles - {""})) or NONE


def _node(obj: JSON, now: datetime) -> Cells:
    status = child(obj, "status")
    info = child(status, "nodeInfo")
    addresses = {item.get("type"): item.get("address") for item in reversed(children(status, "addresses"))}
    details = [info.get(field) or "<unknown>" for field in ("osImage", "kernelVersion", "containerRuntimeVersion")]
    wide = [addresses.get("InternalIP") or NONE, addresses.get("ExternalIP") or NONE, *details]
    return [_name(obj), node_status(obj), _node_roles(obj), _age(obj, now), info.get("kubeletVersion", ""), *wide]


def _endpoints(obj: JSON, now: datetime) -> Cells:
    found = []
    for subset in children(obj, "subsets"):
        addresses = [str(item.get("ip", "")) for item in children(subset, "addresses")]
        ports = children(subset, "ports")
        if not ports:
            found += addresses
        found += [f"{address}:{port.get('port')}" for port in ports for address in addresses]
    return [_name(obj), _some(found, NONE), _age(obj, now)]


def _endpoint_slice(obj: JSON, now: datetime) -> Cells:
    ports = [str(port.get("port", "*")) for port in children(obj, "ports")]
    addresses = [str(address) for item in children(obj, "endpoints") for address in item.get("addresses") or []]
    shown = _some(addresses, "<unset>")
    return [_name(obj), str(obj.get("addressType", "")), _some(ports, "<unset>"), shown, _age(obj, now)]


def event_times(obj: JSON) -> tuple[Any, Any, int]:
    """When an event was first and last seen (texts or None) and how often."""
    series = child(obj, "series")
    first = obj.get("firstTimestamp") or obj.get("eventTime")
    last = series.get("lastObservedTime") or obj.get("lastTimestamp") or first
    return first, last, int(series.get("count") or obj.get("count") or 1)


def event_object(obj: JSON) -> str:
    """`pod/web-1`: what an event is about."""
    about = child(obj, "involvedObject")
    return f"{str(about.get('kind', '')).lower()}/{about.get('name', '')}"


def _event(obj: JSON, now: datetime) -> Cells:
    first, last, count = event_times(obj)
    source = child(obj, "source")
    component = source.get("component") or obj.get("reportingComponent") or ""
    host = source.get("host") or ""
    shown = [since(last, now), obj.get("type", ""), obj.get("reason", ""), event_object(obj)]
    wide = [child(obj, "involvedObject").get("fieldPath", ""), f"{component}, {host}" if host else component]
    return [*shown, *wide, str(obj.get("message", "")).strip(), since(first, now), count, _name(obj)]


def _config_map(obj: JSON, now: datetime) -> Cells:
    return [_name(obj), len(child(obj, "data")) + len(child(obj, "binaryData")), _age(obj, now)]


def _secret(obj: JSON, now: datetime) -> Cells:
    return [_name(obj), obj.get("type", ""), len(child(obj, "data")), _age(obj, now)]


def _namespace(obj: JSON, now: datetime) -> Cells:
    return [_name(obj), child(obj, "status").get("phase", ""), _age(obj, now)]


def _lease(obj: JSON, now: datetime) -> Cells:
    return [_name(obj), child(obj, "spec").get("holderIdentity") or "", _age(obj, now)]


def _service_account(obj: JSON, now: datetime) -> Cells:
    return [_name(obj), len(children(obj, "secrets")), _age(obj, now)]


def _plain(obj: JSON, now: datetime) -> Cells:
    return [_name(obj), _age(obj, now)]


def _columns(text: str) -> tuple[Column, ...]:
    """Columns of a short notation: names separated by |, `#` before a number, `+` before a wide one."""
    found = []
    for part in text.split("|"):
        wide, part = part.startswith("+"), part.removeprefix("+")
        kind = "integer" if part.startswith("#") else "string"
        name = part.removeprefix("#")
        found.append(Column(name, kind, "name" if name == "Name" else "", _DESCRIPTIONS.get(name, ""), int(wide)))
    return tuple(found)


_DESCRIPTIONS = {
    "Name": "Name must be unique within a namespace.",
    "Age": "Time since the object was created.",
    "Ready": "How many of those wanted are ready.",
    "Status": "What state the object is in.",
    "Restarts": "How often containers were restarted, and when last.",
}

_TEMPLATE = "+Containers|+Images|+Selector"
_COUNTED = f"Name|#Desired|#Current|#Ready|Age|{_TEMPLATE}"
_PLAIN: tuple[tuple[Column, ...], Callable[[JSON, datetime], Cells]] = (_columns("Name|Age"), _plain)
_PRINTERS: dict[tuple[str, str], tuple[tuple[Column, ...], Callable[[JSON, datetime], Cells]]] = {
    ("", "Pod"): (
        _columns("Name|Ready|Status|Restarts|Age|+IP|+Node|+Nominated Node|+Readiness Gates"),
        pod_cells,
    ),
    ("", "Service"): (_columns("Name|Type|Cluster-IP|External-IP|Port(s)|Age|+Selector"), _service),
    ("apps", "Deployment"): (_columns(f"Name|Ready|#Up-to-date|#Available|Age|{_TEMPLATE}"), _deployment),
    ("apps", "ReplicaSet"): (_columns(_COUNTED), _replica_set),
    ("", "ReplicationController"): (_columns(_COUNTED), _replication_controller),
    ("", "Node"): (
        _columns(
            "Name|Status|Roles|Age|Version|+Internal-IP|+External-IP|+OS-Image|+Kernel-Version|+Container-Runtime"
        ),
        _node,
    ),
    ("", "Endpoints"): (_columns("Name|Endpoints|Age"), _endpoints),
    ("discovery.k8s.io", "EndpointSlice"): (_columns("Name|AddressType|Ports|Endpoints|Age"), _endpoint_slice),
    ("", "Event"): (
        _columns("Last Seen|Type|Reason|Object|+Subobject|+Source|Message|+First Seen|+#Count|+Name"),
        _event,
    ),
    ("", "ConfigMap"): (_columns("Name|#Data|Age"), _config_map),
    ("", "Secret"): (_columns("Name|Type|#Data|Age"), _secret),
    ("", "Namespace"): (_columns("Name|Status|Age"), _namespace),
    ("coordination.k8s.io", "Lease"): (_columns("Name|Holder|Age"), _lease),
    ("", "ServiceAccount"): (_columns("Name|#Secrets|Age"), _service_account),
}
