"""What a Service means on one node."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from kernelet.dataplane.proxy.engine import EngineError
from kernelet.dataplane.proxy.semantics import View, views
from kernelet.dataplane.routes import Backend, BackendFlag, Protocol, ServicePort, ServiceRoute

DYING = BackendFlag.SERVING | BackendFlag.TERMINATING
NODE, ZONE = "here", "east"


def packed(*addresses: str) -> tuple[bytes, ...]:
    return tuple(ip_address(address).packed for address in addresses)


def backend(
    last: int, node: str = NODE, flags: BackendFlag = BackendFlag.READY, zones: tuple[str, ...] = ()
) -> Backend:
    return Backend(packed(f"10.244.0.{last}")[0], 8080, flags, node, 1, zones)


def six(last: int) -> Backend:
    return replace(backend(last), address=packed(f"fd00:244::{last}")[0])


def service(*backends: Backend, **fields: object) -> ServiceRoute:
    made = ServiceRoute("default/web", packed("10.96.0.1"), (ServicePort("http", Protocol.TCP, 80, 30080, backends),))
    return replace(made, **fields)


def view(route: ServiceRoute, node: str = NODE, zone: str = ZONE) -> View:
    """The only one."""
    [found] = views(route, node, zone)
    return found


def test_there_is_a_view_for_each_port_and_family() -> None:
    ports = tuple(ServicePort(name, Protocol.UDP, port, 0, ()) for name, port in (("a", 80), ("b", 81)))
    found = views(service(ports=ports, cluster_ips=packed("10.96.0.1", "fd00:96::1")), NODE, ZONE)
    assert sorted((item.length, item.port) for item in found) == [(4, 80), (4, 81), (16, 80), (16, 81)]


def test_each_family_has_its_own_addresses_and_backends() -> None:
    route = service(
        backend(1),
        six(2),
        cluster_ips=packed("10.96.0.1", "fd00:96::1"),
        external_ips=packed("198.51.100.1"),
        balancer_ips=packed("2001:db8::1"),
    )
    four, other = sorted(views(route, NODE, ZONE))
    assert (four.cluster_ips, four.external_ips, four.balancer_ips) == (
        [*packed("10.96.0.1")],
        [*packed("198.51.100.1")],
        [],
    )
    assert (other.cluster_ips, other.external_ips, other.balancer_ips) == (
        [*packed("fd00:96::1")],
        [],
        [*packed("2001:db8::1")],
    )
    assert (four.everyone, other.everyone) == ([backend(1)], [six(2)])


def test_a_service_without_addresses_has_no_views() -> None:
    assert not list(views(service(backend(1), cluster_ips=()), NODE, ZONE))


def test_node_ports_are_open_in_the_families_of_the_cluster_ips_only() -> None:
    route = service(backend(1), six(2), external_ips=packed("2001:db8::1"))
    assert {item.length: item.node_port for item in views(route, NODE, ZONE)} == {4: 30080, 16: 0}


def test_an_address_of_no_family_names_the_service() -> None:
    with pytest.raises(EngineError, match=r"default/web has an address of 5 bytes"):
        list(views(service(external_ips=(bytes(5),)), NODE, ZONE))


def test_ready_backends_are_chosen_whatever_else_they_are() -> None:
    published = backend(1, flags=BackendFlag.READY | BackendFlag.TERMINATING)
    found = view(service(published, backend(2, flags=BackendFlag.NONE), backend(3, flags=DYING)))
    assert found.everyone == found.internal == [published]


@pytest.mark.parametrize("flags", [BackendFlag.NONE, BackendFlag.SERVING, BackendFlag.TERMINATING])
def test_where_none_is_ready_only_those_serve_that_both_serve_and_terminate(flags: BackendFlag) -> None:
    dying = backend(1, flags=DYING)
    assert view(service(dying, backend(2, flags=flags))).everyone == [dying]
    assert view(service(backend(2, flags=flags))).everyone == []


def test_without_policies_everybody_is_alike() -> None:
    found = view(service(backend(1), backend(2, "there")))
    assert found.internal is found.everyone
    assert found.outsiders is None


def test_internal_policy_local_is_for_cluster_ips_only() -> None:
    found = view(service(backend(1), backend(2, "there"), internal_local=True))
    assert (found.internal, found.everyone, found.outsiders) == ([backend(1)], [backend(1), backend(2, "there")], None)


def test_external_policy_local_is_for_outsiders_only() -> None:
    found = view(service(backend(1), backend(2, "there"), external_local=True))
    assert found.internal is found.everyone
    assert found.outsiders == [backend(1)]
    assert view(service(backend(2, "there"), external_local=True)).outsiders == []


def test_the_last_resort_of_a_policy_local_is_this_nodes_own() -> None:
    dying = backend(1, flags=DYING)
    found = view(service(dying, backend(2, "there"), internal_local=True, external_local=True))
    assert (found.internal, found.outsiders, found.everyone) == ([dying], [dying], [backend(2, "there")])


def test_a_node_without_a_name_is_home_to_no_backend() -> None:
    found = view(service(backend(1, ""), internal_local=True), node="")
    assert (found.internal, found.here) == ([], [])


def test_backends_of_this_node_that_may_be_chosen_may_meet_themselves() -> None:
    assert view(service(backend(1), backend(2, "there"), backend(3, flags=BackendFlag.NONE))).here == [backend(1)]


EAST, WEST = backend(1, zones=("east",)), backend(2, "there", zones=("west",))
BOTH, NOWHERE = backend(3, zones=("east", "west")), backend(4)


@pytest.mark.parametrize(
    ("zone", "backends", "chosen"),
    [
        ("east", (EAST, WEST, BOTH), [EAST, BOTH]),
        ("west", (EAST, WEST, BOTH), [WEST, BOTH]),
        ("north", (EAST, WEST), [EAST, WEST]),
        ("", (EAST, WEST), [EAST, WEST]),
        ("east", (EAST, WEST, NOWHERE), [EAST, WEST, NOWHERE]),
        ("east", (WEST, replace(EAST, flags=BackendFlag.NONE)), [WEST]),
        ("east", (EAST, WEST, replace(NOWHERE, flags=BackendFlag.NONE)), [EAST]),
        ("east", (replace(EAST, flags=DYING), replace(WEST, flags=DYING)), [replace(EAST, flags=DYING)]),
        ("east", (), []),
    ],
)
def test_zones_are_kept_apart_where_every_usable_backend_has_hints_and_one_is_for_the_zone(
    zone: str, backends: tuple[Backend, ...], chosen: list[Backend]
) -> None:
    assert view(service(*backends), zone=zone).everyone == chosen


def test_a_policy_local_knows_no_zones() -> None:
    far_away = backend(1, zones=("west",))
    found = view(service(far_away, backend(2, "there", zones=("east",)), internal_local=True, external_local=True))
    assert (found.internal, found.outsiders) == ([far_away], [far_away])


def test_source_ranges_count_in_their_own_family() -> None:
    ranges = ((packed("192.0.2.0")[0], 24), (packed("2001:db8::")[0], 32))
    route = service(balancer_ips=packed("198.51.100.1", "2001:db8::1"), source_ranges=ranges)
    assert {item.length: item.sources for item in views(route, NODE, ZONE)} == {4: [ranges[0]], 16: [ranges[1]]}


def test_where_ranges_are_of_the_other_family_only_nobody_may_use_the_balancers_address() -> None:
    ranges = ((packed("2001:db8::")[0], 32),)
    found = view(
        service(balancer_ips=packed("198.51.100.1"), external_ips=packed("198.51.100.2"), source_ranges=ranges)
    )
    assert (found.balancer_ips, found.external_ips, found.sources) == ([], [*packed("198.51.100.2")], [])


def test_affinity_and_consistency_are_passed_on() -> None:
    found = view(service(affinity_seconds=60, consistent=True))
    assert (found.affinity_seconds, found.consistent) == (60, True)
