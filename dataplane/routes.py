"""The route table a node holds, and its deltas: plain data, with no knowledge of where it comes from.

Addresses are packed network-order bytes: 4 for IPv4, 16 for IPv6. One code path serves both families.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class Protocol(enum.IntEnum):
    """IP protocol numbers."""

    TCP = 6
    UDP = 17
    SCTP = 132


class BackendFlag(enum.IntFlag):
    NONE = 0
    READY = 1
    """Takes new connections."""
    SERVING = 2
    TERMINATING = 4


Prefix = tuple[bytes, int]
"""A network: its address, and how many leading bits of it count."""


@dataclass(frozen=True, slots=True)
class Backend:
    address: bytes
    port: int
    flags: BackendFlag = BackendFlag.READY
    node: str = ""
    """The node it runs on; "" when unknown or outside the cluster."""
    weight: int = 1
    """Its share of new connections, 1 to 255, in proportion to that of the others."""
    zones: tuple[str, ...] = ()
    """Zones whose clients it is meant for (EndpointSlice hints, KEP-2433); empty: any."""


@dataclass(frozen=True, slots=True)
class ServicePort:
    name: str
    protocol: Protocol
    port: int
    node_port: int
    """0: none."""
    backends: tuple[Backend, ...]
    """Of both families, in no particular order."""


@dataclass(frozen=True, slots=True)
class ServiceRoute:
    """One Service with everything a node needs to route to it."""

    id: str
    """`namespace/name`"""
    cluster_ips: tuple[bytes, ...]
    ports: tuple[ServicePort, ...]
    external_ips: tuple[bytes, ...] = ()
    external_local: bool = False
    internal_local: bool = False
    affinity_seconds: int = 0
    balancer_ips: tuple[bytes, ...] = ()
    """Load-balancer ingress addresses."""
    source_ranges: tuple[Prefix, ...] = ()
    """Who may use the balancer's addresses; empty: everybody."""
    health_check_port: int = 0
    """Where each node tells load balancers whether it has a ready backend (externalTrafficPolicy Local); 0: nowhere."""
    consistent: bool = False
    """A client's backend follows from who the client is (Maglev) rather than from chance."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A node, as the overlay of the others needs it, and its zone, as its own proxy does."""

    node: str
    pod_cidrs: tuple[str, ...]
    address: str
    vtep_mac: str
    """"" until that node has published it: it cannot be reached over VXLAN yet."""
    zone: str = ""
    """Its label topology.kubernetes.io/zone."""


@dataclass(slots=True)
class Delta:
    """What changed from `base_version` to `version`; base_version 0 is a snapshot that replaces everything."""

    generation: str
    version: int
    base_version: int
    services: list[ServiceRoute] = field(default_factory=list)
    removed_services: list[str] = field(default_factory=list)
    peers: list[Peer] = field(default_factory=list)
    removed_peers: list[str] = field(default_factory=list)

    @property
    def snapshot(self) -> bool:
        return self.base_version == 0


@dataclass(slots=True)
class RouteTable:
    """All services and peers at one version."""

    generation: str = ""
    version: int = 0
    services: dict[str, ServiceRoute] = field(default_factory=dict)
    peers: dict[str, Peer] = field(default_factory=dict)

    def zone_of(self, node: str) -> str:
        """The zone of a node; "" where it has none or is not known."""
        peer = self.peers.get(node)
        return peer.zone if peer else ""

    def after(self, delta: Delta) -> RouteTable:
        """What this table becomes with a delta; this one stays as it is. Raises ValueError as `apply` does."""
        made = RouteTable(self.generation, self.version, dict(self.services), dict(self.peers))
        made.apply(delta)
        return made

    def zone_after(self, delta: Delta, node: str) -> str:
        """The zone of a node once the delta is taken."""
        if node in delta.removed_peers:
            return ""
        zone = "" if delta.snapshot else self.zone_of(node)
        return next((peer.zone for peer in delta.peers if peer.node == node), zone)

    def apply(self, delta: Delta) -> None:
        """Takes a delta. Raises ValueError when it does not start at this table's version and generation."""
        if delta.snapshot:
            self.services.clear()
            self.peers.clear()
        elif (delta.generation, delta.base_version) != (self.generation, self.version):
            raise ValueError(
                f"delta {delta.generation}:{delta.base_version}..{delta.version} does not continue "
                f"the table at {self.generation}:{self.version}"
            )
        for service in delta.services:
            self.services[service.id] = service
        for name in delta.removed_services:
            self.services.pop(name, None)
        for peer in delta.peers:
            self.peers[peer.node] = peer
        for name in delta.removed_peers:
            self.peers.pop(name, None)
        self.generation, self.version = delta.generation, delta.version
