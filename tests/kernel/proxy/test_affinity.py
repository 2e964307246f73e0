"""Session affinity, source ranges and weights, as the kernel carries them out."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_address

import pytest

from kernelet.dataplane.proxy.nftables import ruleset
from kernelet.dataplane.proxy.nftables.engine import NftablesEngine
from kernelet.dataplane.routes import Backend, Prefix, Protocol, ServiceRoute
from kernelet.ext.nft import AF_INET, Socket

from .topology import CONFIG, NODE_ADDRESS, Feed, Topology, service

VIP, VIP6, BALANCER, PORT = "10.96.0.1", "fd00:96::1", "198.51.100.7", 30080


def sticky(name: str, ip: str, *backends: Backend, seconds: int = 600, node_port: int = 0) -> ServiceRoute:
    return replace(service(name, ip, *backends, node_port=node_port), affinity_seconds=seconds)


def prefix(text: str) -> Prefix:
    address, bits = text.split("/")
    return ip_address(address).packed, int(bits)


def balanced(topology: Topology, *ranges: str, external_local: bool = False) -> ServiceRoute:
    """A service with a balancer's address that only these networks may use."""
    made = service("web", VIP, topology.web1.backend(), node_port=PORT, external_local=external_local)
    return replace(made, balancer_ips=(ip_address(BALANCER).packed,), source_ranges=tuple(map(prefix, ranges)))


def kept(topology: Topology, name: str = "affinity") -> int:
    """How many clients the kernel keeps in one of the maps."""
    with topology.node.entered(), Socket() as netlink:
        return len(netlink.elements("kernelet", AF_INET, name))


def test_a_client_stays_with_its_backend_while_others_come_and_go(
    topology: Topology, engine: NftablesEngine, feed: Feed
) -> None:
    pods = [topology.web1, topology.web2, topology.far]
    spare = [Backend(bytes((10, 244, 7, number)), 80) for number in range(1, 4)]
    engine.apply(feed.change(sticky("web", VIP, *(pod.backend() for pod in pods))))
    first = topology.client.ask(VIP)
    assert {topology.client.ask(VIP) for _ in range(20)} == {first}
    home = next(pod for pod in pods if pod.address == first)
    for others in ([], spare, spare[1:], [pod.backend() for pod in pods if pod is not home]):
        engine.apply(feed.change(sticky("web", VIP, *others, home.backend())))
        assert {topology.client.ask(VIP) for _ in range(10)} == {first}
    engine.apply(feed.change(sticky("web", VIP, *(pod.backend() for pod in pods if pod is not home))))
    second = topology.client.ask(VIP)
    assert second != first
    assert {topology.client.ask(VIP) for _ in range(10)} == {second}, "and stays with the next one"
    engine.apply(feed.change(sticky("web", VIP, *(pod.backend() for pod in pods))))
    assert {topology.client.ask(VIP) for _ in range(10)} == {second}
    assert kept(topology) == 1


def test_clients_are_kept_apart_and_by_service(topology: Topology, engine: NftablesEngine, feed: Feed) -> None:
    backends = [pod.backend() for pod in (topology.web1, topology.web2, topology.far)]
    engine.apply(feed.change(*(sticky(f"s{number}", f"10.96.0.{number}", *backends) for number in range(1, 31))))
    answers = [topology.client.ask(f"10.96.0.{number}") for number in range(1, 31)]
    assert len(set(answers)) == 3
    assert [topology.client.ask(f"10.96.0.{number}") for number in range(1, 31)] == answers
    others = [topology.node.ask(f"10.96.0.{number}", 80) for number in range(1, 31)]
    assert others != answers
    assert [topology.node.ask(f"10.96.0.{number}", 80) for number in range(1, 31)] == others


def test_affinity_lives_through_a_restart_and_a_repair(topology: Topology, engine: NftablesEngine, feed: Feed) -> None:
    pods = (topology.web1, topology.web2, topology.far)
    engine.apply(feed.change(sticky("web", VIP, *(pod.backend() for pod in pods))))
    first = topology.client.ask(VIP)
    engine.close()
    with topology.node.entered():
        second = NftablesEngine(CONFIG)
        second.start()
    try:
        second.apply(feed.snapshot())
        assert second.written == 0
        assert {topology.client.ask(VIP) for _ in range(10)} == {first}
        topology.node.run("nft", "flush map ip kernelet backend_ids; flush map ip kernelet backends")
        assert second.repair() == 3 + 2 * 3
        assert {topology.client.ask(VIP) for _ in range(10)} == {first}
        second.apply(feed.change(service("web", VIP, *(pod.backend() for pod in pods))))
        assert {topology.client.ask(VIP) for _ in range(40)} == {pod.address for pod in pods}, "affinity is off"
    finally:
        second.close()


def test_every_connection_renews_the_time_that_a_client_is_kept(
    topology: Topology, engine: NftablesEngine, feed: Feed
) -> None:
    engine.apply(feed.change(sticky("web", VIP, topology.web1.backend(), topology.web2.backend(), seconds=100)))
    first = topology.client.ask(VIP)
    shorten(topology, 40)
    assert seconds_left(topology) <= 40
    assert topology.client.ask(VIP) == first
    assert 90 < seconds_left(topology) <= 100


