"""Hints, weights and mirrored addresses: what slices say beyond who is ready. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from controllers_world import service
from lightkube.models.core_v1 import Endpoints, Node, Pod, Service, ServicePort
from lightkube.models.discovery_v1 import Endpoint

from kernelet.core.api.models import to_model
from kernelet.core.controllers import endpoints_model as model
from kernelet.core.controllers.endpointslicemirroring import is_mirrored, mirrored
from kernelet.core.controllers.topology import set_hints, zones_of
from kernelet.core.controllers.weights import weighted, weights


def node(name: str, zone: str = "") -> Node:
    return to_model(Node, {"metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone} if zone else {}}})


def pod(number: int, on: str = "n1", *, ready: bool = True, **metadata: Any) -> Pod:
    container = {"name": "main", "ports": [{"name": "http", "containerPort": 8000 + number}]}
    status = {
        "phase": "Running",
        "podIP": f"10.244.1.{number}",
        "podIPs": [{"ip": f"10.244.1.{number}"}, {"ip": f"fd00::{number}"}],
        "conditions": [{"type": "Ready", "status": str(ready)}],
    }
    fields = {"metadata": {"name": f"p{number}", "namespace": "d", "uid": str(number), **metadata}, "status": status}
    return to_model(Pod, fields | {"spec": {"nodeName": on, "containers": [container]}})


NODES = {"n1": node("n1", "a"), "n2": node("n2", "b"), "n3": node("n3")}


def hinted(made: Service, pods: Sequence[Pod], nodes: dict[str, Node]) -> dict[str, tuple[list[str], list[str]]]:
    """Zones and nodes of the hints, by address."""
    groups = model.desired(made, pods, nodes)
    set_hints(made, groups, zones_of(nodes.values()))
    found: dict[str, tuple[list[str], list[str]]] = {}
    for endpoint in (endpoint for listed in groups.values() for endpoint in listed):
        hints = endpoint.hints
        zones = [zone.name for zone in (hints.forZones if hints else None) or []]
        found[endpoint.addresses[0]] = zones, [entry.name for entry in (hints.forNodes if hints else None) or []]
    return found


@pytest.mark.parametrize(
    ("distribution", "nodes"),
    [("PreferClose", [[], [], []]), ("PreferSameZone", [[], [], []]), ("PreferSameNode", [["n1"], ["n2"], ["n3"]])],
)
def test_with_a_traffic_distribution_an_endpoint_is_meant_for_its_own_zone(
    distribution: str, nodes: list[list[str]]
) -> None:
    made = service("web", "d", trafficDistribution=distribution)
    found = hinted(made, [pod(1, "n1"), pod(2, "n2"), pod(3, "n3")], NODES)
    assert list(found.values()) == list(zip([["a"], ["b"], []], nodes, strict=True))


def test_nothing_is_meant_for_anybody_unless_asked_for() -> None:
    assert set(map(str, hinted(service("web", "d"), [pod(1), pod(2, "n2")], NODES).values())) == {"([], [])"}


@pytest.mark.parametrize(
    ("pods", "nodes", "expected"),
    [
        ([pod(1, "n1"), pod(2, "n2")], ["n1", "n2"], [["a"], ["b"]]),
        ([pod(1, "n1"), pod(2, "n1")], ["n1", "n2"], [["a"], ["a"]]),
        ([pod(1, "n1")], ["n1", "n2"], [[]]),  # Fewer endpoints than zones.
        ([pod(1, "n1"), pod(2, "n2", ready=False)], ["n1", "n2"], [[], []]),  # One that takes nothing is none.
        ([pod(1, "n1"), pod(2, "n2"), pod(3, "n3")], ["n1", "n2", "n3"], [[], [], []]),  # One without a zone.
        ([pod(1, "n1"), pod(2, "n1")], ["n1"], [[], []]),  # One zone needs no hints.
    ],
)
def test_automatic_hints_need_a_zone_of_every_endpoint_and_an_endpoint_for_every_zone(
    pods: list[Pod], nodes: list[str], expected: list[list[str]]
) -> None:
    made = service("web", "d", trafficDistribution="PreferClose")
    assert made.metadata
    made.metadata.annotations = {"service.kubernetes.io/topology-mode": "Auto"}
    found = hinted(made, pods, {name: NODES[name] for name in nodes})
    assert [zones for zones, _ in found.values()] == expected


def test_pods_that_call_different_numbers_by_one_name_are_in_different_slices() -> None:
    found = model.desired(service("web", "d"), [pod(1), pod(2)], {})
    assert {group[1][0][2]: [e.addresses for e in listed] for group, listed in found.items()} == {
        8001: [["10.244.1.1"]], 8002: [["10.244.1.2"]],
    }  # fmt: skip


def test_a_service_of_two_families_has_slices_of_both() -> None:
    found = model.desired(service("web", "d", ipFamilies=["IPv6", "IPv4"]), [pod(1)], {})
    assert {group[0]: listed[0].addresses for group, listed in found.items()} == {
        "IPv4": ["10.244.1.1"], "IPv6": ["fd00::1"],
    }  # fmt: skip


@pytest.mark.parametrize(("policy", "expected"), [({"restartPolicy": "Always"}, 9000), ({}, None)])
def test_a_port_of_an_init_container_counts_where_it_goes_on_running(
    policy: dict[str, str], expected: int | None
) -> None:
    init = {"name": "init", "ports": [{"name": "side", "containerPort": 9000}], **policy}
    made = to_model(Pod, {"spec": {"containers": [], "initContainers": [init]}})
    assert model.target_port(ServicePort(port=80, targetPort="side"), made) == expected


def test_weights_are_those_of_the_slices_endpoints_other_than_one_and_wrong_ones_are_one() -> None:
    given = {1: "255", 2: "0", 3: "256", 4: "heavy", 5: "1", 6: "-3", 7: "\u0663"}
    pods = [pod(number, annotations={"kernelet.dev/weight": text}) for number, text in given.items()]
    found = weights([*pods, pod(8)])
    assert found == {"10.244.1.1": 255, "fd00::1": 255}
    endpoints = [Endpoint(addresses=["10.244.1.1"]), Endpoint(addresses=["10.244.1.8"])]
    assert weighted({"mine": "x"}, endpoints, found) == {"mine": "x", "kernelet.dev/weights": '{"10.244.1.1": 255}'}
    assert weighted({"mine": "x", "kernelet.dev/weights": "{}"}, endpoints[1:], found) == {"mine": "x"}


def endpoints(*subsets: Any, **metadata: Any) -> Endpoints:
    return to_model(Endpoints, {"metadata": {"name": "web", "namespace": "d", **metadata}, "subsets": list(subsets)})


def test_mirrored_slices_keep_families_ports_and_readiness_apart(caplog: pytest.LogCaptureFixture) -> None:
    first = {
        "addresses": [{"ip": "192.0.2.1", "hostname": "db"}, {"ip": "2001:db8::1"}, {"ip": "example.org"}],
        "notReadyAddresses": [{"ip": "192.0.2.2", "nodeName": "n1"}, {"ip": "192.0.2.1"}],
        "ports": [{"name": "http", "port": 8080}],
    }
    second = {"addresses": [{"ip": "192.0.2.1"}], "ports": [{"name": "http", "port": 9090, "protocol": "UDP"}]}
    found = mirrored(endpoints(first, second))
    assert {
        (family, ports[0][2]): [(e.addresses[0], bool(e.conditions and e.conditions.ready)) for e in listed]
        for (family, ports), listed in found.items()
    } == {
        ("IPv4", 8080): [("192.0.2.1", True), ("192.0.2.2", False)],
        ("IPv6", 8080): [("2001:db8::1", True)],
        ("IPv4", 9090): [("192.0.2.1", True)],
    }
    (one, two) = found["IPv4", (("http", "TCP", 8080, ""),)]
    assert (one.hostname, two.nodeName) == ("db", "n1")
    assert "endpoints=d/web address='example.org'" in caplog.text


def test_of_a_subset_that_is_too_large_the_ready_addresses_are_mirrored() -> None:
    many = [{"ip": f"192.0.{number // 250}.{number % 250 + 1}"} for number in range(1001)]
    (found,) = mirrored(endpoints({"notReadyAddresses": many, "addresses": [{"ip": "198.51.100.1"}]})).values()
    assert len(found) == 1000
    assert found[0].addresses == ["198.51.100.1"]


def test_endpoints_are_mirrored_only_where_nobody_else_says_what_there_is() -> None:
    without = service("web", "d", selector=None)
    assert is_mirrored(without, endpoints())
    assert not is_mirrored(service("web", "d"), endpoints())
    assert not is_mirrored(without, endpoints(labels={"endpointslice.kubernetes.io/skip-mirror": "true"}))
    assert not is_mirrored(without, endpoints(annotations={"control-plane.alpha.kubernetes.io/leader": "{}"}))
    assert not is_mirrored(without, endpoints(deletionTimestamp="2026-01-01T00:00:00Z"))
