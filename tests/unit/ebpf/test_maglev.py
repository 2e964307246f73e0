"""Maglev tables: shares, and how little moves."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelet.ext.maglev import table

SIZE = 1021
NAMES = st.lists(st.binary(min_size=4, max_size=20), min_size=2, max_size=100, unique=True)


@given(NAMES)
def test_shares_differ_by_one_slot_at_most(names: list[bytes]) -> None:
    found = Counter(table(names, [1] * len(names), SIZE))
    assert len(found) == len(names)
    assert max(found.values()) - min(found.values()) <= 1


@given(NAMES, st.data())
def test_shares_are_in_proportion_to_weights(names: list[bytes], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(1, 255), min_size=len(names), max_size=len(names)))
    found = Counter(table(names, weights, SIZE))
    for index, weight in enumerate(weights):
        assert abs(found[index] - SIZE * weight / sum(weights)) <= 3


@given(st.integers(3, 100), st.integers(0, 1 << 32))
def test_few_clients_move_when_one_of_many_leaves(count: int, seed: int) -> None:
    """Beyond those that must move, a few per cent on average, as in the paper's section 5.3."""
    names = [(seed + index).to_bytes(8, "big") for index in range(count)]
    before = table(names, [1] * count, SIZE)
    left = names[1:]
    after = table(left, [1] * len(left), SIZE)
    stayed = sum(names[old] == left[new] for old, new in zip(before, after, strict=True))
    must_move = before.count(0)
    assert SIZE - stayed - must_move <= SIZE * 0.2


def test_a_table_is_the_same_on_every_machine() -> None:
    assert table([b"a", b"b", b"c"], [1, 1, 1], 7) == [2, 0, 1, 0, 1, 0, 2]


@pytest.mark.parametrize(
    ("names", "weights", "size"), [([], [], 7), ([b"a"], [], 7), ([b"a"], [0], 7), ([b"a"], [1], 1)]
)
def test_what_makes_no_table_is_refused(names: list[bytes], weights: list[int], size: int) -> None:
    with pytest.raises(ValueError, match="weights are positive"):
        table(names, weights, size)