def seconds_left(topology: Topology) -> int:
    """For how long the one client that is kept still is."""
    listed = topology.node.run("nft", "list map ip kernelet affinity")
    found = re.search(r"expires (?:([0-9]+)m(?!s))?(?:([0-9]+)s)?", listed)
    assert found is not None, listed
    return 60 * int(found[1] or 0) + int(found[2] or 0)


def shorten(topology: Topology, seconds: int) -> None:
    """Leaves the one client that is kept so much time, as if the rest had passed."""
    listed = topology.node.run("nft", "list map ip kernelet affinity")
    found = re.search(r"elements = { (.*) timeout .* : (.*) }", listed)
    assert found is not None, listed
    element = f"{found[1]} timeout 100s expires {seconds}s : {found[2]}"
    topology.node.run("nft", f"flush map ip kernelet affinity; add element ip kernelet affinity {{ {element} }}")


def test_affinity_holds_for_ipv6_udp_and_node_ports(topology: Topology, engine: NftablesEngine, feed: Feed) -> None:
    pods = (topology.web1, topology.web2)
    six = replace(sticky("six", VIP, *(pod.backend6(8081) for pod in pods)), cluster_ips=(ip_address(VIP6).packed,))
    udp = replace(
        service("dns", "10.96.0.2", *(pod.backend() for pod in pods), protocol=Protocol.UDP), affinity_seconds=600
    )
    node = sticky("node", "10.96.0.3", *(pod.backend() for pod in pods), node_port=PORT)
    local = replace(
        sticky("local", "10.96.0.4", *(pod.backend() for pod in pods), node_port=PORT + 1), external_local=True
    )
    engine.apply(feed.change(six, udp, node, local))
    assert len({topology.client.ask(VIP6) for _ in range(15)}) == 1
    assert len({topology.client.namespace.ask_udp("10.96.0.2", 80) for _ in range(15)}) == 1
    assert len({topology.outside.ask(NODE_ADDRESS, PORT) for _ in range(15)}) == 1
    assert len({topology.outside.ask(NODE_ADDRESS, PORT + 1) for _ in range(15)}) == 1
    assert kept(topology, "nodeport_affinity") == kept(topology, "local_nodeport_affinity") == 1
    engine.apply(feed.change(removed=("six", "udp", "node", "local")))
    assert engine.repair() == 0


def test_a_full_affinity_map_breaks_no_connection(
    topology: Topology, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ruleset, "MOST_CLIENTS", 1)
    with topology.node.entered():
        engine = NftablesEngine(CONFIG)
        engine.start()
    try:
        backends = (topology.web1.backend(), topology.web2.backend())
        engine.apply(feed.change(sticky("web", VIP, *backends)))
        first = topology.client.ask(VIP)
        assert len({topology.far.ask(VIP) for _ in range(40)}) == 2, "balanced like any other"
        assert {topology.client.ask(VIP) for _ in range(10)} == {first}
    finally:
        engine.close(keep=False)


def test_a_person_can_list_affinity_with_nft(topology: Topology, engine: NftablesEngine, feed: Feed) -> None:
    engine.apply(feed.change(sticky("web", VIP, topology.web1.backend())))
    topology.client.ask(VIP)
    listed = topology.node.run("nft", "list ruleset")
    assert "update @affinity" in listed
    assert f"{topology.client.address} . {VIP} . tcp . 80 timeout 10m" in listed


def test_source_ranges_and_affinity_go_together_and_a_restart_finds_nothing_to_write(
    topology: Topology, engine: NftablesEngine, feed: Feed
) -> None:
    route = replace(
        balanced(topology, "192.0.2.0/25", "10.0.0.0/8"),
        affinity_seconds=77,
        cluster_ips=(ip_address(VIP).packed, ip_address(VIP6).packed),
        balancer_ips=(ip_address(BALANCER).packed, ip_address("2001:db8:77::1").packed),
    )
    route = replace(route, source_ranges=(*route.source_ranges, (ip_address("2001:db8::").packed, 33)))
    engine.apply(feed.change(route))
    assert topology.outside.ask(BALANCER, 80) == topology.web1.address
    engine.close()
    with topology.node.entered():
        second = NftablesEngine(CONFIG)
        second.start()
    try:
        second.apply(feed.snapshot())
        assert second.written == 0
        second.apply(feed.change(removed=("web",)))
        assert kept(topology, "sources") == kept(topology, "backends") == 0
    finally:
        second.close()


def test_connections_to_node_ports_are_counted(topology: Topology, engine: NftablesEngine, feed: Feed) -> None:
    engine.apply(
        feed.change(
            service("a", VIP, topology.web1.backend(), node_port=PORT),
            service("b", "10.96.0.2", topology.web1.backend(), node_port=PORT + 1, external_local=True),
        )
    )
    for _ in range(3):
        topology.outside.ask(NODE_ADDRESS, PORT)
        topology.outside.ask(NODE_ADDRESS, PORT + 1)
        topology.node.ask(NODE_ADDRESS, PORT + 1)
    assert {row.service: row.connections for row in engine.counters()} == {"default/a": 3, "default/b": 6}
