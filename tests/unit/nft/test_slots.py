"""Dense slots that stay where they are as far as possible; weights, ids and ranges."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from ipaddress import ip_address, ip_network
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelet.dataplane.proxy.nftables.affinity import backend_ids
from kernelet.dataplane.proxy.nftables.elements import MOST_WEIGHTED_SLOTS, place, ranges, slots
from kernelet.dataplane.routes import Backend

names = st.binary(min_size=1, max_size=1)
BACKEND = Backend(b"\x0a\xf4\0\1", 80)


def test_a_removed_backends_slot_is_filled_by_the_last_one() -> None:
    assert place((b"a", b"b", b"c", b"d"), (b"a", b"c", b"d")) == (b"a", b"d", b"c")


def test_an_added_backend_takes_a_new_slot() -> None:
    assert place((b"b", b"a"), (b"a", b"b", b"c")) == (b"b", b"a", b"c")


def test_a_replaced_backend_is_replaced_in_its_slot() -> None:
    assert place((b"a", b"b", b"c"), (b"c", b"x", b"a")) == (b"a", b"x", b"c")


def test_a_heavier_backend_only_takes_more_slots() -> None:
    assert place((b"a", b"b", b"a"), (b"a", b"a", b"a", b"b")) == (b"a", b"b", b"a", b"a")
    assert place((b"a", b"b", b"a"), (b"b", b"a")) == (b"a", b"b")


@given(st.lists(names), st.lists(names, max_size=12))
def test_slots_hold_exactly_the_wanted_and_move_nobody_needlessly(old: list[bytes], wanted: list[bytes]) -> None:
    made = place(old, wanted)
    assert Counter(made) == Counter(wanted)
    for index, name in enumerate(old[: len(wanted)]):
        if old[: index + 1].count(name) <= wanted.count(name):
            assert made[index] == name


def weighted(*weights: int) -> list[int]:
    """The numbers of slots that backends of these weights get, in order."""
    backends = [replace(BACKEND, port=number, weight=weight) for number, weight in enumerate(weights, 1)]
    return list(Counter(slots(backends)).values())


def test_weights_become_the_fewest_slots_in_their_proportion() -> None:
    assert weighted(1, 1, 1) == weighted(7, 7, 7) == [1, 1, 1]
    assert weighted(10, 4) == [5, 2]
    assert weighted(255, 1) == [255, 1]


def test_weights_that_ask_for_too_many_slots_are_coarsened_and_nobody_is_left_out() -> None:
    many = weighted(*[255] * 20, *[1] * 20)
    assert sum(many) <= MOST_WEIGHTED_SLOTS + 20
    assert set(many[:20]) == {51}
    assert set(many[20:]) == {1}


def test_more_backends_than_slots_are_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match="20000 backends and can have 16383; use several services"):
        slots([replace(BACKEND, port=number) for number in range(1, 20001)])


def test_an_id_follows_from_the_backend_alone_and_two_that_clash_differ() -> None:
    found: dict[int, bytes] = {}
    clash: tuple[bytes, bytes] | None = None
    for number in range(1 << 20):
        data = sha256(number.to_bytes(4)).digest()[:8]
        other = found.setdefault(zlib.crc32(data) | 0xC0000000, data)
        if other is not data:
            clash = other, data
            break
    assert clash is not None
    assert backend_ids([clash[0]]) == {clash[0]: backend_ids([clash[0], b"x"])[clash[0]]}
    assert len(set(backend_ids(clash).values())) == 2
    assert backend_ids(clash) == backend_ids(clash[::-1])


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 32)), max_size=6))
def test_ranges_cover_what_the_networks_cover_and_never_overlap(networks: list[tuple[int, int]]) -> None:
    prefixes = [(bytes((10, low, 0, low)), bits) for low, bits in networks]
    made = [(int.from_bytes(item[:4]), int.from_bytes(item[4:])) for item in ranges(prefixes)]
    edges = sorted(made)
    assert all(one[1] < other[0] for one, other in pairwise(edges))
    for address, bits in prefixes:
        network = ip_network((address, bits), strict=False)
        for wanted in (network[0], network[-1]):
            assert any(first <= int(wanted) <= last for first, last in made)
    assert len(made) <= len(prefixes)


def test_a_network_within_another_adds_nothing() -> None:
    wide, narrow = (ip_address("10.0.0.0").packed, 8), (ip_address("10.1.0.0").packed, 16)
    assert ranges([narrow, wide, narrow]) == (bytes((10, 0, 0, 0, 10, 255, 255, 255)),)
