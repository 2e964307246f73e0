"""What is to be traced, from the objects of the API."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

from lightkube.models.core_v1 import Node, Service, ServicePort
from lightkube.models.discovery_v1 import EndpointSlice

from kernelet.agents.cluster.topology import NETNS_ROOT, node_netns

from .errors import TraceError
from .subject import Endpoint, Network, Place, Subject

SERVICE_LABEL = "kubernetes.io/service-name"
_PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}
_OWN_NETNS = Path("/proc/self/ns/net")


def subject_of(service: Service, slices: Iterable[EndpointSlice]) -> Subject:
    """A service with its backends, ready or not. Raises TraceError for one without an address of its own."""
    assert service.metadata and service.spec
    name = f"{service.metadata.namespace}/{service.metadata.name}"
    addresses = _addresses(name, service)
    ports = {port.name or "": port for port in service.spec.ports or ()}
    frontends = frozenset(_endpoint(address, port.port, port) for address in addresses for port in ports.values())
    backends: dict[Endpoint, Endpoint] = {}
    for slice_ in slices:
        for entry in slice_.ports or ():
            port = ports.get(entry.name or "")
            if port is None or not entry.port:
                continue
            for address in _members(slice_):
                service_address = next((a for a in addresses if len(a) == len(address)), addresses[0])
                backends[_endpoint(address, entry.port, port)] = _endpoint(service_address, port.port, port)
    return Subject(name, backends, frontends)


def _addresses(name: str, service: Service) -> list[bytes]:
    """Cluster IPs first, then external and load balancer addresses."""
    spec = service.spec
    assert spec is not None
    if spec.type == "ExternalName":
        raise TraceError(
            f"service {name} is an ExternalName: a DNS alias of {spec.externalName}, with no virtual address and no "
            "backends; its clients connect to that name's own addresses"
        )
    if spec.clusterIP == "None":
        raise TraceError(
            f"service {name} is headless: its name resolves to the pods themselves, so no virtual address is there "
            "whose traffic could be followed; trace a service with a cluster IP"
        )
    found = spec.clusterIPs or ([spec.clusterIP] if spec.clusterIP else [])
    if not found:
        raise TraceError(f"service {name} has no cluster IP yet; does the API server give addresses out?")
    balancer = service.status.loadBalancer if service.status else None
    ingress = [entry.ip for entry in (balancer.ingress if balancer else None) or () if entry.ip]
    return [ip_address(text).packed for text in (*found, *(spec.externalIPs or ()), *ingress)]


def _members(slice_: EndpointSlice) -> Iterator[bytes]:
    if slice_.addressType in ("IPv4", "IPv6"):
        for endpoint in slice_.endpoints or ():
            yield from (ip_address(text).packed for text in endpoint.addresses)


def _endpoint(address: bytes, number: int, port: ServicePort) -> Endpoint:
    return Endpoint(address, number, _PROTOCOLS[port.protocol or "TCP"])


def places_of(nodes: Iterable[Node], cluster: str, only: str = "", root: Path = NETNS_ROOT) -> list[Place]:
    """The nodes that are on this machine: as a namespace of their own, or as the host itself.

    Raises TraceError when there is none, or not the one that is asked for.
    """
    known = {str(node.metadata.name): node for node in nodes if node.metadata}
    if only and only not in known:
        raise TraceError(f"no node is called {only}; there are: {', '.join(sorted(known)) or 'none'}")
    places = []
    for name, node in sorted(known.items()):
        path = root / node_netns(cluster, name)
        own = _own_addresses(node)
        if path.exists() or any(_is_local(address) for address in own):
            networks = (*map(ip_network, own), *_pod_networks(node))
            places.append(Place(name, path if path.exists() else _OWN_NETNS, networks))
    chosen = [place for place in places if only in ("", place.node)]
    if not chosen:
        what = f"node {only} is not" if only else "none of the cluster's nodes is"
        raise TraceError(f"{what} on this machine; run this on the node's host (and see --cluster)")
    return chosen


def _own_addresses(node: Node) -> list[str]:
    addresses = (node.status.addresses if node.status else None) or ()
    return [entry.address for entry in addresses if entry.type in ("InternalIP", "ExternalIP")]


def _pod_networks(node: Node) -> list[Network]:
    spec = node.spec
    texts = (spec.podCIDRs or ([spec.podCIDR] if spec.podCIDR else [])) if spec else []
    return [ip_network(text) for text in texts]


def _is_local(address: str) -> bool:
    """Whether an interface of this network namespace has the address: only then a socket may be bound to it."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            return False
    return True
