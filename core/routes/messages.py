"""What one Service, and one Node, is to the nodes: their messages of the route feed. Pure functions.

Whatever has no order in the API is sorted and there once. What cannot be used is left out with a line in the log: a
wrong address of one service must not take all others with it.
"""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TypeVar

from lightkube.models.core_v1 import Node, Service
from lightkube.models.core_v1 import ServicePort as ModelPort
from lightkube.models.discovery_v1 import Endpoint, EndpointSlice

from kernelet.proto import routes_pb2 as pb

log = logging.getLogger(__name__)

BALANCING_ANNOTATION = "kernelet.dev/balancing"
"""On a Service: `consistent` (a client's backend follows from who it is), or `random`, the default."""
WEIGHTS_ANNOTATION = "kernelet.dev/weights"
"""On an EndpointSlice: a JSON object of address -> weight, 1 to 255; addresses that are not in it weigh 1."""
VTEP_MAC_ANNOTATION = "kernelet.dev/vtep-mac"
ZONE_LABEL = "topology.kubernetes.io/zone"
HEAVIEST = 255

_PROTOCOLS = {"TCP": pb.TCP, "UDP": pb.UDP, "SCTP": pb.SCTP}
_FAMILIES = {"IPv4": 4, "IPv6": 16}
_AFTER_ADDRESS = struct.Struct("!HBHBH")
"""Port, flags, node, weight and zones of a backend; see routes.proto."""

Zones = tuple[str, ...]
K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class _Listed:
    """An endpoint that takes connections, or may, and what its slice says of it."""

    slice: EndpointSlice
    endpoint: Endpoint
    flags: int
    zones: Zones
    addresses: list[tuple[bytes, int]]
    """Those of the slice's family, and the weight of each."""


@dataclass(frozen=True, slots=True)
class _Numbers:
    """Numbers from 1 by which backends refer to what the Service message holds once."""

    nodes: Mapping[str, int]
    zones: Mapping[Zones, int]


def compile_service(
    key: str, service: Service, slices: Iterable[EndpointSlice], flags: Callable[[Endpoint], int]
) -> pb.Service | None:
    """None for a service without a cluster IP. `flags` are an endpoint's, as routes.proto has them; 0 leaves it out."""
    spec = service.spec
    if spec is None or spec.type == "ExternalName" or spec.clusterIP in (None, "", "None"):
        return None
    listed = [found for entry in slices for found in _listed(key, entry, flags)]
    nodes = sorted({found.endpoint.nodeName for found in listed if found.endpoint.nodeName})
    zones = sorted({found.zones for found in listed if found.zones})
    numbers = _Numbers(_numbered(nodes), _numbered(zones))
    ports = [_compile_port(key, port, listed, numbers) for port in spec.ports or []]
    balanced = spec.type == "LoadBalancer"
    local = spec.externalTrafficPolicy == "Local"
    balancer_ips, ranges = _balancer(key, service) if balanced else ([], [])
    return pb.Service(
        id=key,
        cluster_ips=_packed(key, spec.clusterIPs or [spec.clusterIP]),
        ports=sorted(ports, key=lambda port: (port.protocol, port.port)),
        external_local=local,
        internal_local=spec.internalTrafficPolicy == "Local",
        affinity_seconds=_affinity(service),
        external_ips=_packed(key, spec.externalIPs),
        balancer_ips=balancer_ips,
        source_ranges=ranges,
        health_check_port=(spec.healthCheckNodePort or 0) if balanced and local else 0,
        consistent=_consistent(key, service),
        nodes=nodes,
        zones=[pb.Zones(names=names) for names in zones],
    )


def _numbered(values: Iterable[K]) -> dict[K, int]:
    return {value: number for number, value in enumerate(values, 1)}


def _listed(key: str, entry: EndpointSlice, flags: Callable[[Endpoint], int]) -> Iterable[_Listed]:
    size, weights = _FAMILIES.get(entry.addressType), _weights(key, entry)
    for endpoint in entry.endpoints or []:
        if found := flags(endpoint):
            addresses = [
                (address, weights.get(text, 1))
                for text in endpoint.addresses or []
                for address in _packed(key, (text,))
                if len(address) == size
            ]
            yield _Listed(entry, endpoint, found, _zones(endpoint), addresses)


def _zones(endpoint: Endpoint) -> Zones:
    """Hints for nodes (KEP-3015) are not told: they come with one for the node's zone, which is the next best."""
    hints = (endpoint.hints.forZones if endpoint.hints else None) or []
    return tuple(sorted({hint.name for hint in hints if hint.name}))


def _weights(key: str, entry: EndpointSlice) -> Mapping[str, int]:
    """By address. What is no weight counts as 1."""
    text = ((entry.metadata.annotations if entry.metadata else None) or {}).get(WEIGHTS_ANNOTATION)
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        log.warning("weights left out service=%s annotation=%s: %s", key, WEIGHTS_ANNOTATION, error)
        return {}
    if not isinstance(found, dict):
        log.warning("weights left out service=%s annotation=%s: expected address -> weight", key, WEIGHTS_ANNOTATION)
        return {}
    good = {address: weight for address, weight in found.items() if type(weight) is int and 1 <= weight <= HEAVIEST}
    for address in found.keys() - good.keys():
        log.warning("weight left out service=%s address=%s: expected 1 to %d", key, address, HEAVIEST)
    return good


