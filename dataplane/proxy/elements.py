"""Routes as nftables elements: which frontends a service has, which backends stand behind each, and in which slots.

Pure data: nothing in here touches the kernel.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import NamedTuple

from kernelet.ext.nft import Batch, ElementError

from ..routes import Backend, Protocol, ServiceRoute
from .engine import EngineConfig, EngineError
from .ruleset import BACKENDS, DROP, FAMILIES, HAIRPIN, KINDS, NONE, SERVICES, TABLE, TRAFFIC, Family, Kind
from .semantics import View, views
from .untracked import BACKEND_PORTS

Frontend = tuple[Kind, bytes]
"""What clients connect to: the kind, and its key as the kernel has it."""
Value = bytes | str | None
Place = tuple[Family, str]
"""A set or map."""
Elements = dict[Place, dict[bytes, Value]]
"""Keys and values by set or map."""

BY_SOCKETS = (Protocol.TCP, Protocol.UDP)
"""Protocols whose sockets are translated when they connect, where there is a socket-level engine."""
_BY_LENGTH = {family.length: family for family in FAMILIES}
_PROTOCOLS = {protocol: bytes((protocol, 0, 0, 0)) for protocol in Protocol}
# The kernel's numgen result is a number in host byte order. Made once, since most of a cold start is making keys.
_SLOTS = [slot.to_bytes(4, sys.byteorder) for slot in range(256)]


class Target(NamedTuple):
    """What one frontend is wanted to do."""

    backends: Collection[bytes]
    """Distinct, as element data: address and port."""
    otherwise: bytes
    """What stands for the number of backends where there are none: NONE or DROP."""


class Held(NamedTuple):
    """What the kernel holds for one frontend; slot i of `slots` is the element with index i."""

    slots: tuple[bytes, ...]
    number: bytes
    """How many, in host byte order; NONE or DROP."""


@dataclass(slots=True)
class Plan:
    """All that one service wants."""

    frontends: dict[Frontend, Target] = field(default_factory=dict)
    local: set[tuple[Family, bytes]] = field(default_factory=set)
    """Addresses of its backends on this node: what may meet itself through the service."""
    ports: set[tuple[Family, bytes]] = field(default_factory=set)
    """Where its backends listen, as elements of `backend_ports`: what packets between pods are tracked for."""


def port_key(protocol: Protocol, port: int) -> bytes:
    return _PROTOCOLS[protocol] + port.to_bytes(2, "big") + b"\0\0"


def backend_data(backend: Backend) -> bytes:
    return backend.address + backend.port.to_bytes(2, "big") + b"\0\0"


def plan(
    service: ServiceRoute,
    config: EngineConfig,
    families: Collection[Family],
    zone: str,
    *,
    beside_sockets: bool = False,
) -> Plan:
    """Frontends and backends of a service on this node. Raises EngineError for an address or port that is none.

    `beside_sockets`: cluster IPs are left out but for SCTP, and so are the ports, see untracked.py.
    """
    made = Plan()
    if beside_sockets and not _needs_packets(service):
        return made
    try:
        for view in views(service, config.node, zone):
            family = _BY_LENGTH[view.length]
            if family in families:
                _plan_view(made, family, _beside_sockets(view) if beside_sockets else view)
    except (OverflowError, KeyError) as error:
        raise EngineError(f"service {service.id} has a port or protocol that does not exist: {error}") from error
    if beside_sockets:
        made.ports.clear()
    return made


def _needs_packets(service: ServiceRoute) -> bool:
    """Whether a service has more than sockets can be translated for."""
    return bool(service.external_ips or service.balancer_ips) or any(
        port.node_port or port.protocol not in BY_SOCKETS for port in service.ports
    )


def _beside_sockets(view: View) -> View:
    """What is left for packets where sockets of cluster IPs' clients are translated."""
    return view._replace(cluster_ips=()) if view.protocol in BY_SOCKETS else view


def _plan_view(made: Plan, family: Family, view: View) -> None:
    services, nodeports, local_services, local_nodeports = KINDS[family]
    ports = port_key(view.protocol, view.port)
    node_ports = port_key(view.protocol, view.node_port)
    everyone = internal = outside = Target(dict.fromkeys(map(backend_data, view.everyone)), NONE)
    if view.internal is not view.everyone:
        internal = Target(dict.fromkeys(map(backend_data, view.internal)), NONE)
    external = (*view.external_ips, *view.balancer_ips)
    for address in view.cluster_ips:
        made.frontends[services, address + ports] = internal
    for address in external:
        made.frontends[services, address + ports] = everyone
    if view.node_port:
        made.frontends[nodeports, node_ports] = everyone
    if view.outsiders is not None:
        outside = Target(dict.fromkeys(map(backend_data, view.outsiders)), DROP if view.everyone else NONE)
        for address in external:
            made.frontends[local_services, address + ports] = outside
        if view.node_port:
            made.frontends[local_nodeports, node_ports] = outside
    if view.cluster_ips or external or view.node_port:
        made.local.update((family, backend.address) for backend in view.here)
        head = _PROTOCOLS[view.protocol]
        for target in {id(target): target for target in (everyone, internal, outside)}.values():
            made.ports.update((family, head + data[-4:]) for data in target.backends)


def place(old: Sequence[bytes | None], wanted: Collection[bytes]) -> tuple[bytes, ...]:
    """Dense slots 0..n-1 for `wanted`: whoever may keeps its slot, and gaps are filled with the rest.

    So an added backend is one new slot, and a removed one's slot is taken over by the last.
    """
    if not old:
        return tuple(wanted)
    slots: list[bytes | None] = [None] * len(wanted)
    rest = dict.fromkeys(wanted)
    for index, data in enumerate(old[: len(slots)]):
        if data is not None and data in rest:
            slots[index] = data
            del rest[data]
    fill = iter(rest)
    return tuple(next(fill) if data is None else data for data in slots)


