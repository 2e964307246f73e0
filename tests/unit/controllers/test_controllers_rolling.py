"""The arithmetic of rolling updates, against pods that live, fail and lag as they like."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelet.core.controllers.rolling import Bounds, SetSize, bounds, grow, proportional, resolve, shrink


@dataclass
class Fleet:
    """One replica set as it is: what its controller has made of what is wanted, and what its status says."""

    name: str
    wanted: int
    running: int = 0
    available: int = 0
    reported: int = 0

    def size(self) -> SetSize:
        return SetSize(self.name, self.wanted, self.reported)

    def run(self) -> None:
        """Unavailable pods go first, as replica sets have it."""
        self.running = self.wanted
        self.available = min(self.available, self.running)

    def become_available(self, count: int) -> None:
        self.available = min(self.available + count, self.running)

    def report(self) -> None:
        self.reported = self.available


def step(new: Fleet, old: list[Fleet], limits: Bounds) -> None:
    """One reconcile, as the deployment controller does it."""
    size = grow(new.size(), [entry.size() for entry in old], limits)
    if size != new.wanted:
        new.wanted = size
        return
    smaller = shrink(new.size(), [entry.size() for entry in old], limits)
    for entry in old:
        entry.wanted = smaller.get(entry.name, entry.wanted)


shares = st.one_of(st.integers(0, 12), st.integers(0, 100).map(lambda n: f"{n}%"))
moves = st.lists(st.tuples(st.sampled_from(["step", "run", "ready", "report"]), st.integers(0, 3)), max_size=150)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 15), shares, shares, st.lists(st.integers(0, 15), min_size=1, max_size=3), moves)
def test_no_interleaving_leaves_the_bounds_and_every_update_ends(
    replicas: int, surge: int | str, unavailable: int | str, old_sizes: list[int], script: list[tuple[str, int]]
) -> None:
    limits = bounds(replicas, surge, unavailable)
    old = [Fleet(f"old-{n}", size, size, size, size) for n, size in enumerate(old_sizes)]
    new = Fleet("new", 0)
    fleets = [*old, new]
    for move, which in script:
        fleet = fleets[which % len(fleets)]
        total, available = sum(f.wanted for f in fleets), sum(min(f.wanted, f.available) for f in fleets)
        if move == "step":
            step(new, old, limits)
            assert sum(f.wanted for f in fleets) <= max(total, limits.most)
            left = sum(min(f.wanted, f.available) for f in fleets)
            assert left >= min(available, limits.fewest), (fleets, limits)
        elif move == "run":
            fleet.run()
        elif move == "ready":
            fleet.become_available(1)
        else:
            fleet.report()
    for _ in range(2 * sum(old_sizes) + 2 * replicas + 4):
        step(new, old, limits)
        for fleet in fleets:
            fleet.run()
            fleet.become_available(fleet.running)
            fleet.report()
    assert (new.wanted, [f.wanted for f in old]) == (replicas, [0] * len(old))


@given(st.integers(0, 50), st.integers(0, 10), st.lists(st.integers(0, 30), min_size=2, max_size=4))
def test_scaling_in_the_middle_of_an_update_shares_the_change_exactly(
    replicas: int, surge: int, sizes: list[int]
) -> None:
    limits = Bounds(replicas, surge, 0)
    sets = [SetSize(str(index), size, size, sum(sizes)) for index, size in enumerate(sizes)]
    result = {entry.name: entry.wanted for entry in sets} | proportional(sets, limits)
    assert all(size >= 0 for size in result.values())
    if any(sizes):
        assert sum(result.values()) == (limits.most if replicas else 0)


@pytest.mark.parametrize(
    ("surge", "unavailable", "expected"),
    [("25%", "25%", (3, 2)), (0, 0, (0, 1)), ("0%", "1%", (0, 1)), (2, 99, (2, 10)), (None, None, (0, 1))],
)
def test_surge_is_rounded_up_and_unavailable_down_and_one_of_them_is_never_zero(
    surge: int | str | None, unavailable: int | str | None, expected: tuple[int, int]
) -> None:
    found = bounds(10, surge, unavailable)
    assert (found.surge, found.unavailable) == expected


def test_a_share_that_is_no_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="many"):
        resolve("many", 3, up=True)
