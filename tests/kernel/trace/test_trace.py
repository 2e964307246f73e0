"""What `kernelet trace` learns from the running kernel, over each way that a service's connections take."""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from pathlib import Path

import pytest

from kernelet.agents.trace.tracer import Connection, DroppedPacket, Record
from kernelet.dataplane.proxy.ebpf.engine import EbpfEngine
from kernelet.dataplane.proxy.nftables.engine import NftablesEngine
from kernelet.dataplane.routes import Protocol

from ..ebpf.conftest import Node
from ..proxy.topology import Feed, Pod, Topology, service
from .conftest import Watcher, endpoint, watching

VIP, VIP6 = "10.96.0.1", "fd00:96::1"
NFTABLES_DROP = """
table inet kl_test_drop {
    chain forward {
        type filter hook forward priority 0
        tcp dport 8080 drop
    }
}
"""


def connections(records: list[Record]) -> list[Connection]:
    return [record for record in records if isinstance(record, Connection)]


def drops(records: list[Record]) -> list[DroppedPacket]:
    return [record for record in records if isinstance(record, DroppedPacket)]


def test_connections_through_nat_show_the_backend_that_answered(
    topology: Topology, nftables: NftablesEngine, feed: Feed, watcher: Watcher
) -> None:
    route = service("web", VIP, topology.web1.backend(), topology.far.backend())
    nftables.apply(feed.change(route))
    watcher.follow(route)
    answers = [topology.client.ask(VIP) for _ in range(20)]
    found = connections(watcher.until(lambda records: len(connections(records)) >= 20))
    assert [one.backend for one in found] == [endpoint(name, 8080) for name in answers]
    assert {one.service for one in found} == {endpoint(VIP, 80)}
    assert {one.client.address for one in found} == {socket.inet_aton(topology.client.address)}
    assert {(one.node, one.error, one.translated) for one in found} == {("here", "", True)}
    assert all(0 < one.microseconds < 5_000_000 for one in found)
    inode = Path("/run/netns", topology.client.namespace.name).stat().st_ino
    assert {one.netns for one in found} == {inode}


def test_connections_that_a_socket_makes_straight_to_a_backend_show_the_service(
    node: Node, engine: EbpfEngine, feed: Feed, watcher: Watcher
) -> None:
    route = service("web", VIP, node.topology.web1.backend(), node.topology.web2.backend())
    engine.apply(feed.change(route))
    watcher.follow(route)
    answers = node.client().names(VIP, 80, 20)
    found = connections(watcher.until(lambda records: len(connections(records)) >= 20))
    assert Counter(one.backend for one in found) == Counter(endpoint(name, 8080) for name in answers)
    assert {one.service for one in found} == {endpoint(VIP, 80)}
    assert {(one.node, one.error, one.translated) for one in found} == {("here", "", False)}


def test_ipv6_connections_show_their_backend(
    topology: Topology, nftables: NftablesEngine, feed: Feed, watcher: Watcher
) -> None:
    route = service("six", VIP6, topology.web1.backend6(8081))
    nftables.apply(feed.change(route))
    watcher.follow(route)
    topology.client.ask(VIP6)
    [one] = connections(watcher.until(connections))
    assert (one.service, one.backend) == (endpoint(VIP6, 80), endpoint(topology.web1.address6, 8081))
    assert one.client.address == socket.inet_pton(socket.AF_INET6, topology.client.address6)


def test_a_refused_connection_tells_its_error_and_who_refused(
    topology: Topology, nftables: NftablesEngine, feed: Feed, watcher: Watcher
) -> None:
    route = service("web", VIP, topology.web1.backend(9999))
    nftables.apply(feed.change(route))
    watcher.follow(route)
    with pytest.raises(ConnectionRefusedError):
        topology.client.ask(VIP)
    [one] = connections(watcher.until(connections))
    assert (one.error, one.backend) == ("ECONNREFUSED", endpoint(topology.web1.address, 9999))


def test_a_service_without_backends_shows_refused_connections_without_one(
    topology: Topology, nftables: NftablesEngine, feed: Feed, watcher: Watcher
) -> None:
    route = service("web", VIP)
    nftables.apply(feed.change(route))
    watcher.follow(route)
    with pytest.raises(ConnectionRefusedError):
        topology.client.ask(VIP)
    [one] = connections(watcher.until(connections))
    assert (one.error, one.backend) == ("ECONNREFUSED", None)


