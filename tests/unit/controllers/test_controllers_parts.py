"""The pure parts: what goes first, who has been heard of, which slices to write, which subnets are free."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from controllers_world import condition, service
from hypothesis import given, settings
from hypothesis import strategies as st
from lightkube.models.core_v1 import Node, Pod, Taint
from lightkube.models.discovery_v1 import Endpoint, EndpointSlice
from lightkube.models.meta_v1 import ObjectMeta

from kernelet.core.api.models import to_model
from kernelet.core.controllers import endpoints_model as model
from kernelet.core.controllers.access import name_of
from kernelet.core.controllers.cidrs import Exhausted, Subnets
from kernelet.core.controllers.gcgraph import FOREGROUND, Facts, Graph, Owner
from kernelet.core.controllers.heartbeats import Heartbeats
from kernelet.core.controllers.node_taints import evicted_at, wanted_taints
from kernelet.core.controllers.pods import to_delete
from kernelet.core.controllers.runtime import Expectations, SlowStartError, slow_start

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def make_pod(name: str, node: str = "n1", phase: str = "Running", ready: bool = True, **fields: Any) -> Pod:
    status = {"phase": phase, "conditions": [condition("Ready", str(ready))], "podIP": fields.pop("ip", "10.0.0.1")}
    status["conditions"][0]["lastTransitionTime"] = fields.pop("since", "2026-01-01T00:00:00Z")
    status["containerStatuses"] = [
        {"name": "c", "image": "", "imageID": "", "ready": ready, "restartCount": fields.pop("restarts", 0)}
    ]
    metadata = {
        "name": name,
        "uid": name,
        "namespace": "d",
        "creationTimestamp": fields.pop("created", "2026-01-01T00:00:00Z"),
    }
    metadata |= fields.pop("metadata", {})
    spec = {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}], "nodeName": node}
    return to_model(Pod, {"metadata": metadata, "spec": spec | fields, "status": status})


def test_pods_are_deleted_in_the_order_of_kubernetes() -> None:
    pods = [
        make_pod("1-unbound", node="", phase="Pending", ready=False),
        make_pod("2-pending", phase="Pending", ready=False),
        make_pod("3-not-ready", ready=False),
        make_pod("4-cheap", metadata={"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-5"}}),
        make_pod("5-crowded", node="busy"),
        make_pod("6-young", since="2026-01-01T23:59:00Z"),
        make_pod("7-restarted", restarts=4),
        make_pod("8-created-late", created="2026-01-01T23:00:00Z"),
        make_pod("9-old"),
    ]
    neighbours = [make_pod(f"other-{n}", node="busy") for n in range(9)]
    random.Random(1).shuffle(pods)
    order = [name_of(pod) for pod in to_delete(pods, [*pods, *neighbours], len(pods), NOW)]
    assert order == sorted(order)


def test_expectations_hold_until_the_cache_has_shown_everything_or_time_is_up() -> None:
    clock = [0.0]
    expected = Expectations(timeout=10, clock=lambda: clock[0])
    key = ("d", "web")
    expected.expect_creations(key, 2)
    expected.creation_observed(key)
    assert not expected.satisfied(key)
    expected.creation_observed(key)
    assert expected.satisfied(key)
    expected.expect_deletions(key, ["a"])
    assert not expected.satisfied(key)
    clock[0] = 11
    assert expected.satisfied(key)


async def test_a_slow_start_stops_after_the_first_batch_that_fails() -> None:
    tried: list[int] = []

    async def fail_from_second(index: int) -> None:
        tried.append(index)
        if index:
            raise ValueError("no")

    with pytest.raises(SlowStartError) as caught:
        await slow_start(100, fail_from_second)
    assert (caught.value.succeeded, tried) == (1, [0, 1, 2])


# Endpoints


def endpoint(number: int, ready: bool = True) -> Endpoint:
    fields = {"addresses": [f"10.0.{number // 250}.{number % 250}"], "conditions": {"ready": ready}}
    return to_model(Endpoint, fields | {"targetRef": {"uid": str(number)}})


def apply(slices: list[EndpointSlice], plan: model.Plan) -> list[EndpointSlice]:
    """What stands after a plan was written."""
    gone = {name_of(entry) for entry in plan.delete}
    changed = {name_of(entry): endpoints for entry, endpoints in plan.update}
    left = [entry for entry in slices if name_of(entry) not in gone]
    for entry in left:
        entry.endpoints = changed.get(name_of(entry), entry.endpoints)
    for number, (group, endpoints) in enumerate(plan.create):
        name = f"s{len(slices)}-{number}-{random.random()}"
        made = EndpointSlice(
            group[0], endpoints=endpoints, metadata=ObjectMeta(name=name), ports=model.slice_ports(group)
        )
        left.append(made)
    return left


GROUP: model.Group = ("IPv4", (("web", "TCP", 8080, ""),))
OTHER: model.Group = ("IPv4", (("web", "TCP", 9090, ""),))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sets(st.integers(0, 330)), st.sets(st.integers(331, 340))), min_size=1, max_size=5))
def test_slices_say_what_is_wanted_after_any_history_and_hold_no_more_than_their_limit(
    history: list[tuple[set[int], set[int]]],
) -> None:
    slices: list[EndpointSlice] = []
    for first, second in history:
        wanted = {GROUP: [endpoint(n) for n in sorted(first)]}
        if second:
            wanted[OTHER] = [endpoint(n) for n in sorted(second)]
        slices = apply(slices, model.plan(slices, wanted))
        for group, endpoints in wanted.items():
            present = [e for entry in slices if model.group_of(entry) == group for e in entry.endpoints or []]
            assert sorted(e.addresses for e in present) == sorted(e.addresses for e in endpoints)
        assert all(len(entry.endpoints or []) <= model.LIMIT for entry in slices)
        assert model.plan(slices, wanted).empty
        if not first and not second:
            assert len(slices) <= 1


def test_one_changed_endpoint_is_one_write_and_so_is_the_last_one_that_leaves() -> None:
    wanted = {GROUP: [endpoint(n) for n in range(250)]}
    slices = apply([], model.plan([], wanted))
    assert len(slices) == 3
    wanted[GROUP][120] = endpoint(120, ready=False)
    changed = model.plan(slices, wanted)
    assert (len(changed.update), changed.create, changed.delete) == (1, [], [])
    one = apply([], model.plan([], {GROUP: [endpoint(1)]}))
    emptied = model.plan(one, {("IPv4", ()): []})
    assert (len(emptied.update), emptied.create, emptied.delete) == (1, [], [])


@pytest.mark.parametrize(
    ("pod", "tainted", "publish", "expected"),
    [
        (make_pod("p"), False, False, (True, True, False)),
        (make_pod("p", ready=False), False, False, (False, False, False)),
        (make_pod("p", ready=False), False, True, (True, False, False)),
        (make_pod("p"), True, False, (False, False, False)),
        (make_pod("p", metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}), False, False, (False, True, True)),
        (make_pod("p", metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}), False, True, (True, True, True)),
    ],
)
def test_an_endpoint_is_ready_while_its_pod_and_node_are_and_nobody_asked_it_to_go(
    pod: Pod, tainted: bool, publish: bool, expected: tuple[bool, bool, bool]
) -> None:
    taints = [{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}] if tainted else []
    node = to_model(Node, {"metadata": {"name": "n1"}, "spec": {"taints": taints}})
    found = model.desired(service("web", "d", publishNotReadyAddresses=publish), [pod], {"n1": node})
    ((group, (made,)),) = found.items()
    assert group == GROUP
    assert made.conditions
    assert (made.conditions.ready, made.conditions.serving, made.conditions.terminating) == expected


def test_finished_pods_and_pods_without_an_address_are_no_endpoints() -> None:
    pods = [make_pod("done", phase="Succeeded"), make_pod("new", ip="")]
    assert model.desired(service("web", "d"), pods, {}) == {("IPv4", ()): []}


# Heartbeats


def listening(*nodes: str) -> Heartbeats:
    found = Heartbeats(grace=4.0, period=1.0)
    for node in nodes:
        found.track(node, 0.0)
        found.renewed(node, "first", 0.0)
    return found


def test_a_node_is_silent_after_its_grace_while_others_are_heard_of() -> None:
    beats = listening("a", "b")
    for second in range(1, 5):
        beats.renewed("b", str(second), float(second))
    assert not beats.judge(3.9).silent
    verdict = beats.judge(4.0)
    assert (verdict.silent, verdict.disrupted) == (frozenset({"a"}), False)


def test_the_same_renewal_seen_again_is_no_sign_of_life() -> None:
    beats = listening("a", "b")
    beats.renewed("a", "first", 3.0)
    beats.renewed("b", "second", 4.0)
    assert beats.judge(4.5).silent == {"a"}
    assert not beats.alive("a")


def test_nobody_is_given_up_while_the_rest_may_be_about_to_fall_silent_too() -> None:
    beats = listening("a", "b")
    beats.renewed("b", "second", 0.5)
    assert not beats.judge(4.1).silent
    verdict = beats.judge(4.5)
    assert verdict.disrupted
    assert verdict.silent == {"a", "b"}


def test_the_first_node_that_returns_gives_the_others_their_grace_to_follow() -> None:
    beats = listening("a", "b")
    assert beats.judge(5.0).disrupted
    beats.renewed("a", "back", 10.0)
    assert not beats.judge(10.0).silent
    for tenth in range(11, 15):
        beats.renewed("a", str(tenth), float(tenth))
    assert beats.judge(14.0).silent == {"b"}


def test_what_a_blind_observer_did_not_hear_says_nothing() -> None:
    beats = listening("a", "b")
    beats.restart(100.0)
    assert not beats.judge(103.9).silent


# Taints


def node(ready: str, taints: list[dict[str, str]] | None = None, **spec: Any) -> Node:
    fields = {"metadata": {"name": "n"}, "spec": {"taints": taints or [], **spec}}
    return to_model(Node, fields | {"status": {"conditions": [condition("Ready", ready)]}})


def kinds(taints: list[Taint]) -> set[tuple[str, str]]:
    return {(taint.key.removeprefix("node.kubernetes.io/"), taint.effect) for taint in taints}


def test_taints_follow_conditions_and_leave_foreign_ones_alone() -> None:
    foreign = {"key": "gpu", "effect": "NoSchedule"}
    old = [foreign, {"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]
    lost = wanted_taints(node("Unknown", old), evict=True, now=NOW)
    assert kinds(lost) == {("gpu", "NoSchedule"), ("unreachable", "NoSchedule"), ("unreachable", "NoExecute")}
    assert kinds(wanted_taints(node("True", old), evict=True, now=NOW)) == {("gpu", "NoSchedule")}
    spared = wanted_taints(node("Unknown", old), evict=False, now=NOW)
    assert kinds(spared) == {("gpu", "NoSchedule"), ("unreachable", "NoSchedule")}
    cordoned = wanted_taints(node("True", unschedulable=True), evict=True, now=NOW)
    assert kinds(cordoned) == {("unschedulable", "NoSchedule")}


@pytest.mark.parametrize(
    ("tolerations", "seconds"),
    [
        ([], 0),
        ([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "tolerationSeconds": 30}], 25),
        ([{"operator": "Exists"}], None),
        ([{"operator": "Exists", "effect": "NoSchedule"}], 0),
        ([{"operator": "Exists"}, {"operator": "Exists", "tolerationSeconds": 7}], 2),
    ],
)
def test_a_pod_leaves_when_its_shortest_toleration_is_over_counted_from_the_taint(
    tolerations: list[dict[str, Any]], seconds: int | None
) -> None:
    taint = Taint(effect="NoExecute", key="node.kubernetes.io/unreachable", timeAdded=NOW - timedelta(seconds=5))
    found = evicted_at(make_pod("p", tolerations=tolerations), [taint], NOW)
    assert found == (None if seconds is None else NOW + timedelta(seconds=seconds))


# Subnets


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(0, 15)), max_size=60))
def test_no_subnet_is_given_out_twice_and_a_released_one_is_used_again(script: list[int | None]) -> None:
    subnets = Subnets("10.0.0.0/20", 24)
    held: list[str] = []
    for entry in script:
        if entry is not None and held:
            subnets.release(held.pop(entry % len(held)))
        elif len(held) == 16:
            with pytest.raises(Exhausted, match="16 subnets"):
                subnets.allocate()
        else:
            given_out = subnets.allocate()
            assert given_out not in held
            held.append(given_out)
    assert subnets.free == 16 - len(held)


def test_subnets_that_nodes_hold_already_are_not_given_out_whatever_their_size() -> None:
    subnets = Subnets("10.0.0.0/22", 24)
    assert subnets.occupy("10.0.0.128/25")
    assert subnets.occupy("10.0.2.0/23")
    assert not subnets.occupy("192.168.0.0/24")
    assert subnets.allocate() == "10.0.1.0/24"
    with pytest.raises(Exhausted):
        subnets.allocate()
    assert Subnets("fd00::/48", 64).allocate() == "fd00::/64"


# Owner references


def facts(name: str, *owners: str, **fields: Any) -> Facts:
    references = tuple(Owner("v1", "Thing", owner, owner, blocks=True) for owner in owners)
    return Facts("v1/Thing", "d", name, name, references, **fields)


def test_dependents_are_looked_at_when_their_owner_goes_in_whatever_order_they_came() -> None:
    graph = Graph()
    assert graph.observe(facts("child", "parent")).delete == ["child"]
    assert graph.observe(facts("parent")).delete == []
    assert graph.gone("parent").delete == ["child"]
    assert graph.gone("child").delete == []
    assert len(graph) == 0


def test_a_foreground_deletion_waits_for_what_blocks_it_and_goes_on_when_that_is_gone() -> None:
    graph = Graph()
    graph.observe(facts("parent"))
    graph.observe(facts("child", "parent"))
    marked = facts("parent", finalizers=frozenset({FOREGROUND}), deleting=True)
    assert graph.observe(marked).delete == ["parent", "child"]
    assert [other.name for other in graph.blocking("parent")] == ["child"]
    assert graph.gone("child").delete == ["parent"]
    assert not graph.blocking("parent")


def test_a_change_of_owners_is_seen_by_the_old_ones_and_the_new() -> None:
    graph = Graph()
    graph.observe(facts("child", "a"))
    graph.observe(facts("child", "b"))
    assert not graph.dependents("a")
    assert [other.name for other in graph.dependents("b")] == ["child"]
