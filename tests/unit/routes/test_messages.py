"""What a Service or a Node is told to nodes as, and that they understand it."""

from __future__ import annotations

import json
import logging
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightkube.models.core_v1 import (
    LoadBalancerIngress,
    LoadBalancerStatus,
    Node,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
)
from lightkube.models.discovery_v1 import Endpoint, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone
from lightkube.models.meta_v1 import ObjectMeta

from kernelet.agents.routefeed import decode
from kernelet.core.api.models import to_model
from kernelet.core.routes.compiler import Compiler
from kernelet.core.routes.messages import compile_peer, compile_service
from kernelet.dataplane.routes import Backend, ServiceRoute
from kernelet.proto import routes_pb2 as pb

READY = pb.BACKEND_READY | pb.BACKEND_SERVING


def service(*, annotations: dict[str, str] | None = None, ingress: str = "203.0.113.5", **spec: object) -> Service:
    return Service(
        metadata=ObjectMeta(name="web", namespace="shop", annotations=annotations),
        spec=ServiceSpec(clusterIP="10.96.0.7", ports=[ServicePort(port=80, name="http", protocol="TCP")], **spec),
        status=ServiceStatus(loadBalancer=LoadBalancerStatus(ingress=[LoadBalancerIngress(ip=ingress)])),
    )


def endpoint(number: int, *zones: str, node: str = "n1") -> Endpoint:
    hints = EndpointHints(forZones=[ForZone(name=zone) for zone in zones]) if zones else None
    return Endpoint(addresses=[f"10.244.1.{number}"], nodeName=node, hints=hints)


def slice_of(*endpoints: Endpoint, weights: object = None, name: str = "web-1", port: int = 8080) -> EndpointSlice:
    text = weights if isinstance(weights, str) else json.dumps(weights)
    return EndpointSlice(
        addressType="IPv4",
        endpoints=list(endpoints),
        ports=[EndpointPort(name="http", port=port, protocol="TCP")],
        metadata=ObjectMeta(name=name, annotations=None if weights is None else {"kernelet.dev/weights": text}),
    )


def route(made: Service, *slices: EndpointSlice) -> ServiceRoute:
    """As a node holds it."""
    message = compile_service("shop/web", made, slices, lambda _: READY)
    assert message is not None
    sent = pb.FeedMessage.FromString(pb.FeedMessage(services=[message]).SerializeToString())
    return decode(sent).services[0]


def backends(made: Service, *slices: EndpointSlice) -> list[Backend]:
    return list(route(made, *slices).ports[0].backends)


def test_source_ranges_are_those_of_the_load_balancer_in_one_form() -> None:
    asked = ["198.51.100.7/24", " 2001:db8::/32 ", "198.51.100.9/24", "nonsense", "192.0.2.1"]
    found = route(service(type="LoadBalancer", loadBalancerSourceRanges=asked))
    assert found.balancer_ips == (bytes([203, 0, 113, 5]),)
    assert found.source_ranges == (
        (bytes.fromhex("20010db8") + bytes(12), 32), (bytes([192, 0, 2, 1]), 32), (bytes([198, 51, 100, 0]), 24),
    )  # fmt: skip


def test_ranges_of_which_none_is_valid_open_the_balancers_addresses_to_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        found = route(service(type="LoadBalancer", loadBalancerSourceRanges=["10.0.0.0/33"]))
    assert (found.balancer_ips, found.source_ranges) == ((), ())
    assert found.cluster_ips == (bytes([10, 96, 0, 7]),)
    assert "shop/web" in caplog.text


def test_what_belongs_to_a_load_balancer_is_told_of_no_other_service() -> None:
    fields = {"loadBalancerSourceRanges": ["10.0.0.0/8"], "healthCheckNodePort": 30111}
    found = route(service(type="NodePort", externalTrafficPolicy="Local", **fields))
    assert (found.balancer_ips, found.source_ranges, found.health_check_port) == ((), (), 0)
    found = route(service(type="LoadBalancer", externalTrafficPolicy="Cluster", **fields))
    assert (found.source_ranges, found.health_check_port) == (((bytes([10, 0, 0, 0]), 8),), 0)
    assert route(service(type="LoadBalancer", externalTrafficPolicy="Local", **fields)).health_check_port == 30111


