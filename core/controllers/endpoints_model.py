"""What the endpoints of a service are, and the fewest writes that make its slices say so. Pure functions.

An endpoint's conditions, after KEP-1672: `serving` = the pod is Ready and its node has not been given up;
`terminating` = deletion has been asked for; `ready` = serving and not terminating, or the service publishes addresses
that are not ready. Nothing else in the cluster decides where connections go.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lightkube.models.core_v1 import Node, Pod, Service, ServicePort
from lightkube.models.discovery_v1 import Endpoint, EndpointConditions, EndpointPort, EndpointSlice

from kernelet.core.controllers import pods as pod_facts
from kernelet.core.controllers.access import deleting, labels_of, meta, name_of, namespace_of, reference_to

LIMIT = 100
"""Endpoints in one slice."""

GIVEN_UP = frozenset({"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"})
"""Taints that, with effect NoExecute, say the node lifecycle controller has given a node up."""

ZONE_LABEL = "topology.kubernetes.io/zone"

Group = tuple[str, tuple[tuple[str, str, int, str], ...]]
"""Address type, and (name, protocol, port, application protocol) of each port; endpoints alike in both share slices."""


def given_up(node: Node | None) -> bool:
    """Whether pods of this node take no connections. A node the cache does not know is not held against its pods."""
    taints = (node.spec.taints if node and node.spec else None) or []
    return any(taint.effect == "NoExecute" and taint.key in GIVEN_UP for taint in taints)


def families(service: Service) -> list[str]:
    """IPv4 and/or IPv6, as the service's addresses are; IPv4 where nothing says."""
    spec = service.spec
    if spec is None:
        return ["IPv4"]
    if spec.ipFamilies:
        return list(spec.ipFamilies)
    addresses = [address for address in spec.clusterIPs or [spec.clusterIP or ""] if address not in ("", "None")]
    return sorted({f"IPv{ipaddress.ip_address(address).version}" for address in addresses}) or ["IPv4"]


def pod_address(pod: Pod, family: str) -> str:
    """The pod's address of a family, "" when it has none yet."""
    if pod.status is None:
        return ""
    listed = [entry.ip for entry in pod.status.podIPs or []] or [pod.status.podIP or ""]
    return next((text for text in listed if text and f"IPv{ipaddress.ip_address(text).version}" == family), "")


def target_port(port: ServicePort, pod: Pod) -> int | None:
    """The container's port a service port leads to; None where the pod has no port of the name asked for."""
    target = port.targetPort
    if target is None or target in (0, ""):
        return port.port
    if isinstance(target, int) or target.isdecimal():
        return int(target)
    protocol = port.protocol or "TCP"
    spec = pod.spec
    sidecars = [entry for entry in (spec.initContainers if spec else None) or [] if entry.restartPolicy == "Always"]
    for container in [*(spec.containers if spec else []), *sidecars]:
        for candidate in container.ports or []:
            if candidate.name == target and (candidate.protocol or "TCP") == protocol:
                return candidate.containerPort
    return None


def pod_ports(service: Service, pod: Pod) -> tuple[tuple[str, str, int, str], ...]:
    """(name, protocol, port, application protocol) of what the pod offers of the service, in order."""
    ports = (service.spec.ports if service.spec else None) or []
    found = [(port, target_port(port, pod)) for port in ports]
    return tuple(
        sorted(
            (port.name or "", port.protocol or "TCP", number, port.appProtocol or "")
            for port, number in found
            if number
        )
    )


def endpoint_of(service: Service, pod: Pod, node: Node | None, address: str) -> Endpoint:
    """One pod as an endpoint of one family."""
    publish = bool(service.spec and service.spec.publishNotReadyAddresses)
    serving = pod_facts.ready(pod) and not given_up(node)
    terminating = deleting(pod)
    return Endpoint(
        addresses=[address],
        conditions=EndpointConditions(
            ready=publish or (serving and not terminating), serving=serving, terminating=terminating
        ),
        hostname=hostname(service, pod),
        nodeName=pod_facts.node_name(pod) or None,
        targetRef=reference_to(pod, None, "Pod"),
        zone=labels_of(node).get(ZONE_LABEL) if node else None,
    )


def hostname(service: Service, pod: Pod) -> str | None:
    """The name a headless service gives a pod that asks for one by hostname and subdomain."""
    spec = pod.spec
    if (
        spec is None
        or not spec.hostname
        or spec.subdomain != name_of(service)
        or namespace_of(pod) != namespace_of(service)
    ):
        return None
    return spec.hostname


