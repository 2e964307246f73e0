"""Routes as nftables elements: which frontends a service has, which backends stand behind each, and in which slots.

Pure data: nothing in here touches the kernel.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter as Tally
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from math import gcd
from operator import attrgetter
from typing import NamedTuple

from kernelet.ext.nft import Batch, ElementError

from ...routes import Backend, Prefix, Protocol, ServiceRoute
from ..engine import EngineConfig, EngineError
from ..semantics import View, views
from .affinity import backend_ids
from .numbers import DROP, MOST_SLOTS, NONE, encode
from .ruleset import FAMILIES, HAIRPIN, KINDS, TABLE, Family, Kind
from .untracked import BACKEND_PORTS

Frontend = tuple[Kind, bytes]
"""What clients connect to: the kind, and its key as the kernel has it."""
Value = bytes | str | None
Place = tuple[Family, str]
"""A set or map."""
Elements = dict[Place, dict[bytes, Value]]
"""Keys and values by set or map."""

OWNERS = {(family, name): kind for family, made in KINDS.items() for kind in made for name in kind.sets}
"""The sets whose elements belong to one frontend each."""
RANGES = frozenset(kind.sources for made in KINDS.values() for kind in made if kind.addressed)
"""Names of the sets whose keys are ranges."""
MOST_WEIGHTED_SLOTS = 1024
"""A frontend whose backends' weights ask for more has coarser shares."""
BY_SOCKETS = (Protocol.TCP, Protocol.UDP)
"""Protocols whose sockets are translated when they connect, where there is a socket-level engine."""
_BY_LENGTH = {family.length: family for family in FAMILIES}
_PROTOCOLS = {protocol: bytes((protocol, 0, 0, 0)) for protocol in Protocol}
# The kernel's numgen result is a number in host byte order. Made once, since most of a cold start is making keys.
_SLOTS = [slot.to_bytes(4, sys.byteorder) for slot in range(256)]


class Target(NamedTuple):
    """What one frontend is wanted to do."""

    backends: Sequence[bytes]
    """As element data, address and port: each as often as it is to have a slot."""
    otherwise: bytes
    """What stands for the number where there are none: NONE or DROP."""
    seconds: int = 0
    """How long a client stays with its backend; 0: no affinity."""
    sources: tuple[bytes, ...] = ()
    """Who may use it, as ranges: the first address and the last; none overlap. Empty: everybody."""

    @property
    def number(self) -> int:
        """See numbers.py; 0 where there are no backends."""
        count = len(self.backends)
        return encode(count, self.seconds, guarded=bool(self.sources)) if count else 0


class Held(NamedTuple):
    """What the kernel holds for one frontend; slot i of `slots` is the element with index i."""

    slots: tuple[bytes, ...]
    number: bytes
    """See numbers.py, in host byte order; NONE or DROP."""
    seconds: int = 0
    sources: tuple[bytes, ...] = ()


@dataclass(slots=True)
class Plan:
    """All that one service wants."""

    frontends: dict[Frontend, Target] = field(default_factory=dict)
    local: set[tuple[Family, bytes]] = field(default_factory=set)
    """Addresses of its backends on this node: what may meet itself through the service."""
    ports: set[tuple[Family, bytes]] = field(default_factory=set)
    """Where its backends listen, as elements of `backend_ports`: what packets between pods are tracked for."""


class _Ports(dict[int, bytes]):
    """Ports as elements have them, each made once: a cold start asks for one per backend."""

    def __missing__(self, port: int) -> bytes:
        made = self[port] = port.to_bytes(2, "big") + b"\0\0"
        return made


_PORTS = _Ports()
_port, _weight = attrgetter("port"), attrgetter("weight")


def port_key(protocol: Protocol, port: int) -> bytes:
    return _PROTOCOLS[protocol] + _PORTS[port]


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
    except ValueError as error:
        raise EngineError(f"service {service.id}: {error}") from error
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
    everyone = internal = Target(slots(view.everyone), NONE, view.affinity_seconds)
    if view.internal is not view.everyone:
        internal = Target(slots(view.internal), NONE, view.affinity_seconds)
    _plan_external(made, services, nodeports, view, everyone)
    if view.outsiders is not None:
        outside = Target(slots(view.outsiders), DROP if view.everyone else NONE, view.affinity_seconds)
        _plan_external(made, local_services, local_nodeports, view, outside)
    for address in view.cluster_ips:
        made.frontends[services, address + ports] = internal
    if not made.frontends:
        return
    made.local.update((family, backend.address) for backend in view.here)
    groups = {id(group): group for group in (view.everyone, view.internal, view.outsiders or ())}
    for port in {port for group in groups.values() for port in map(_port, group)}:
        made.ports.add((family, port_key(view.protocol, port)))


def _plan_external(made: Plan, services: Kind, nodeports: Kind, view: View, target: Target) -> None:
    """Where clients come from outside: external and balancer addresses, and the node port."""
    ports = port_key(view.protocol, view.port)
    guarded = target
    if view.sources and target.backends:
        guarded = target._replace(sources=ranges(view.sources))
    for address in view.balancer_ips:
        made.frontends[services, address + ports] = guarded
    for address in view.external_ips:
        made.frontends[services, address + ports] = target
    if view.node_port:
        made.frontends[nodeports, port_key(view.protocol, view.node_port)] = target


