"""Routes as the socket programs see them: which keys a service has, and which endpoints stand behind each.

Pure data: nothing in here touches the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from math import gcd
from typing import Final, NamedTuple

from kernelet.ext import maglev
from kernelet.ext.bpf import ENDPOINT, SCOPE_ADDRESS, SCOPE_NODE_PORT, SERVICE_KEY

from ...routes import Backend, Protocol, ServiceRoute
from ..engine import EngineConfig, EngineError
from ..semantics import View, views

Key = bytes
"""A `struct service_key`."""
Pool = bytes
"""A `struct endpoint` a slot, one after another. A client meets each slot equally often, so heavier backends have more.

Equal backends make equal pools, whatever order they come in.
"""

_MAPPED: Final = bytes(10) + b"\xff\xff"
_LENGTHS: Final = {4: _MAPPED, 16: b""}
"""Length of an address -> what its mapped form begins with."""
_ANY: Final = {4: _MAPPED + bytes(4), 16: bytes(16)}
_AFTER: Final = b"\0\0"
_ALIKE: Final = {1}
MOST_SLOTS: Final = 1024
"""Of a pool whose backends differ in weight, unless it has more backends: shares are right to half a slot."""
_PRIMES: Final = (251, 1021, 4093, 16381)
"""Sizes of Maglev tables: the first with ten slots a backend, or per unit of weight, so that no backend's share is off
by more than a tenth; in the largest it is once there are more."""


class Target(NamedTuple):
    """What one key is wanted to lead to."""

    pool: Pool
    affinity: int
    """Seconds; 0: none."""
    consistent: bool = False
    """Whether a client's slot follows from who it is."""
    packets: bool = False
    """Whether it is left to packets, which show who the client is. It is claimed all the same."""


Plan = dict[Key, Target]


def size(pool: Pool) -> int:
    """How many endpoints."""
    return len(pool) // ENDPOINT.size


def endpoints(pool: Pool) -> Iterator[bytes]:
    """Those in a pool; one that has several slots comes as often."""
    for start in range(0, len(pool), ENDPOINT.size):
        yield pool[start : start + ENDPOINT.size]


def distinct(pool: Pool) -> set[bytes]:
    return set(endpoints(pool))


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
    everyone = _target(view.everyone, view)
    internal = everyone if view.internal is view.everyone else _target(view.internal, view)
    prefix = _LENGTHS[view.length]
    behind = view.port.to_bytes(2, "big") + bytes((view.protocol, SCOPE_ADDRESS))
    for address in view.cluster_ips:
        made[prefix + address + behind] = internal
    for address in view.external_ips:
        made[prefix + address + behind] = everyone
    for address in view.balancer_ips:
        made[prefix + address + behind] = everyone._replace(packets=bool(view.sources))
    if view.node_port:
        made[_ANY[view.length] + view.node_port.to_bytes(2, "big") + bytes((view.protocol, SCOPE_NODE_PORT))] = everyone


def _target(backends: Sequence[Backend], view: View) -> Target:
    prefix = _LENGTHS[view.length]
    found = [prefix + backend.address + backend.port.to_bytes(2, "big") + _AFTER for backend in backends]
    if not found or not (view.consistent or {backend.weight for backend in backends} != _ALIKE):
        return Target(b"".join(sorted(set(found))), view.affinity_seconds, view.consistent)
    weights = dict(zip(found, (backend.weight for backend in backends), strict=True))
    pool = _maglev(weights) if view.consistent else _weighted(weights)
    return Target(pool, view.affinity_seconds, view.consistent)


def _weighted(weights: Mapping[bytes, int]) -> Pool:
    """Endpoints repeated in proportion to their weights."""
    common = gcd(*weights.values())
    total, most = sum(weights.values()) // common, max(MOST_SLOTS, len(weights))
    scale = common if total <= most else sum(weights.values()) / most
    return b"".join(endpoint * max(1, round(weights[endpoint] / scale)) for endpoint in sorted(weights))


def _maglev(weights: Mapping[bytes, int]) -> Pool:
    names = sorted(weights)
    common = gcd(*weights.values())
    shares = [weights[name] // common for name in names]
    size = next((prime for prime in _PRIMES if prime >= 10 * sum(shares)), _PRIMES[-1])
    return b"".join([names[index] for index in maglev.table(names, shares, size)])


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
