"""What the ebpf engine believes the kernel holds, and what follows from a change.

Changes are worked out on the side (`Transition`) and taken over only after the kernel has accepted them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from .plan import Key, Plan, Pool, Target, distinct, size

_LAST_SET = (1 << 32) - 1


class Held(NamedTuple):
    """What the kernel holds for one key."""

    target: Target
    set: int
    """Number of the set that holds the target's pool; 0 for an empty one."""
    counter: int
    """The key's place in the map counters."""


BROKEN = Held(Target(b"", -1), 0, -1)
"""Stands for a key whose set is not whole: it differs from everything that could be wanted, and is counted nowhere."""


class Set(NamedTuple):
    """Endpoints that are, or are to be, in the maps under a number."""

    number: int
    pool: Pool
    members: bool
    """Whether they are listed in `members` too."""


@dataclass(slots=True)
class Transition:
    """Consequences of a change, not yet taken over."""

    held: dict[Key, Held | None] = field(default_factory=dict)
    """Every key that changes -> what is to be held for it; None: nothing."""
    new_sets: list[Set] = field(default_factory=list)
    old_sets: list[Set] = field(default_factory=list)
    claims: dict[Key, tuple[str, ...]] = field(default_factory=dict)
    old_counters: list[int] = field(default_factory=list)
    fresh_counters: int = 0
    """How many places in the map counters come into use."""
    stray_backends: list[bytes] = field(default_factory=list)
    """Keys in the maps backends and members of sets that nothing leads to."""
    stray_members: list[bytes] = field(default_factory=list)
    stray_counters: list[int] = field(default_factory=list)
    """Places where something was counted for a key that is gone."""

    def __bool__(self) -> bool:
        """Whether the kernel has to be written to."""
        return bool(self.held or self.stray_backends or self.stray_members or self.stray_counters)


