"""Routes as the socket programs see them: which keys a service has, and which endpoints stand behind each.

Pure data: nothing in here touches the kernel.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from ipaddress import ip_address
from typing import Final, NamedTuple

from kernelet.ext.bpf import ENDPOINT, SCOPE_ADDRESS, SCOPE_NODE_PORT, SERVICE_KEY

from ..routes import Backend, Protocol, ServiceRoute
from .engine import EngineConfig, EngineError
from .semantics import View, views

Key = bytes
"""A `struct service_key`."""
Pool = bytes
"""Distinct `struct endpoint`s in ascending order, one after another: equal pools are equal bytes."""

_MAPPED: Final = bytes(10) + b"\xff\xff"
_LENGTHS: Final = {4: _MAPPED, 16: b""}
"""Length of an address -> what its mapped form begins with."""
_ANY: Final = {4: _MAPPED + bytes(4), 16: bytes(16)}
_AFTER: Final = b"\0\0"


class Target(NamedTuple):
    """What one key is wanted to lead to."""

    pool: Pool
    affinity: int
    """Seconds; 0: none."""


Plan = dict[Key, Target]


def size(pool: Pool) -> int:
    """How many endpoints."""
    return len(pool) // ENDPOINT.size


def endpoints(pool: Pool) -> Iterator[bytes]:
    for start in range(0, len(pool), ENDPOINT.size):
        yield pool[start : start + ENDPOINT.size]


def plan(service: ServiceRoute, config: EngineConfig, zone: str) -> Plan:
    """Keys and endpoints of a service on this node. Raises EngineError for an address or port that is none."""
    made: Plan = {}
    try:
        for view in views(service, config.node, zone):
            _plan_view(made, view)
    except (OverflowError, ValueError) as error:
        raise EngineError(f"service {service.id} has a port or protocol that does not exist: {error}") from error
    return made


def _plan_view(made: Plan, view: View) -> None:
    prefix = _LENGTHS[view.length]
    everyone = Target(_pool(view.everyone, prefix), view.affinity_seconds)
    internal = everyone
    if view.internal is not view.everyone:
        internal = Target(_pool(view.internal, prefix), view.affinity_seconds)
    behind = view.port.to_bytes(2, "big") + bytes((view.protocol, SCOPE_ADDRESS))
    for address in view.cluster_ips:
        made[prefix + address + behind] = internal
    for address in (*view.external_ips, *view.balancer_ips):
        made[prefix + address + behind] = everyone
    if view.node_port:
        made[_ANY[view.length] + view.node_port.to_bytes(2, "big") + bytes((view.protocol, SCOPE_NODE_PORT))] = everyone


def _pool(backends: Collection[Backend], prefix: bytes) -> Pool:
    found = [prefix + backend.address + backend.port.to_bytes(2, "big") + _AFTER for backend in backends]
    if len(found) > 1:
        found = sorted(set(found))
    return b"".join(found)


def route(key: Key, endpoint: bytes) -> tuple[bytes, int, int, bytes, int]:
    """As `Engine.restore` gives it: (service address, protocol, port, backend address, backend port)."""
    address, port, protocol, _ = SERVICE_KEY.unpack(key)
    backend, backend_port, _ = ENDPOINT.unpack(endpoint)
    return (
        _native(address),
        int(protocol),
        int.from_bytes(port, "big"),
        _native(backend),
        int.from_bytes(backend_port, "big"),
    )


def is_address(key: Key) -> bool:
    """Whether the key is a service's address rather than a node port."""
    return key[-1] == SCOPE_ADDRESS


def readable(key: Key) -> str:
    """`10.96.0.1 . tcp . 80`"""
    address, port, protocol, scope = SERVICE_KEY.unpack(key)
    where = "node port" if scope == SCOPE_NODE_PORT else str(ip_address(_native(address)))
    name = Protocol(protocol).name.lower() if protocol in tuple(Protocol) else str(protocol)
    return f"{where} . {name} . {int.from_bytes(port, 'big')}"


def _native(address: bytes) -> bytes:
    return address[12:] if address.startswith(_MAPPED) else address
