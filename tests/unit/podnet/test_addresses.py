"""Addresses of a pod subnet."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelet.dataplane.podnet.addresses import AddressesExhausted, AddressPool


def test_gateway_network_and_broadcast_are_never_handed_out() -> None:
    pool = AddressPool(IPv4Network("10.1.0.0/29"))
    assert [str(pool.take()) for _ in range(5)] == [f"10.1.0.{n}" for n in range(2, 7)]


def test_exhaustion_names_the_subnet_and_a_released_address_ends_it() -> None:
    pool = AddressPool(IPv4Network("10.1.0.0/29"))
    taken = [pool.take() for _ in range(5)]
    with pytest.raises(AddressesExhausted, match=r"10\.1\.0\.0/29: all 5"):
        pool.take()
    pool.release(taken[3])
    assert pool.take() == taken[3]


def test_a_released_address_rests_until_all_others_were_used() -> None:
    pool = AddressPool(IPv4Network("10.1.0.0/29"))
    first = pool.take()
    pool.release(first)
    assert [pool.take() for _ in range(4)].count(first) == 0
    assert pool.take() == first


def test_a_subnet_too_small_for_pods_is_refused() -> None:
    with pytest.raises(ValueError, match="too small"):
        AddressPool(IPv4Network("10.1.0.0/30"))


def test_an_address_of_another_subnet_cannot_be_reserved() -> None:
    with pytest.raises(ValueError, match="not in the pod subnet"):
        AddressPool(IPv4Network("10.1.0.0/24")).reserve(IPv4Address("10.2.0.5"))


@given(st.lists(st.booleans(), max_size=200))
def test_no_address_is_held_twice_whatever_is_taken_and_released(takes: list[bool]) -> None:
    pool = AddressPool(IPv4Network("10.1.0.0/28"))
    held: list[IPv4Address] = []
    for take in takes:
        if take and len(held) < 13:
            address = pool.take()
            assert address not in held
            assert address in pool.subnet
            held.append(address)
        elif held:
            pool.release(held.pop(0))
    assert len(pool) == len(held)
