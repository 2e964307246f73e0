"""The arithmetic of a rolling update. Pure functions over plain numbers.

Invariants, whatever the pods do meanwhile: the sum of all sets' wanted replicas never exceeds replicas + maxSurge by a
step taken here, and no step makes the available pods fewer than replicas - maxUnavailable. Source: Kubernetes'
deployment controller (rolling.go, deployment_util.go); where that trusts a set's possibly stale count of available
pods, this takes at most as many as the set still wants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class SetSize:
    """One replica set: `wanted` is spec.replicas, `available` what its status says, `limit` the replicas + maxSurge its
    deployment had when it was last sized (0: unknown)."""

    name: str
    wanted: int
    available: int
    limit: int = 0

    @property
    def surely_available(self) -> int:
        """A status may still count pods that the set no longer wants."""
        return min(self.wanted, self.available)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a deployment allows during an update; `surge` and `unavailable` are numbers of pods."""

    replicas: int
    surge: int
    unavailable: int

    @property
    def most(self) -> int:
        return self.replicas + self.surge

    @property
    def fewest(self) -> int:
        return max(self.replicas - self.unavailable, 0)


def resolve(value: int | str | None, total: int, *, up: bool) -> int:
    """A number of pods, or a percentage such as "25%" of `total`. Raises ValueError for other text."""
    if value is None:
        return 0
    if isinstance(value, int):
        return value
    if not value.endswith("%"):
        return int(value)
    share = int(value[:-1]) * total
    return -(-share // 100) if up else share // 100


def bounds(replicas: int, max_surge: int | str | None, max_unavailable: int | str | None) -> Bounds:
    """Surge is rounded up, unavailable down; were both zero nothing could ever move, so one may be unavailable."""
    surge = resolve(max_surge, replicas, up=True)
    unavailable = min(resolve(max_unavailable, replicas, up=False), replicas)
    if surge == 0 and unavailable == 0:
        unavailable = 1
    return Bounds(replicas, surge, unavailable)


def grow(new: SetSize, old: Sequence[SetSize], limits: Bounds) -> int:
    """The wanted size of the new set: as many as fit under the most, never fewer than now unless over `replicas`."""
    if new.wanted >= limits.replicas:
        return limits.replicas
    total = new.wanted + sum(entry.wanted for entry in old)
    return min(new.wanted + max(limits.most - total, 0), limits.replicas)


def shrink(new: SetSize, old: Sequence[SetSize], limits: Bounds) -> dict[str, int]:
    """New wanted sizes of the old sets (given oldest first) that change: first what is not available anyway, then
    available pods as far as the fewest allows."""
    total = new.wanted + sum(entry.wanted for entry in old)
    budget = total - limits.fewest - max(new.wanted - new.available, 0)
    if budget <= 0:
        return {}
    sizes = {entry.name: entry for entry in old}
    budget = _take(sizes, budget, lambda entry: entry.wanted - entry.surely_available)
    spare = new.surely_available + sum(entry.surely_available for entry in sizes.values()) - limits.fewest
    _take(sizes, min(budget, spare), lambda entry: entry.wanted)
    return {entry.name: sizes[entry.name].wanted for entry in old if sizes[entry.name].wanted != entry.wanted}


def _take(sizes: dict[str, SetSize], budget: int, limit: Callable[[SetSize], int]) -> int:
    """Takes up to `budget` from the sets in order, from each at most `limit(set)`; returns what is left of it."""
    for name, entry in sizes.items():
        taken = min(max(limit(entry), 0), max(budget, 0))
        sizes[name] = replace(entry, wanted=entry.wanted - taken)
        budget -= taken
    return budget


def proportional(sets: Sequence[SetSize], limits: Bounds) -> dict[str, int]:
    """Sizes after a deployment was scaled in the middle of an update: every set (newest first) grows or shrinks by its
    share, the rest goes to the largest. Only sizes that change are named."""
    total = sum(entry.wanted for entry in sets)
    allowed = limits.most if limits.replicas > 0 else 0
    change = allowed - total
    order = sorted(range(len(sets)), key=lambda index: (-sets[index].wanted, index if change > 0 else -index))
    result: dict[int, int] = {}
    added = 0
    for index in order:
        share = _share(sets[index], limits, change, added) if change else 0
        result[index] = sets[index].wanted + share
        added += share
    if order and change:
        first = order[0]
        result[first] = max(result[first] + change - added, 0)
    return {sets[index].name: size for index, size in result.items() if size != sets[index].wanted}


def _share(entry: SetSize, limits: Bounds, change: int, added: int) -> int:
    """A set's part of `change`, of which `added` is given away already; never beyond what is left."""
    if entry.wanted == 0:
        return 0
    if limits.replicas == 0:
        return -entry.wanted
    scaled = entry.wanted * limits.most / (entry.limit or limits.replicas)
    share = math.floor(scaled + 0.5) - entry.wanted
    left = change - added
    return min(share, left) if change > 0 else max(share, left)