def desired(service: Service, pods: Iterable[Pod], nodes: Mapping[str, Node]) -> dict[Group, list[Endpoint]]:
    """Every endpoint of the service, by the group whose slices hold it. Each family has one, if an empty one."""
    groups: dict[Group, list[Endpoint]] = {}
    wanted = families(service)
    for pod in sorted(pods, key=name_of):
        if pod_facts.finished(pod):
            continue
        ports = pod_ports(service, pod)
        for family in wanted:
            if address := pod_address(pod, family):
                node = nodes.get(pod_facts.node_name(pod))
                groups.setdefault((family, ports), []).append(endpoint_of(service, pod, node, address))
    for family in wanted:
        if not any(group[0] == family for group in groups):
            groups[family, ()] = []
    return groups


@dataclass
class Plan:
    """What to write. `create` holds the endpoints of each new slice and its group."""

    create: list[tuple[Group, list[Endpoint]]] = field(default_factory=list)
    update: list[tuple[EndpointSlice, list[Endpoint]]] = field(default_factory=list)
    delete: list[EndpointSlice] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not (self.create or self.update or self.delete)


def group_of(endpoints: EndpointSlice) -> Group:
    """The group an existing slice belongs to."""
    ports = tuple(
        sorted(
            (port.name or "", port.protocol or "TCP", port.port or 0, port.appProtocol or "")
            for port in endpoints.ports or []
        )
    )
    return endpoints.addressType, ports


def slice_ports(group: Group) -> list[EndpointPort]:
    return [
        EndpointPort(name=name, protocol=protocol, port=port, appProtocol=application or None)
        for name, protocol, port, application in group[1]
    ]


def plan(existing: Sequence[EndpointSlice], wanted: Mapping[Group, list[Endpoint]]) -> Plan:
    """The fewest writes: endpoints stay in the slice they are in; new ones fill slices that are written anyway, then
    one that has room, then new ones. Empty slices go, save one where a service has no endpoint at all."""
    result = Plan()
    by_group: dict[Group, list[EndpointSlice]] = {}
    for entry in sorted(existing, key=name_of):
        by_group.setdefault(group_of(entry), []).append(entry)
    wanted = {_reused(group, endpoints, by_group): endpoints for group, endpoints in wanted.items()}
    for group, slices in by_group.items():
        if group not in wanted:
            result.delete += slices
    for group, endpoints in wanted.items():
        _plan_group(result, group, by_group.get(group, []), endpoints)
    return result


def _reused(group: Group, endpoints: list[Endpoint], present: Mapping[Group, list[EndpointSlice]]) -> Group:
    """Where a service has lost its last endpoint, a slice that is there is emptied, whatever its ports: one write."""
    if endpoints or group in present:
        return group
    return next((other for other in present if other[0] == group[0]), group)


def _plan_group(result: Plan, group: Group, slices: list[EndpointSlice], endpoints: list[Endpoint]) -> None:
    missing = {_identity(endpoint): endpoint for endpoint in endpoints}
    contents: list[list[Endpoint]] = []
    for entry in slices:
        contents.append([missing.pop(key) for old in entry.endpoints or [] if (key := _identity(old)) in missing])
    new = list(missing.values())
    changed = [content != (entry.endpoints or []) for entry, content in zip(slices, contents, strict=True)]
    order = sorted(range(len(slices)), key=lambda index: (not changed[index], -len(contents[index])))
    for index in order:
        room = LIMIT - len(contents[index])
        if not new or room <= 0 or (not changed[index] and len(new) > room):
            continue
        contents[index] += new[:room]
        del new[:room]
        changed[index] = True
    keep_one = not endpoints
    for index, entry in enumerate(slices):
        if not contents[index] and not keep_one:
            result.delete.append(entry)
            continue
        if not contents[index]:
            keep_one = False
        if changed[index]:
            result.update.append((entry, contents[index]))
    result.create += [(group, new[start : start + LIMIT]) for start in range(0, len(new), LIMIT)]
    if not endpoints and not slices:
        result.create.append((group, []))


def _identity(endpoint: Endpoint) -> tuple[str, str]:
    return endpoint.addresses[0] if endpoint.addresses else "", (
        endpoint.targetRef.uid if endpoint.targetRef else None
    ) or ""


def slice_labels(service: Service) -> dict[str, str]:
    """The service's labels, and whether it is headless; those by which slices are found come from who writes them."""
    labels = dict(meta(service).labels or {})
    labels.pop("service.kubernetes.io/headless", None)
    if service.spec and service.spec.clusterIP == "None":
        labels["service.kubernetes.io/headless"] = ""
    return labels