@pytest.mark.parametrize(("asked", "expected"), [("consistent", True), ("random", False), ("magic", False)])
def test_an_annotation_asks_for_consistent_balancing_and_a_wrong_one_is_named(
    asked: str, expected: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert route(service(annotations={"kernelet.dev/balancing": asked})).consistent is expected
    assert ("kernelet.dev/balancing='magic' of service shop/web" in caplog.text) is (asked == "magic")
    assert route(service()).consistent is False


def test_backends_carry_the_zones_they_are_meant_for() -> None:
    with_node = endpoint(4, "b")
    assert with_node.hints is not None
    with_node.hints.forNodes = [ForNode(name="n1")]
    found = backends(service(), slice_of(endpoint(2, "b", "a"), endpoint(3), with_node))
    assert [backend.zones for backend in found] == [("a", "b"), (), ("b",)]


def test_backends_weigh_what_the_slice_says_and_one_otherwise(caplog: pytest.LogCaptureFixture) -> None:
    weights = {"10.244.1.2": 255, "10.244.1.3": 256, "10.244.1.4": "7", "10.244.1.5": True}
    listed = [endpoint(number) for number in range(2, 7)]
    assert [backend.weight for backend in backends(service(), slice_of(*listed, weights=weights))] == [255, 1, 1, 1, 1]
    assert "10.244.1.3" in caplog.text
    for broken in ("{", "[1]"):
        assert [backend.weight for backend in backends(service(), slice_of(endpoint(2), weights=broken))] == [1]


def test_an_endpoint_in_two_slices_is_one_backend_ready_if_either_says_so() -> None:
    old, new = endpoint(2, node="old"), endpoint(2, node="new")
    slices = [slice_of(old), slice_of(new, name="web-2", weights={"10.244.1.2": 9})]
    for order in (slices, slices[::-1]):
        message = compile_service("shop/web", service(), order, lambda e: READY if e.nodeName == "old" else 6)
        assert message is not None
        (found,) = decode(pb.FeedMessage(services=[message])).services[0].ports[0].backends
        assert (found.flags, found.node, found.weight) == (READY, "old", 1)


def test_pods_that_call_different_numbers_by_one_name_are_all_backends() -> None:
    found = backends(service(), slice_of(endpoint(2)), slice_of(endpoint(3), name="web-2", port=9090))
    assert [(backend.address[-1], backend.port) for backend in found] == [(2, 8080), (3, 9090)]


_endpoints = st.lists(
    st.builds(
        lambda number, zones, node: endpoint(number, *zones, node=node),
        st.integers(2, 9), st.lists(st.sampled_from("abc"), max_size=3), st.sampled_from(["n1", "n2", "n3"]),
    ),
    max_size=12, unique_by=lambda e: e.addresses[0],
)  # fmt: skip


@settings(deadline=None)
@given(_endpoints, st.dictionaries(st.integers(2, 9), st.integers(1, 255)), st.randoms(use_true_random=False))
def test_neither_order_nor_the_spread_over_slices_is_told(
    endpoints: list[Endpoint], weights: dict[int, int], chance: random.Random
) -> None:
    named = {f"10.244.1.{number}": weight for number, weight in weights.items()}
    ranges = ["10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32"]
    first = compile_service(
        "shop/web",
        service(type="LoadBalancer", loadBalancerSourceRanges=ranges),
        [slice_of(*endpoints, weights=named)],
        lambda _: READY,
    )
    shuffled, cut = chance.sample(endpoints, len(endpoints)), chance.randint(0, len(endpoints))
    parts = [
        slice_of(*part, name=f"web-{number}", weights=named)
        for number, part in enumerate((shuffled[:cut], shuffled[cut:]))
    ]
    second = compile_service(
        "shop/web",
        service(type="LoadBalancer", loadBalancerSourceRanges=chance.sample(ranges, 3)),
        parts,
        lambda _: READY,
    )
    assert first is not None
    assert first == second
    found = decode(pb.FeedMessage(services=[first])).services[0].ports[0].backends
    assert {b.address[-1]: (b.zones, b.weight, b.node) for b in found} == {
        int(e.addresses[0].rsplit(".")[-1]): (
            tuple(sorted({zone.name for zone in (e.hints.forZones if e.hints else None) or []})),
            named.get(e.addresses[0], 1),
            e.nodeName,
        )
        for e in endpoints
    }


def labelled(zone: str) -> Node:
    return to_model(
        Node,
        {
            "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": zone} if zone else {}},
            "spec": {"podCIDR": "10.244.1.0/24"},
            "status": {"addresses": [{"type": "InternalIP", "address": "172.30.0.11"}]},
        },
    )


def test_a_node_that_moves_to_another_zone_is_a_new_version() -> None:
    compiler = Compiler("g")
    for zone in ("", "a", "b"):
        compiler.set_node("n1", labelled(zone))
        delta = compiler.flush()
        assert delta is not None
        assert [peer.zone for peer in decode(delta).peers] == [zone]
        compiler.set_node("n1", labelled(zone))
        assert compiler.flush() is None


def test_a_node_without_a_subnet_is_no_peer() -> None:
    node = labelled("a")
    node.spec = None
    assert compile_peer(node) is None
