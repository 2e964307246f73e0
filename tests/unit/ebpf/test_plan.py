"""Routes become keys and pools, and changes become the least that has to be written."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from ipaddress import ip_address, ip_network
from math import gcd

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelet.dataplane.proxy import EngineConfig, EngineError
from kernelet.dataplane.proxy.ebpf.kernel import cgroup_path
from kernelet.dataplane.proxy.ebpf.ledger import Ledger, Transition
from kernelet.dataplane.proxy.ebpf.plan import MOST_SLOTS, Plan, endpoints, plan, readable, size
from kernelet.dataplane.routes import Backend, BackendFlag, Protocol, ServicePort, ServiceRoute

CONFIG = EngineConfig("here", (ip_network("10.244.0.0/24"),), (), ())


def backend(address: str, node: str = "here", flags: BackendFlag = BackendFlag.READY) -> Backend:
    return Backend(ip_address(address).packed, 8080, flags, node)


def service(*backends: Backend, ips: tuple[str, ...] = ("10.96.0.1",), node_port: int = 0) -> ServiceRoute:
    port = ServicePort("p", Protocol.TCP, 80, node_port, backends)
    return ServiceRoute("default/web", tuple(ip_address(ip).packed for ip in ips), (port,))


def sizes(made: Plan) -> dict[str, int]:
    return {readable(key): size(target.pool) for key, target in made.items()}


def nothing(name: str) -> Plan:
    raise AssertionError(name)


def test_each_family_has_its_own_backends() -> None:
    made = service(backend("10.244.0.1"), backend("fd00::1"), backend("fd00::2"), ips=("10.96.0.1", "fd00:96::1"))
    assert sizes(plan(made, CONFIG, "")) == {"10.96.0.1 . tcp . 80": 1, "fd00:96::1 . tcp . 80": 2}


def test_the_order_and_repetition_of_backends_make_no_difference() -> None:
    one, two = backend("10.244.0.1"), backend("10.244.0.2")
    assert plan(service(one, two), CONFIG, "") == plan(service(two, one, two), CONFIG, "")


def test_a_port_that_does_not_exist_names_the_service() -> None:
    with pytest.raises(EngineError, match="default/web"):
        plan(service(Backend(bytes(4), 65536)), CONFIG, "")
    with pytest.raises(EngineError, match="5 bytes"):
        plan(ServiceRoute("default/web", (bytes(5),), ()), CONFIG, "")


def test_keys_with_the_same_target_share_a_set() -> None:
    ledger = Ledger()
    made = ledger.change({}, {"a": plan(service(backend("10.244.0.1"), node_port=30080), CONFIG, "")}, nothing)
    assert len(made.held) == 2
    assert len(made.new_sets) == 1


def test_a_set_goes_when_its_last_key_leaves_it() -> None:
    ledger = Ledger()
    both = plan(service(backend("10.244.0.1"), node_port=30080), CONFIG, "")
    one = plan(service(backend("10.244.0.1")), CONFIG, "")
    ledger.accept(ledger.change({}, {"a": both}, nothing))
    first = ledger.change({"a": both}, {"a": one}, nothing)
    assert (len(first.held), first.new_sets, first.old_sets) == (1, [], [])
    ledger.accept(first)
    last = ledger.change({"a": one}, {}, nothing)
    assert len(last.old_sets) == 1
    ledger.accept(last)
    assert not ledger.held
    assert not any(count for name, count in ledger.room(Transition()).items() if name != "counters")


def test_what_stays_the_same_is_not_written() -> None:
    ledger = Ledger()
    made = plan(service(backend("10.244.0.1")), CONFIG, "")
    ledger.accept(ledger.change({}, {"a": made}, nothing))
    assert not ledger.change({"a": made}, {"a": made}, nothing)
    assert not ledger.replace({"a": made})


def test_numbers_of_sets_are_not_used_again() -> None:
    ledger = Ledger()
    seen = set()
    before: dict[str, Plan] = {}
    for number in range(10):
        after = {"a": plan(service(backend(f"10.244.0.{number}")), CONFIG, "")}
        transition = ledger.change(before, after, nothing)
        seen.update(item.number for item in transition.new_sets)
        ledger.accept(transition)
        before = after
    assert len(seen) == 10


def test_places_of_counters_are_used_again_and_never_twice_at_once() -> None:
    ledger = Ledger()
    plans = {name: plan(service(ips=(f"10.96.0.{i}",)), CONFIG, "") for i, name in enumerate("abcdef")}
    for old, new in (("", "abcd"), ("bc", "e"), ("ad", "bcf"), ("", "a")):
        before = {name: plans[name] for name in old}
        ledger.accept(ledger.change(before, {name: plans[name] for name in new}, nothing))
        places = [item.counter for item in ledger.held.values()]
        assert len(places) == len(set(places))
    assert ledger.room(Transition())["counters"] == 6


def weighted(*weights: int) -> ServiceRoute:
    return service(*(replace(backend(f"10.244.{i >> 8}.{i & 255}"), weight=w) for i, w in enumerate(weights)))


def shares(made: Plan) -> list[int]:
    """Slots of each backend, in the order of their addresses."""
    [target] = made.values()
    return [count for _, count in sorted(Counter(endpoints(target.pool)).items())]


@given(st.lists(st.integers(1, 255), min_size=1, max_size=50))
def test_slots_are_in_proportion_to_weights(weights: list[int]) -> None:
    found = shares(plan(weighted(*weights), CONFIG, ""))
    total = sum(found)
    assert total <= MOST_SLOTS + len(weights)
    if sum(weights) // gcd(*weights) <= MOST_SLOTS:
        assert [count * gcd(*weights) for count in found] == weights
    else:
        ideal = [MOST_SLOTS * weight / sum(weights) for weight in weights]
        assert all(abs(count - wanted) <= 1 for count, wanted in zip(found, ideal, strict=True))


def test_every_backend_has_a_slot_however_light() -> None:
    assert min(shares(plan(weighted(1, *[255] * 200), CONFIG, ""))) == 1
    assert len(shares(plan(weighted(*[1, 2] * 1000), CONFIG, ""))) == 2000


def test_a_consistent_service_has_a_table_that_no_order_of_backends_changes() -> None:
    made = weighted(1, 2, 3)
    port = made.ports[0]
    turned = replace(made, consistent=True, ports=(replace(port, backends=port.backends[::-1]),))
    target = next(iter(plan(turned, CONFIG, "").values()))
    assert target.consistent
    assert size(target.pool) == 251
    assert plan(turned, CONFIG, "") == plan(replace(made, consistent=True), CONFIG, "")


def test_a_slice_is_inside_the_slices_that_its_name_begins_with() -> None:
    assert str(cgroup_path("kernelet-a-n1.slice")) == "kernelet.slice/kernelet-a.slice/kernelet-a-n1.slice"
    assert str(cgroup_path("/kernelet/a.n1/")) == "kernelet/a.n1"