def slots(backends: Collection[Backend]) -> Sequence[bytes]:
    """Each backend as element data, as often as its weight among the others' asks for. Raises ValueError."""
    data = [backend.address + _PORTS[backend.port] for backend in backends]
    weights = [*map(_weight, backends)]
    if weights.count(1) == len(weights):
        found: Sequence[bytes] = tuple(dict.fromkeys(data))
    else:
        found = _weighted(dict(zip(data, weights, strict=True)))
    if len(found) > MOST_SLOTS:
        raise ValueError(f"a port has {len(found)} backends and can have {MOST_SLOTS}; use several services")
    return found


def _weighted(weights: dict[bytes, int]) -> list[bytes]:
    divisor = gcd(*weights.values())
    total = sum(weights.values()) // divisor
    if total > MOST_WEIGHTED_SLOTS:
        shares = {data: max(1, weight * MOST_WEIGHTED_SLOTS // (total * divisor)) for data, weight in weights.items()}
    else:
        shares = {data: weight // divisor for data, weight in weights.items()}
    return [data for data, share in shares.items() for _ in range(share)]


def ranges(prefixes: Collection[Prefix]) -> tuple[bytes, ...]:
    """The first and the last address of each network; one within another is left out, as ranges must not overlap."""
    kept: dict[tuple[int, int], bytes] = {}
    for address, bits in sorted(prefixes, key=_bits):
        width = len(address) * 8
        number = int.from_bytes(address, "big")
        if any((number >> width - shorter, shorter) in kept for shorter in range(bits + 1)):
            continue
        rest = (1 << width - bits) - 1
        edges = (number & ~rest, number | rest)
        kept[number >> width - bits, bits] = b"".join(edge.to_bytes(len(address), "big") for edge in edges)
    return tuple(kept.values())


def _bits(prefix: Prefix) -> int:
    return prefix[1]


def place(old: Sequence[bytes], wanted: Sequence[bytes]) -> tuple[bytes, ...]:
    """Dense slots 0..n-1 for `wanted`: whoever may keeps its slots, and gaps are filled with the rest.

    So an added backend is one new slot, and a removed one's slot is taken over by the last.
    """
    if not old:
        return tuple(wanted)
    if sorted(old) == sorted(wanted):
        return tuple(old)
    made: list[bytes | None] = [None] * len(wanted)
    rest = Tally(wanted)
    for index, data in enumerate(old[: len(made)]):
        if rest[data]:
            made[index] = data
            rest[data] -= 1
    fill = rest.elements()
    return tuple(next(fill) if data is None else data for data in made)


def hold(target: Target, old: Sequence[bytes]) -> Held:
    """What is to be held for a target, given what is held now."""
    placed = place(old, target.backends)
    if not placed:
        return Held(placed, target.otherwise)
    return Held(placed, target.number.to_bytes(4, sys.byteorder), target.seconds, target.sources)


def slot_key(key: bytes, slot: int) -> bytes:
    return key + (_SLOTS[slot] if slot < len(_SLOTS) else slot.to_bytes(4, sys.byteorder))


def slot_suffixes() -> Iterator[bytes]:
    """What the keys of slots 0, 1, 2 and so on end with."""
    return itertools.chain(_SLOTS, (slot.to_bytes(4, sys.byteorder) for slot in itertools.count(len(_SLOTS))))


def elements(frontend: Frontend, held: Held) -> Iterator[tuple[Place, bytes, Value]]:
    """Every element of a frontend."""
    kind, key = frontend
    yield (kind.family, kind.frontends), key, held.number
    if kind.traffic:
        yield (kind.family, kind.traffic), key, None
    for slot, data in enumerate(held.slots):
        yield (kind.family, kind.backends), slot_key(key, slot), data
    yield from special_elements(frontend, held)


def special_elements(frontend: Frontend, held: Held) -> Iterator[tuple[Place, bytes, Value]]:
    """Those of affinity and of sources, which most frontends have none of."""
    kind, key = frontend
    if held.seconds:
        ids = backend_ids(held.slots)
        for slot, data in enumerate(held.slots):
            yield (kind.family, kind.ids), slot_key(key, slot), ids[data]
        for data, number in ids.items():
            yield (kind.family, kind.backends), key + number, data
    for source in held.sources:
        size = kind.family.length
        yield (kind.family, kind.sources), key + source[:size] + key + source[size:], None


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
            made.delete_elements(TABLE, family.number, name, keys, ranges=name in RANGES)
        for (family, name), items in self._added.items():
            made.add_elements(TABLE, family.number, name, items, ranges=name in RANGES)
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
    left_out: dict[Place, set[bytes]] = {}
    for kind, key in frontends:
        for name in kind.sets:
            left_out.setdefault((kind.family, name), set()).add(key)
    found = dict(found)
    for where, keys in left_out.items():
        size = OWNERS[where].size
        found[where] = {key: value for key, value in found.get(where, {}).items() if key[:size] not in keys}
    return found


def frontend_of(failure: ElementError) -> Frontend | None:
    """The frontend that an element belongs to; None for one that belongs to several, or to none."""
    kind = next((kind for (family, name), kind in OWNERS.items() if _is(failure, family, name)), None)
    return (kind, failure.key[: kind.size]) if kind and failure.key is not None else None


def _is(failure: ElementError, family: Family, name: str) -> bool:
    return (family.number, name) == (failure.family, failure.set_name)


def readable(frontend: Frontend) -> str:
    """`10.96.0.1 . tcp . 80`"""
    kind, key = frontend
    length = kind.family.length if kind.addressed else 0
    rest = key[length:]
    port = f"{Protocol(rest[0]).name.lower()} . {int.from_bytes(rest[4:6], 'big')}"
    return f"{ip_address(key[:length])} . {port}" if length else port
