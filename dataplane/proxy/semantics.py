"""What a Service means on one node: who may be sent where. Every engine routes by these views and by nothing else.

Pure data: nothing in here touches the kernel, and nothing depends on an engine or an address family.

Choosing among a port's backends, as Kubernetes does:

* ready ones; where there is none, those that still serve while they terminate (KEP-1669);
* for clients of a traffic policy Local only those on this node;
* else, where every one of them is meant for some zones and one of them for this node's, only the latter (KEP-2433).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from ..routes import Backend, BackendFlag, Prefix, Protocol, ServicePort, ServiceRoute
from .engine import EngineError

LENGTHS = (4, 16)
"""Bytes of an address of each family."""

# An IntFlag's own operators cost a microsecond each, which a cold start pays for every backend.
_has = int.__and__
_READY, _DYING = int(BackendFlag.READY), int(BackendFlag.SERVING | BackendFlag.TERMINATING)


class View(NamedTuple):
    """One service port in one address family, as this node is to route it."""

    length: int
    """Bytes of an address: the family."""
    protocol: Protocol
    port: int
    node_port: int
    """0: none in this family."""
    cluster_ips: Sequence[bytes]
    external_ips: Sequence[bytes]
    balancer_ips: Sequence[bytes]
    everyone: Sequence[Backend]
    """For external, balancer and node-port clients, unless `outsiders` says otherwise."""
    internal: Sequence[Backend]
    """For clients of the cluster IPs. Where there is none they are refused at once, whatever the policy."""
    outsiders: Sequence[Backend] | None
    """For clients outside the cluster under externalTrafficPolicy Local; None: they are like everyone.

    Where there is none here but one elsewhere, they are dropped rather than refused, so that a load balancer's client
    tries another node.
    """
    here: Sequence[Backend]
    """All of them that run on this node and may be chosen by anyone: those may meet themselves through the service."""
    sources: Sequence[Prefix]
    """Who may use the balancer's addresses; empty: everybody."""
    affinity_seconds: int
    consistent: bool


def views(service: ServiceRoute, node: str, zone: str) -> Iterator[View]:
    """The service's ports in each family that it has addresses of. Raises EngineError for an address that is none."""
    addresses = (*service.cluster_ips, *service.external_ips, *service.balancer_ips)
    lengths = {len(address) for address in addresses}
    for length in lengths.difference(LENGTHS):
        raise EngineError(f"service {service.id} has an address of {length} bytes; IPv4 has 4, IPv6 16")
    for length in lengths:
        cluster_ips, external_ips, balancer_ips = (
            [address for address in group if len(address) == length]
            for group in (service.cluster_ips, service.external_ips, service.balancer_ips)
        )
        sources = [source for source in service.source_ranges if len(source[0]) == length]
        if service.source_ranges and not sources:
            balancer_ips = []  # Ranges of the other family only: nobody of this one may use them.
        for port in service.ports:
            everyone, internal, outsiders, here = _backends(service, port, length, node, zone)
            yield View(
                length,
                port.protocol,
                port.port,
                port.node_port if cluster_ips else 0,
                cluster_ips,
                external_ips,
                balancer_ips,
                everyone,
                internal,
                outsiders,
                here,
                sources,
                service.affinity_seconds,
                service.consistent,
            )


def _backends(
    service: ServiceRoute, port: ServicePort, length: int, node: str, zone: str
) -> tuple[Sequence[Backend], Sequence[Backend], Sequence[Backend] | None, Sequence[Backend]]:
    """For everyone, for clients of cluster IPs, for outsiders, and those of this node."""
    ours = [backend for backend in port.backends if len(backend.address) == length]
    everyone = _near(_choose(ours), zone)
    here = _choose([backend for backend in ours if backend.node == node]) if node else []
    return everyone, here if service.internal_local else everyone, here if service.external_local else None, here


def _choose(backends: Collection[Backend]) -> list[Backend]:
    ready = [backend for backend in backends if _has(backend.flags, _READY)]
    return ready or [backend for backend in backends if _has(backend.flags, _DYING) == _DYING]


def _near(backends: list[Backend], zone: str) -> list[Backend]:
    """Those meant for the zone, where hints are complete and there is one for it; else all."""
    if not zone or not all(backend.zones for backend in backends):
        return backends
    return [backend for backend in backends if zone in backend.zones] or backends