def _compile_port(key: str, port: ModelPort, listed: Iterable[_Listed], numbers: _Numbers) -> pb.ServicePort:
    rows: dict[int, dict[tuple[bytes, int], tuple[int, bytes]]] = {4: {}, 16: {}}
    for found in listed:
        target = _target_port(found.slice, port)
        if target is None:
            continue
        node, zones = numbers.nodes.get(found.endpoint.nodeName or "", 0), numbers.zones.get(found.zones, 0)
        for address, weight in found.addresses:
            packed = address + _AFTER_ADDRESS.pack(target, found.flags, node, weight, zones)
            # One that moves from slice to slice is in both for a moment: once is enough, ready if either says so.
            row, where = (found.flags & pb.BACKEND_READY, packed), rows[len(address)]
            where[address, target] = max(row, where.get((address, target), row))
    return pb.ServicePort(
        name=port.name or "",
        protocol=_PROTOCOLS.get(port.protocol or "TCP", pb.PROTOCOL_UNSPECIFIED),
        port=port.port,
        node_port=port.nodePort or 0,
        backends4=b"".join(sorted(row for _, row in rows[4].values())),
        backends6=b"".join(sorted(row for _, row in rows[16].values())),
    )


def _target_port(entry: EndpointSlice, port: ModelPort) -> int | None:
    """A slice's port is matched by name and protocol, as its own numbers may differ from slice to slice."""
    for candidate in entry.ports or []:
        same_name = (candidate.name or "") == (port.name or "")
        if same_name and (candidate.protocol or "TCP") == (port.protocol or "TCP"):
            return candidate.port
    return None


def _packed(key: str, addresses: Iterable[str] | None) -> list[bytes]:
    """Sorted, each once."""
    found = set()
    for text in addresses or []:
        try:
            found.add(ip_address(text).packed)
        except ValueError as error:
            log.warning("address left out of the routes service=%s: %s", key, error)
    return sorted(found)


def _balancer(key: str, service: Service) -> tuple[list[bytes], list[bytes]]:
    """The addresses of the load balancer, and who may use them, packed; no range: everybody.

    Where ranges are given and none of them is one, nobody may use the addresses, and they are left out.
    """
    addresses = _packed(key, _ingress(service))
    asked = (service.spec.loadBalancerSourceRanges if service.spec else None) or []
    ranges = _ranges(key, asked)
    if asked and not ranges:
        log.warning("no valid loadBalancerSourceRanges: the balancer's addresses serve nobody service=%s", key)
        return [], []
    return addresses, ranges


def _ranges(key: str, texts: Iterable[str]) -> list[bytes]:
    """Networks as routes.proto packs them. Blanks around one and bits below its prefix do not count."""
    found = set()
    for text in texts:
        try:
            network = ip_network(text.strip(), strict=False)
        except ValueError as error:
            log.warning("source range left out of the routes service=%s: %s", key, error)
        else:
            found.add(network.network_address.packed + bytes([network.prefixlen]))
    return sorted(found)


def _ingress(service: Service) -> set[str]:
    """Addresses of the load balancer that packets arrive with; with ipMode Proxy they have another one (KEP-1860)."""
    balancer = service.status.loadBalancer if service.status else None
    return {
        entry.ip for entry in (balancer.ingress if balancer else None) or [] if entry.ip and entry.ipMode != "Proxy"
    }


def _affinity(service: Service) -> int:
    spec = service.spec
    if spec is None or spec.sessionAffinity != "ClientIP":
        return 0
    config = spec.sessionAffinityConfig
    client_ip = config.clientIP if config else None
    return (client_ip.timeoutSeconds if client_ip else None) or 10800


def _consistent(key: str, service: Service) -> bool:
    annotations: Mapping[str, str] = (service.metadata.annotations if service.metadata else None) or {}
    asked = annotations.get(BALANCING_ANNOTATION, "random")
    if asked not in ("consistent", "random"):
        log.warning(
            "annotation %s=%r of service %s is neither consistent nor random: random it is",
            BALANCING_ANNOTATION, asked, key,
        )  # fmt: skip
    return asked == "consistent"


def compile_peer(node: Node) -> pb.Peer | None:
    """None until the node has a pod subnet and an address."""
    spec, status = node.spec, node.status
    cidrs = (spec.podCIDRs or ([spec.podCIDR] if spec.podCIDR else [])) if spec else []
    addresses = [a.address for a in (status.addresses if status else None) or [] if a.type == "InternalIP"]
    if not cidrs or not addresses or node.metadata is None:
        return None
    return pb.Peer(
        node=node.metadata.name or "",
        pod_cidrs=cidrs,
        address=addresses[0],
        vtep_mac=(node.metadata.annotations or {}).get(VTEP_MAC_ANNOTATION, ""),
        zone=(node.metadata.labels or {}).get(ZONE_LABEL, ""),
    )