def test_what_a_firewall_drops_is_shown_with_the_kernels_reason(
    topology: Topology, nftables: NftablesEngine, feed: Feed, watcher: Watcher
) -> None:
    route = service("web", VIP, topology.web1.backend())
    nftables.apply(feed.change(route))
    watcher.follow(route)
    topology.node.run("nft", "-f", "-", text=NFTABLES_DROP)
    try:
        attempt = topology.client.namespace.open()
        attempt.settimeout(0.5)
        with attempt, pytest.raises(TimeoutError):
            attempt.connect((VIP, 80))
    finally:
        topology.node.run("nft", "delete", "table", "inet", "kl_test_drop")
    watcher.until(lambda records: connections(records) and drops(records))
    first = drops(watcher.records)[0]
    assert first.drop.reason == "SKB_DROP_REASON_NETFILTER_DROP"
    assert first.drop.function.startswith(("nf_", "nft_"))  # the hook, or since 6.13 the table
    assert (first.node, first.drop.destination) == ("here", endpoint(topology.web1.address, 8080))
    [one] = connections(watcher.records)
    assert (one.error, one.backend) == ("closed", endpoint(topology.web1.address, 8080))


def test_a_datagram_that_nobody_takes_is_shown_as_a_drop_at_the_backend(
    topology: Topology, nftables: NftablesEngine, feed: Feed, watcher: Watcher
) -> None:
    route = service("dns", VIP, topology.web1.backend(9999), port=53, protocol=Protocol.UDP)
    nftables.apply(feed.change(route))
    watcher.follow(route)
    with pytest.raises(ConnectionRefusedError):
        topology.client.namespace.ask_udp(VIP, 53)
    first = drops(watcher.until(drops))[0]
    assert first.drop.reason == "SKB_DROP_REASON_NO_SOCKET"
    assert first.drop.destination == endpoint(topology.web1.address, 9999, Protocol.UDP)
    assert first.node == "here"


def test_what_a_closed_socket_had_not_read_is_no_drop(
    topology: Topology, nftables: NftablesEngine, feed: Feed, watcher: Watcher
) -> None:
    route = service("web", VIP, topology.web1.backend())
    nftables.apply(feed.change(route))
    watcher.follow(route)
    for _ in range(40):
        topology.client.ask(VIP)
    watcher.until(lambda records: len(connections(records)) >= 40)
    assert "SKB_DROP_REASON_QUEUE_PURGE" not in {one.drop.reason for one in drops(watcher.records)}


def test_other_traffic_is_not_shown(topology: Topology, nftables: NftablesEngine, feed: Feed, watcher: Watcher) -> None:
    web, other = service("web", VIP, topology.web1.backend()), service("other", "10.96.0.2", topology.web2.backend())
    nftables.apply(feed.change(web, other))
    watcher.follow(web)
    topology.client.ask("10.96.0.2")
    with contextlib.suppress(ConnectionRefusedError):
        topology.client.ask(topology.web1.address, 9999)
    topology.client.ask(VIP)
    [one] = connections(watcher.until(connections))
    assert one.service == endpoint(VIP, 80)


def test_where_sockets_are_not_redirected_a_connection_to_a_pod_itself_is_not_the_services(
    topology: Topology, nftables: NftablesEngine, feed: Feed
) -> None:
    route = service("web", VIP, topology.web1.backend())
    nftables.apply(feed.change(route))
    with watching(topology, redirects=False) as watcher:
        watcher.follow(route)
        topology.client.ask(topology.web1.address, 8080)
        topology.client.ask(VIP)
        [one] = connections(watcher.until(connections))
    assert (one.service, one.backend) == (endpoint(VIP, 80), endpoint(topology.web1.address, 8080))


def test_backends_that_come_and_go_are_followed(node: Node, engine: EbpfEngine, feed: Feed, watcher: Watcher) -> None:
    def ask(pod: Pod) -> None:
        route = service("web", VIP, pod.backend())
        engine.apply(feed.change(route))
        watcher.follow(route)
        assert node.client().names(VIP) == [pod.address]

    web1, web2 = node.topology.web1, node.topology.web2
    ask(web1)
    ask(web2)
    found = connections(watcher.until(lambda records: len(connections(records)) >= 2))
    assert [one.backend for one in found] == [endpoint(web1.address, 8080), endpoint(web2.address, 8080)]
