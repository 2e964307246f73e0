"""Routes as the socket programs see them: which keys a service has, and which endpoints stand behind each.

Pure data: nothing in here touches the kernel.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from ipaddress import ip_address
from typing import Final, NamedTuple

from kernelet.ext.bpf import ENDPOINT, SCOPE_ADDRESS, SCOPE_NODE_PORT, SERVICE_KEY

from ..routes import Backend, Protocol, ServicePort, ServiceRoute
from .elements import choose
from .engine import EngineConfig, EngineError

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


def plan(service: ServiceRoute, config: EngineConfig) -> Plan:
    """Keys and endpoints of a service on this node. Raises EngineError for an address or port that is none."""
    made: Plan = {}
    lengths = {len(address) for address in (*service.cluster_ips, *service.external_ips)}
    for length in lengths.difference(_LENGTHS):
        raise EngineError(f"service {service.id} has an address of {length} bytes; IPv4 has 4, IPv6 16")
    try:
        for port in service.ports:
            for length in lengths:
                _plan_port(made, service, port, length, config.node)
    except (OverflowError, ValueError) as error:
        raise EngineError(f"service {service.id} has a port or protocol that does not exist: {error}") from error
    return made


def _plan_port(made: Plan, service: ServiceRoute, port: ServicePort, length: int, node: str) -> None:
    cluster_ips = [address for address in service.cluster_ips if len(address) == length]
    external_ips = [address for address in service.external_ips if len(address) == length]
    prefix = _LENGTHS[length]
    ours = [backend for backend in port.backends if len(backend.address) == length]
    every = Target(_pool(choose(ours), prefix), service.affinity_seconds)
    internal = every
    if service.internal_local:
        here = choose([backend for backend in ours if node and backend.node == node])
        internal = Target(_pool(here, prefix), service.affinity_seconds)
    behind = port.port.to_bytes(2, "big") + bytes((port.protocol, SCOPE_ADDRESS))
    for address in cluster_ips:
        made[prefix + address + behind] = internal
    for address in external_ips:
        made[prefix + address + behind] = every
    if port.node_port and cluster_ips:
        made[_ANY[length] + port.node_port.to_bytes(2, "big") + bytes((port.protocol, SCOPE_NODE_PORT))] = every


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