def hold(target: Target, old: Sequence[bytes | None]) -> Held:
    """What is to be held for a target, given what is held now."""
    slots = place(old, target.backends)
    return Held(slots, len(slots).to_bytes(4, sys.byteorder) if slots else target.otherwise)


def slot_key(key: bytes, slot: int) -> bytes:
    return key + (_SLOTS[slot] if slot < len(_SLOTS) else slot.to_bytes(4, sys.byteorder))


def elements(frontend: Frontend, held: Held) -> Iterator[tuple[Place, bytes, Value]]:
    """Every element of a frontend."""
    kind, key = frontend
    yield (kind.family, kind.frontends), key, held.number
    if kind.frontends == SERVICES:
        yield (kind.family, TRAFFIC), key, None
    for slot, data in enumerate(held.slots):
        yield (kind.family, kind.backends), slot_key(key, slot), data


class Edits:
    """Element changes that make one transaction."""

    def __init__(self) -> None:
        self._deleted: dict[Place, list[bytes]] = {}
        self._added: dict[Place, list[tuple[bytes, Value]]] = {}

    def __len__(self) -> int:
        """Element operations; a changed value is two, since the kernel has no update."""
        return sum(map(len, self._deleted.values())) + sum(map(len, self._added.values()))

    def delete(self, place_: Place, key: bytes) -> None:
        self._deleted.setdefault(place_, []).append(key)

    def add(self, place_: Place, key: bytes, value: Value) -> None:
        self._added.setdefault(place_, []).append((key, value))

    def change(self, place_: Place, deleted: list[bytes], added: list[tuple[bytes, Value]]) -> None:
        """Many at once."""
        if deleted:
            self._deleted.setdefault(place_, []).extend(deleted)
        if added:
            self._added.setdefault(place_, []).extend(added)

    def move(self, frontend: Frontend, old: Held | None, new: Held | None) -> None:
        """From what is held to what is wanted, writing only what differs."""
        if old == new:
            return
        before = {(where, key): value for where, key, value in elements(frontend, old)} if old else {}
        after = {(where, key): value for where, key, value in elements(frontend, new)} if new else {}
        for (where, key), value in before.items():
            if (where, key) not in after or after[where, key] != value:
                self.delete(where, key)
        for (where, key), value in after.items():
            if (where, key) not in before or before[where, key] != value:
                self.add(where, key, value)

    def hairpin(self, family: Family, address: bytes, *, present: bool) -> None:
        """A local backend appears or disappears."""
        if present:
            self.add((family, HAIRPIN), address + address, None)
        else:
            self.delete((family, HAIRPIN), address + address)

    def port(self, family: Family, key: bytes) -> None:
        """Backends listen on a port that none did before."""
        self.add((family, BACKEND_PORTS), key, None)

    def batch(self, generation: int = 0) -> Batch:
        """Deletions come first: an element that is replaced must be gone before the new one is added."""
        made = Batch(generation)
        for (family, name), keys in self._deleted.items():
            made.delete_elements(TABLE, family.number, name, keys)
        for (family, name), items in self._added.items():
            made.add_elements(TABLE, family.number, name, items)
        return made


def differences(kernel: Elements, wanted: Elements) -> tuple[Edits, int]:
    """The edits from one to the other, and how many elements differ."""
    edits = Edits()
    count = 0
    nothing: dict[bytes, Value] = {}
    for where in kernel.keys() | wanted.keys():
        held, target = kernel.get(where, nothing), wanted.get(where, nothing)
        if held == target:
            continue
        if not held:
            edits.change(where, [], list(target.items()))
            count += len(target)
            continue
        changed = [key for key, value in held.items() if key in target and target[key] != value]
        gone = [key for key in held if key not in target]
        new = [item for item in target.items() if item[0] not in held]
        edits.change(where, gone + changed, new + [(key, target[key]) for key in changed])
        count += len(changed) + len(gone) + len(new)
    return edits, count


def without(found: Elements, frontends: Collection[Frontend]) -> Elements:
    """The elements that belong to none of these frontends."""
    if not frontends:
        return found
    keys: dict[Place, set[bytes]] = {}
    for kind, key in frontends:
        for name in (kind.frontends, kind.backends, TRAFFIC):
            if name != TRAFFIC or kind.frontends == SERVICES:
                keys.setdefault((kind.family, name), set()).add(key)
    return {
        where: {
            key: value
            for key, value in items.items()
            if (key[:-4] if where[1].endswith(BACKENDS) else key) not in keys.get(where, ())
        }
        for where, items in found.items()
    }


def frontend_of(failure: ElementError) -> Frontend | None:
    """The frontend that an element belongs to; None for one that belongs to several, or to none."""
    if failure.key is None:
        return None
    for kind in (kind for made in KINDS.values() for kind in made if kind.family.number == failure.family):
        if failure.set_name == kind.frontends or (failure.set_name == TRAFFIC and kind.frontends == SERVICES):
            return kind, failure.key
        if failure.set_name == kind.backends:
            return kind, failure.key[:-4]
    return None


def readable(frontend: Frontend) -> str:
    """`10.96.0.1 . tcp . 80`"""
    kind, key = frontend
    length = kind.family.length if kind.addressed else 0
    rest = key[length:]
    port = f"{Protocol(rest[0]).name.lower()} . {int.from_bytes(rest[4:6], 'big')}"
    return f"{ip_address(key[:length])} . {port}" if length else port