class Ledger:
    """Keys in the kernel.

    Two services may claim the same key (an external IP, say). The one whose id sorts first gets it, whatever the order
    of events, so that every node decides alike; when it gives the key up, the next one gets it.
    """

    def __init__(self) -> None:
        self.held: dict[Key, Held] = {}
        self._claims: dict[Key, tuple[str, ...]] = {}
        self._users: dict[int, int] = {}
        self._last_set = 0
        self._backends = self._members = 0
        self._free_counters: list[int] = []
        self._counters = 0
        """Places from here on have never been used."""

    def owners(self) -> dict[int, str]:
        """Place in the map counters -> the service that is counted there."""
        return {item.counter: self._claims[key][0] for key, item in self.held.items() if key in self._claims}

    def adopt(self, held: Mapping[Key, Held], numbers: Iterable[int]) -> None:
        """Takes over what was read from the kernel, where `numbers` are those of all sets, used or not."""
        self.held = dict(held)
        self._users = {}
        self._backends = self._members = 0
        seen: set[int] = set()
        for item in held.values():
            self._users[item.set] = self._users.get(item.set, 0) + 1
            if item.set and item.set not in seen:
                seen.add(item.set)
                self._tally(_set_of(item), 1)
        self._last_set = max(numbers, default=self._last_set)
        used = {item.counter for item in held.values()}
        self._counters = max(used, default=-1) + 1
        self._free_counters = [place for place in range(self._counters) if place not in used]

    def change(self, old: Mapping[str, Plan], new: Mapping[str, Plan], plan_of: Callable[[str], Plan]) -> Transition:
        """What follows when services go from `old` to `new` plans; `plan_of` gives the plans of all other services."""
        leaving, joining = _by_key(old), _by_key(new)
        claims: dict[Key, tuple[str, ...]] = {}
        targets: dict[Key, Target | None] = {}
        for key in leaving.keys() | joining.keys():
            names = set(self._claims.get(key, ())).difference(leaving.get(key, ())).union(joining.get(key, ()))
            claims[key] = tuple(sorted(names))
            owner = min(names, default=None)
            targets[key] = None if owner is None else (new[owner] if owner in new else plan_of(owner))[key]
        made = self._transition(targets)
        made.claims = claims
        return made

    def replace(self, plans: Mapping[str, Plan]) -> Transition:
        """What follows when the plans are to be all there is."""
        claims: dict[Key, tuple[str, ...]] = {}
        targets: dict[Key, Target | None] = dict.fromkeys(self.held)
        for name in sorted(plans):
            for key, target in plans[name].items():
                if key in claims:
                    claims[key] += (name,)
                else:
                    claims[key] = (name,)
                    targets[key] = target
        made = self._transition(targets)
        made.claims = {key: () for key in self._claims if key not in claims} | claims
        return made

    def _transition(self, targets: Mapping[Key, Target | None]) -> Transition:
        made = Transition()
        numbers: dict[Target, int] = {}
        users: dict[int, int] = {}
        for key, target in targets.items():
            before = self.held.get(key)
            if before is None and target is None:
                continue
            if before is not None and before.target == target:
                continue
            if before is not None and before.set:
                users[before.set] = users.get(before.set, self._users[before.set]) - 1
                if not users[before.set]:
                    made.old_sets.append(_set_of(before))
            if target is None:
                made.held[key] = None
                if before is not None and before is not BROKEN:
                    made.old_counters.append(before.counter)
                continue
            number = numbers.get(target, 0)
            if target.pool and not number:
                number = numbers[target] = self._new_set()
                made.new_sets.append(Set(number, target.pool, bool(target.affinity)))
            if before is None or before is BROKEN:
                made.held[key] = Held(target, number, self._counter(made.fresh_counters))
                made.fresh_counters += 1
            else:
                made.held[key] = Held(target, number, before.counter)
        return made

    def _counter(self, taken: int) -> int:
        """A place that is not in use, where so many more are taken already."""
        free = len(self._free_counters)
        return self._free_counters[-1 - taken] if taken < free else self._counters + taken - free

    def accept(self, transition: Transition) -> None:
        """The kernel holds the transition's outcome."""
        for key, held in transition.held.items():
            before = self.held.pop(key, None)
            if before is not None:
                self._users[before.set] -= 1
                if not self._users[before.set]:
                    del self._users[before.set]
            if held is not None:
                self.held[key] = held
                self._users[held.set] = self._users.get(held.set, 0) + 1
        for key, claims in transition.claims.items():
            if claims:
                self._claims[key] = claims
            else:
                self._claims.pop(key, None)
        for item in transition.new_sets:
            self._tally(item, 1)
        for item in transition.old_sets:
            self._tally(item, -1)
        reused = min(transition.fresh_counters, len(self._free_counters))
        del self._free_counters[len(self._free_counters) - reused :]
        self._counters += transition.fresh_counters - reused
        self._free_counters += transition.old_counters

    def room(self, transition: Transition) -> dict[str, int]:
        """Elements of each map while a transition is written: what comes is there before what goes is deleted."""
        services = sum(1 for key in transition.held if key not in self.held)
        backends = sum(size(item.pool) for item in transition.new_sets)
        members = sum(len(distinct(item.pool)) for item in transition.new_sets if item.members)
        return {
            "services": len(self.held) + services,
            "backends": self._backends + backends + len(transition.stray_backends),
            "members": self._members + members + len(transition.stray_members),
            "counters": self._counters + max(0, transition.fresh_counters - len(self._free_counters)),
        }

    def _tally(self, item: Set, sign: int) -> None:
        self._backends += sign * size(item.pool)
        if item.members:
            self._members += sign * len(distinct(item.pool))

    def _new_set(self) -> int:
        """A number that is not in use; none is used again before four billion others were."""
        while True:
            self._last_set = self._last_set % _LAST_SET + 1
            if self._last_set not in self._users:
                return self._last_set


def _set_of(held: Held) -> Set:
    return Set(held.set, held.target.pool, bool(held.target.affinity))


def _by_key(plans: Mapping[str, Plan]) -> dict[Key, list[str]]:
    found: dict[Key, list[str]] = {}
    for name, plan in plans.items():
        for key in plan:
            found.setdefault(key, []).append(name)
    return found
