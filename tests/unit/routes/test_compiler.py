"""The route compiler: what nodes are told, and how much of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightkube.models.core_v1 import (
    Node,
    NodeAddress,
    NodeCondition,
    NodeSpec,
    NodeStatus,
    ObjectReference,
    Service,
    ServicePort,
    ServiceSpec,
    Taint,
)
from lightkube.models.discovery_v1 import Endpoint, EndpointConditions, EndpointPort, EndpointSlice
from lightkube.models.meta_v1 import ObjectMeta

from kernelet.core.routes.compiler import Compiler
from kernelet.proto import routes_pb2 as pb


def node(name: str, *, ready: bool = True, given_up: bool = False) -> Node:
    number = name.removeprefix("n")
    taint = Taint(key="node.kubernetes.io/unreachable", effect="NoExecute" if given_up else "NoSchedule")
    return Node(
        metadata=ObjectMeta(name=name, annotations={"kernelet.dev/vtep-mac": "0e:00:00:00:00:01"}),
        spec=NodeSpec(podCIDR=f"10.244.{number}.0/24", podCIDRs=[f"10.244.{number}.0/24"], taints=[taint]),
        status=NodeStatus(
            addresses=[NodeAddress(type="InternalIP", address=f"172.30.0.1{number}")],
            conditions=[NodeCondition(type="Ready", status="True" if ready else "Unknown")],
        ),
    )


def service(address: str = "10.96.0.7", **spec: object) -> Service:
    return Service(
        metadata=ObjectMeta(name="web", namespace="default"),
        spec=ServiceSpec(
            clusterIP=address, clusterIPs=[address], ports=[ServicePort(port=80, name="http", protocol="TCP")], **spec
        ),
    )


def endpoint(
    number: int, on: str = "n1", *, ready: bool = True, serving: bool = True, terminating: bool = False
) -> Endpoint:
    return Endpoint(
        addresses=[f"10.244.1.{number}"],
        nodeName=on,
        conditions=EndpointConditions(ready=ready, serving=serving, terminating=terminating),
        targetRef=ObjectReference(kind="Pod", uid=f"uid-{number}"),
    )


def endpoint_slice(*endpoints: Endpoint, name: str = "web-1") -> EndpointSlice:
    return EndpointSlice(
        addressType="IPv4",
        endpoints=list(endpoints),
        ports=[EndpointPort(name="http", port=8080, protocol="TCP")],
        metadata=ObjectMeta(name=name, namespace="default", labels={"kubernetes.io/service-name": "web"}),
    )


def ready_addresses(message: pb.Service) -> set[str]:
    packed = message.ports[0].backends4
    rows = [packed[i : i + 12] for i in range(0, len(packed), 12)]
    return {".".join(map(str, row[:4])) for row in rows if row[6] & pb.BACKEND_READY}


def compiled(compiler: Compiler) -> pb.Service:
    compiler.flush()
    return compiler.snapshot().services[0]


def compiler_with(*endpoints: Endpoint) -> Compiler:
    compiler = Compiler("g")
    compiler.set_node("n1", node("n1"))
    compiler.set_node("n2", node("n2"))
    compiler.set_service("default/web", service())
    compiler.set_slice("default/web", "web-1", endpoint_slice(*endpoints))
    return compiler


def test_backends_carry_the_target_port_of_the_slice_and_the_node() -> None:
    found = compiled(compiler_with(endpoint(2), endpoint(3, "n2")))
    row = found.ports[0].backends4[:12]
    assert int.from_bytes(row[4:6], "big") == 8080
    assert found.ports[0].port == 80
    assert list(found.nodes) == ["n1", "n2"]
    assert int.from_bytes(row[7:9], "big") == 1


def test_a_change_of_one_service_is_a_delta_of_that_service_alone() -> None:
    compiler = compiler_with(endpoint(2))
    compiler.set_service("default/other", service("10.96.0.8"))
    compiler.flush()
    compiler.set_slice("default/web", "web-1", endpoint_slice(endpoint(2), endpoint(3)))
    delta = compiler.flush()
    assert delta is not None
    assert [entry.id for entry in delta.services] == ["default/web"]
    assert (delta.base_version, delta.version) == (1, 2)


def test_an_input_that_changes_nothing_for_nodes_makes_no_version() -> None:
    compiler = compiler_with(endpoint(2))
    compiler.flush()
    compiler.set_slice("default/web", "web-1", endpoint_slice(endpoint(2)))
    compiler.set_node("n1", node("n1"))
    assert compiler.flush() is None


def test_endpoints_of_a_node_that_is_given_up_leave_at_once_and_come_back_with_it() -> None:
    compiler = compiler_with(endpoint(2), endpoint(3, "n2"))
    assert ready_addresses(compiled(compiler)) == {"10.244.1.2", "10.244.1.3"}
    compiler.set_node("n2", node("n2", ready=False, given_up=True))
    assert ready_addresses(compiled(compiler)) == {"10.244.1.2"}
    assert compiler.live_nodes() == ["n1"]
    compiler.set_node("n2", node("n2"))
    assert ready_addresses(compiled(compiler)) == {"10.244.1.2", "10.244.1.3"}


def test_nodes_that_are_silent_but_not_given_up_keep_their_endpoints_and_are_not_waited_for() -> None:
    compiler = compiler_with(endpoint(2), endpoint(3, "n2"))
    compiler.flush()
    for name in ("n1", "n2"):
        compiler.set_node(name, node(name, ready=False))
    compiler.set_slice("default/web", "web-2", endpoint_slice(endpoint(4, "n2"), name="web-2"))
    assert ready_addresses(compiled(compiler)) == {"10.244.1.2", "10.244.1.3", "10.244.1.4"}
    assert compiler.live_nodes() == []


def test_a_pod_is_routed_while_any_slice_lists_it_as_ready() -> None:
    compiler = compiler_with(endpoint(2))
    compiler.flush()
    assert compiler.ready_services("uid-2") == {"default/web"}
    compiler.set_slice("default/web", "web-1", endpoint_slice(endpoint(2, ready=False, terminating=True)))
    compiler.flush()
    assert not compiler.ready_services("uid-2")


def test_a_pod_that_is_published_while_it_terminates_is_routed_and_not_waited_for() -> None:
    compiler = compiler_with(endpoint(2, terminating=True))
    assert ready_addresses(compiled(compiler)) == {"10.244.1.2"}
    assert not compiler.ready_services("uid-2")


def test_endpoints_of_a_node_that_was_deleted_are_not_routed_whether_it_was_ready_or_not() -> None:
    compiler = compiler_with(endpoint(2), endpoint(3, "n2"))
    compiler.set_node("n2", None)
    assert ready_addresses(compiled(compiler)) == {"10.244.1.2"}
    compiler.set_node("n1", node("n1", ready=False))
    compiler.set_node("n1", None)
    assert ready_addresses(compiled(compiler)) == set()


def test_another_order_of_what_has_no_order_is_no_change() -> None:
    compiler = compiler_with(endpoint(2, "n2"), endpoint(3, "n1"))
    both = ["10.96.0.7", "fd00::7"]
    ports = [ServicePort(port=80, name="http", protocol="TCP"), ServicePort(port=53, name="dns", protocol="UDP")]
    one, other = service(externalIPs=["1.2.3.4", "1.2.3.5"]), service(externalIPs=["1.2.3.5", "1.2.3.4"])
    assert one.spec is not None
    assert other.spec is not None
    one.spec.clusterIPs, other.spec.clusterIPs = both, both[::-1]
    one.spec.ports, other.spec.ports = ports, ports[::-1]
    compiler.set_service("default/web", one)
    compiler.flush()
    compiler.set_service("default/web", other)
    compiler.set_slice("default/web", "web-1", endpoint_slice(endpoint(3, "n1"), endpoint(2, "n2")))
    assert compiler.flush() is None
    # The same endpoints, spread over slices in another way.
    compiler.set_slice("default/web", "web-1", endpoint_slice(endpoint(2, "n2")))
    compiler.set_slice("default/web", "web-0", endpoint_slice(endpoint(3, "n1"), name="web-0"))
    assert compiler.flush() is None


def test_an_address_that_is_none_is_left_out_and_nothing_else() -> None:
    wrong = endpoint(3)
    wrong.addresses = ["example.org", "fd00::3"]  # Of no family, and not of its slice's.
    compiler = compiler_with(endpoint(2), wrong)
    compiler.set_service("default/web", service(externalIPs=["nonsense", "1.2.3.4"]))
    found = compiled(compiler)
    assert ready_addresses(found) == {"10.244.1.2"}
    assert list(found.external_ips) == [bytes([1, 2, 3, 4])]


def test_nothing_is_remembered_of_what_was_deleted() -> None:
    compiler = compiler_with(endpoint(2), endpoint(3, "n2"))
    compiler.flush()
    compiler.set_slice("default/web", "web-1", endpoint_slice(endpoint(2)))
    compiler.flush()
    assert not compiler._services_of_node["n2"]
    compiler.set_slice("default/web", "web-1", None)
    compiler.set_service("default/web", None)
    for name in ("n1", "n2"):
        compiler.set_node(name, None)
    compiler.flush()
    for held in (compiler._services_of_node, compiler._ready_in, compiler._inputs, compiler._nodes, compiler._peers):
        assert not len(held)


def test_kept_deltas_are_bounded_in_bytes_and_those_too_far_behind_get_a_snapshot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiler = compiler_with(endpoint(2))
    compiler.flush()
    monkeypatch.setattr("kernelet.core.routes.compiler.KEPT_BYTES", 1000)
    for number in range(3, 40):
        compiler.set_slice("default/web", "web-1", endpoint_slice(endpoint(number)))
        compiler.flush()
    assert sum(len(delta.data) for delta in compiler._deltas) == compiler._delta_bytes <= 1000
    assert 2 < len(compiler._deltas) < 20
    assert compiler.since("g", compiler.version - 2)[0].base_version == compiler.version - 2
    assert compiler.since("g", 3)[0].base_version == 0


def test_a_version_is_encoded_once_for_all_nodes() -> None:
    compiler = compiler_with(endpoint(2))
    compiler.flush()
    assert compiler.since("g", 0)[0] is compiler.since("old", 7)[0]
    compiler.set_slice("default/web", "web-1", endpoint_slice(endpoint(3)))
    compiler.flush()
    assert compiler.since("g", 1)[0] is compiler.since("g", 1)[0]
    assert compiler.since("g", 0)[0].version == 2


def test_headless_and_external_services_are_not_routed() -> None:
    compiler = Compiler("g")
    compiler.set_service("default/a", service("None"))
    compiler.set_service("default/b", service(type="ExternalName"))
    compiler.flush()
    assert not compiler.snapshot().services


def test_a_removed_service_is_told_by_its_id() -> None:
    compiler = compiler_with(endpoint(2))
    compiler.flush()
    compiler.set_service("default/web", None)
    delta = compiler.flush()
    assert delta is not None
    assert list(delta.removed_services) == ["default/web"]
    assert not compiler.ready_services("uid-2")


def test_a_node_of_another_generation_or_from_too_long_ago_gets_a_snapshot() -> None:
    compiler = compiler_with(endpoint(2))
    compiler.flush()
    assert compiler.since("other", 1)[0].base_version == 0
    assert compiler.since("g", 0)[0].base_version == 0
    assert compiler.since("g", 99)[0].base_version == 0
    assert compiler.since("g", 1) == []


@given(st.lists(st.tuples(st.integers(2, 9), st.booleans(), st.sampled_from(["n1", "n2"])), max_size=30))
def test_deltas_from_any_version_lead_to_the_snapshot(steps: list[tuple[int, bool, str]]) -> None:
    compiler = compiler_with()
    compiler.flush()
    current: dict[int, Endpoint] = {}
    for number, present, where in steps:
        if present:
            current[number] = endpoint(number, where)
        else:
            current.pop(number, None)
        compiler.set_slice("default/web", "web-1", endpoint_slice(*current.values()))
        compiler.flush()
    newest = compiler.snapshot()
    for version in range(1, newest.version + 1):
        held = {"default/web": None}
        for encoded in compiler.since("g", version):
            message = pb.FeedMessage.FromString(encoded.data)
            assert message.base_version == version
            version = message.version
            held = {entry.id: entry for entry in message.services}
        assert version == newest.version
        if held["default/web"] is not None:
            assert held["default/web"] == newest.services[0]
