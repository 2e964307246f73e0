"""Dense slots that stay where they are as far as possible."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kernelet.dataplane.proxy.elements import place

names = st.binary(min_size=1, max_size=1)


def test_a_removed_backends_slot_is_filled_by_the_last_one() -> None:
    assert place((b"a", b"b", b"c", b"d"), {b"a": None, b"c": None, b"d": None}) == (b"a", b"d", b"c")


def test_an_added_backend_takes_a_new_slot() -> None:
    assert place((b"b", b"a"), {b"a": None, b"b": None, b"c": None}) == (b"b", b"a", b"c")


def test_a_replaced_backend_is_replaced_in_its_slot() -> None:
    assert place((b"a", b"b", b"c"), {b"c": None, b"x": None, b"a": None}) == (b"a", b"x", b"c")


@given(st.lists(st.none() | names), st.sets(names))
def test_slots_hold_exactly_the_wanted_and_move_nobody_needlessly(old: list[bytes | None], wanted: set[bytes]) -> None:
    slots = place(old, wanted)
    assert len(slots) == len(wanted)
    assert set(slots) == wanted
    for index, name in enumerate(old[: len(wanted)]):
        if name in wanted and old.index(name) == index:
            assert slots[index] == name
