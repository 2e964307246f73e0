"""The route maps of the socket programs: reading them whole, and writing a transition.

The order of writes is what makes a change atomic. New sets are written first, where nothing leads to them yet. Then one
system call writes all keys that change, those to be removed included, which are marked as gone: a signal, kill -9
included, does not interrupt it, so a crash leaves the old version or the new. A lookup that comes while it runs finds
each service either as it was or as it will be. Last, what nothing leads to any more is deleted; what a crash leaves
behind here is found and deleted by the next comparison.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from kernelet.ext.bpf import BACKEND_KEY, COUNTER, ENDPOINT, FLAG_CONSISTENT, FLAG_GONE, FLAG_PACKETS, SERVICE
from kernelet.ext.libbpf import BpfError, Map

from .ledger import BROKEN, Held, Set, Transition
from .plan import Key, Target, distinct, size

SERVICES, BACKENDS, MEMBERS, COUNTERS = "services", "backends", "members", "counters"
_GONE: Final = SERVICE.pack(0, 0, 0, FLAG_GONE, 0, 0)
_PRESENT: Final = b"\1\0\0\0"
_RANGES: dict[int, array[int]] = {}
"""Slots 0..n-1 by n: most services have one of a few numbers of backends."""


@dataclass(slots=True)
class Image:
    """The route maps, read."""

    held: dict[Key, Held] = field(default_factory=dict)
    numbers: set[int] = field(default_factory=set)
    """Of all sets, whether something leads to them or not."""
    stray_backends: list[bytes] = field(default_factory=list)
    stray_members: list[bytes] = field(default_factory=list)
    stray_counters: list[int] = field(default_factory=list)


def read(maps: Mapping[str, Map]) -> Image:
    """Everything in the route maps. Raises BpfError."""
    made = Image()
    services = maps[SERVICES].items()
    sets = _read_sets(maps[BACKENDS])
    members = _read_members(maps[MEMBERS])
    made.numbers = sets.keys() | members.keys()
    used: set[int] = set()
    listed: set[int] = set()
    places: set[int] = set()
    whole: dict[tuple[int, int, int, int], Target | None] = {}
    for key, value in services:
        number, count, affinity, flags, counter, _ = SERVICE.unpack(value)
        made.numbers.add(number)
        kind = (number, count, affinity, flags)
        if kind not in whole:
            whole[kind] = _assemble(*kind, sets, members)
        target = whole[kind]
        if target is None or counter in places or counter >= maps[COUNTERS].info.max_entries:
            made.held[key] = BROKEN
            continue
        made.held[key] = Held(target, number, counter)
        places.add(counter)
        used.add(number)
        if affinity:
            listed.add(number)
    for number, slots in sets.items():
        if number not in used:
            made.stray_backends.extend(BACKEND_KEY.pack(number, slot) for slot in slots)
    for number, found in members.items():
        if number not in listed:
            made.stray_members.extend(number.to_bytes(4, sys.byteorder) + item for item in found)
    made.stray_counters = [place for place, _, _ in counted(maps[COUNTERS]) if place not in places]
    return made


def counted(counters: Map) -> Iterator[tuple[int, int, int]]:
    """(place, connections, refusals) where there are any. Raises BpfError."""
    _, keys, values = counters.read()
    stride = counters.info.stride
    nothing = bytes(stride)
    for index, place in enumerate(array("I", keys)):
        value = values[index * stride : (index + 1) * stride]
        if value != nothing:
            each = tuple(COUNTER.iter_unpack(value))
            yield place, sum(row[0] for row in each), sum(row[1] for row in each)


def _read_sets(backends: Map) -> dict[int, dict[int, bytes]]:
    """Set -> slot -> endpoint."""
    found: dict[int, dict[int, bytes]] = {}
    _, keys, values = backends.read()
    width = ENDPOINT.size
    start = 0
    for number, slot in BACKEND_KEY.iter_unpack(keys):
        slots = found.get(number)
        if slots is None:
            slots = found[number] = {}
        slots[slot] = values[start : start + width]
        start += width
    return found


def _read_members(members: Map) -> dict[int, set[bytes]]:
    found: dict[int, set[bytes]] = {}
    for key, _ in members.items():
        found.setdefault(int.from_bytes(key[:4], sys.byteorder), set()).add(key[4:])
    return found


def _assemble(
    number: int,
    count: int,
    affinity: int,
    flags: int,
    sets: Mapping[int, Mapping[int, bytes]],
    members: Mapping[int, set[bytes]],
) -> Target | None:
    """What a service's element leads to; None where it is marked as gone, or that is not whole."""
    consistent, packets = bool(flags & FLAG_CONSISTENT), bool(flags & FLAG_PACKETS)
    if flags & FLAG_GONE:
        return None
    if not count:
        return None if number else Target(b"", affinity, consistent, packets)
    slots = sets.get(number, {})
    try:
        pool = b"".join([slots[slot] for slot in range(count)])
    except KeyError:
        return None
    if len(slots) != count:
        return None
    if affinity and members.get(number) != distinct(pool):
        return None
    return Target(pool, affinity, consistent, packets)


def write_sets(maps: Mapping[str, Map], sets: Iterable[Set]) -> int:
    """Writes sets beside those in use; how many elements. Raises BpfError, and what was written may be there then."""
    items = list(sets)
    count = sum(size(item.pool) for item in items)
    maps[BACKENDS].update_many(count, _slot_keys(items), b"".join([item.pool for item in items]))
    keys = _member_keys(items)
    maps[MEMBERS].update_many(len(keys), b"".join(keys), _PRESENT * len(keys))
    return count + len(keys)


def delete_sets(maps: Mapping[str, Map], sets: Iterable[Set]) -> int:
    """Deletes sets that nothing leads to; how many elements. Raises BpfError."""
    items = list(sets)
    keys = _slot_keys(items)
    maps[BACKENDS].delete_many(len(keys) // BACKEND_KEY.size, keys)
    member_keys = _member_keys(items)
    maps[MEMBERS].delete_many(len(member_keys), b"".join(member_keys))
    return len(keys) // BACKEND_KEY.size + len(member_keys)


def flip(maps: Mapping[str, Map], transition: Transition, held: Mapping[Key, Held]) -> int:
    """Leads every key of the transition to its new set, in one system call; how many elements.

    Raises BpfError, and then leads them where `held` says, as before.
    """
    changes = transition.held
    values = [_GONE if item is None else _value(item) for item in changes.values()]
    try:
        maps[SERVICES].update_many(len(changes), b"".join(changes), b"".join(values))
    except BpfError:
        before = {key: _value(held[key]) for key in changes if key in held and held[key] is not BROKEN}
        maps[SERVICES].update_many(len(before), b"".join(before), b"".join(before.values()))
        added = [key for key in changes if key not in held]
        maps[SERVICES].delete_many(len(added), b"".join(added))
        raise
    return len(changes)


def sweep(maps: Mapping[str, Map], transition: Transition) -> int:
    """Deletes what a transition has left without use; how many elements. Raises BpfError."""
    gone = [key for key, item in transition.held.items() if item is None]
    if gone:
        maps[SERVICES].delete_many(len(gone), b"".join(gone))
    places = array("I", [*transition.old_counters, *transition.stray_counters])
    if places:
        counters = maps[COUNTERS]
        counters.update_many(len(places), places.tobytes(), bytes(len(places) * counters.info.stride))
    count = len(gone) + len(places)
    if transition.old_sets:
        count += delete_sets(maps, transition.old_sets)
    for name, keys in ((BACKENDS, transition.stray_backends), (MEMBERS, transition.stray_members)):
        if keys:
            maps[name].delete_many(len(keys), b"".join(keys))
            count += len(keys)
    return count


def _value(held: Held) -> bytes:
    target = held.target
    flags = (FLAG_CONSISTENT if target.consistent else 0) | (FLAG_PACKETS if target.packets else 0)
    return SERVICE.pack(held.set, size(target.pool), target.affinity, flags, held.counter, 0)


def _slot_keys(sets: Iterable[Set]) -> bytes:
    keys = array("I")
    for item in sets:
        count = size(item.pool)
        slots = _RANGES.get(count)
        if slots is None:
            slots = _RANGES[count] = array("I", range(count))
        pairs = array("I", bytes(count * BACKEND_KEY.size))
        pairs[0::2] = array("I", (item.number,)) * count
        pairs[1::2] = slots
        keys.extend(pairs)
    return keys.tobytes()


def _member_keys(sets: Iterable[Set]) -> list[bytes]:
    return [
        item.number.to_bytes(4, sys.byteorder) + endpoint
        for item in sets
        if item.members
        for endpoint in distinct(item.pool)
    ]
