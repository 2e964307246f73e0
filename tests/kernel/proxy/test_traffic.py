"""Connections through service addresses and node ports, in real namespaces."""

from __future__ import annotations

import errno
import itertools
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address

import pytest

from kernelet.dataplane.proxy.nftables import NftablesEngine
from kernelet.dataplane.routes import Backend, BackendFlag, Protocol, ServicePort, ServiceRoute

from .topology import NODE_ADDRESS, OUTSIDE_ADDRESS, Feed, Topology, service

VIP, PORT = "10.96.0.1", 30080
VIP6 = "fd00:96::1"
DYING = BackendFlag.SERVING | BackendFlag.TERMINATING


def seconds_to_refuse(topology: Topology, address: str, port: int = 80) -> float:
    begin = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        topology.client.ask(address, port)
    return time.monotonic() - begin


def test_a_pod_reaches_every_backend_of_a_cluster_ip_about_equally(
    topology: Topology, engine: NftablesEngine, feed: Feed
) -> None:
    pods = (topology.web1, topology.web2, topology.far)
    engine.apply(feed.change(service("web", VIP, *(pod.backend() for pod in pods))))
    answers = Counter(topology.client.ask(VIP) for _ in range(150))
    assert answers.keys() == {pod.address for pod in pods}
    assert min(answers.values()) > 20
    assert topology.servers[topology.far.address].peers[-1] == topology.client.address, "a pod keeps its address"


def test_the_node_itself_reaches_a_cluster_ip(topology: Topology, engine: NftablesEngine, feed: Feed) -> None:
    engine.apply(feed.change(service("web", VIP, topology.web1.backend(), topology.far.backend())))
    answers = {topology.node.ask(VIP, 80) for _ in range(40)}
    assert answers == {topology.web1.address, topology.far.address}


def test_an_ipv6_cluster_ip_leads_to_ipv6_backends(topology: Topology, engine: NftablesEngine, feed: Feed) -> None:
    pods = (topology.web1, topology.web2)
    route = service("web", VIP, *(pod.backend() for pod in pods), *(pod.backend6(8081) for pod in pods))
    route = replace(route, cluster_ips=(*route.cluster_ips, ip_address(VIP6).packed))
    engine.apply(feed.change(route))
    assert {topology.client.ask(VIP6) for _ in range(40)} == {pod.address for pod in pods}
    assert topology.node.ask(VIP6, 80) in {pod.address for pod in pods}
    with pytest.raises(ConnectionRefusedError):
        topology.client.ask(VIP6, 81)


def test_udp_goes_to_a_backend_and_back(topology: Topology, engine: NftablesEngine, feed: Feed) -> None:
    engine.apply(feed.change(service("dns", VIP, topology.web1.backend(), protocol=Protocol.UDP, node_port=30053)))
    assert topology.client.namespace.ask_udp(VIP, 80) == topology.web1.address
    assert topology.node.ask_udp(VIP, 80) == topology.web1.address
    assert topology.outside.ask_udp(NODE_ADDRESS, 30053) == topology.web1.address


def test_a_node_port_answers_outside_clients_pods_the_node_and_its_loopback(
    topology: Topology, engine: NftablesEngine, feed: Feed
) -> None:
    engine.apply(feed.change(service("web", VIP, topology.web1.backend(), node_port=PORT)))
    assert topology.outside.ask(NODE_ADDRESS, PORT) == topology.web1.address
    assert topology.servers[topology.web1.address].peers[-1] != OUTSIDE_ADDRESS, (
        "masqueraded, so that answers come back"
    )
    assert topology.client.ask(NODE_ADDRESS, PORT) == topology.web1.address
    assert topology.node.ask(NODE_ADDRESS, PORT) == topology.web1.address
    assert topology.node.ask("127.0.0.1", PORT) == topology.web1.address


def test_loopback_addresses_of_the_node_are_closed_to_the_outside(
    topology: Topology, engine: NftablesEngine, feed: Feed
) -> None:
    topology.node.serve("127.0.0.9", 9090, "private")
    topology.outside.sysctl("net.ipv4.conf.all.route_localnet", "1")
    topology.outside.ip(
        "route del local 127.0.0.0/8 dev lo table local",
        f"route add 127.0.0.9 via {NODE_ADDRESS} src {OUTSIDE_ADDRESS}",
    )
    try:
        with pytest.raises(TimeoutError):
            topology.outside.ask("127.0.0.9", 9090, timeout=0.5)
        topology.node.run("nft", "flush chain ip kernelet prerouting")
        assert topology.outside.ask("127.0.0.9", 9090) == "private", "it is the table that closes them"
    finally:
        topology.outside.ip("route del 127.0.0.9", "route add local 127.0.0.0/8 dev lo table local")


def test_an_external_ip_is_routed_for_outside_clients(topology: Topology, engine: NftablesEngine, feed: Feed) -> None:
    engine.apply(feed.change(service("web", VIP, topology.far.backend(), external_ips=("198.51.100.7",))))
    assert topology.outside.ask("198.51.100.7", 80) == topology.far.address
    assert topology.client.ask("198.51.100.7") == topology.far.address


def test_a_backend_added_or_removed_counts_for_the_next_connection(
    topology: Topology, engine: NftablesEngine, feed: Feed
) -> None:
    one, two = topology.web1.backend(), topology.web2.backend()
    engine.apply(feed.change(service("web", VIP, one)))
    assert {topology.client.ask(VIP) for _ in range(10)} == {topology.web1.address}
    engine.apply(feed.change(service("web", VIP, one, two)))
    assert {topology.client.ask(VIP) for _ in range(40)} == {topology.web1.address, topology.web2.address}
    engine.apply(feed.change(service("web", VIP, two)))
    assert {topology.client.ask(VIP) for _ in range(20)} == {topology.web2.address}


def test_a_service_without_backends_and_an_unknown_port_refuse_at_once(
    topology: Topology, engine: NftablesEngine, feed: Feed
) -> None:
    engine.apply(feed.change(service("web", VIP, node_port=PORT, external_ips=("198.51.100.7",))))
    assert seconds_to_refuse(topology, VIP) < 0.5
    assert seconds_to_refuse(topology, VIP, 81) < 0.5
    assert seconds_to_refuse(topology, "10.96.77.77") < 0.5
    assert seconds_to_refuse(topology, "198.51.100.7") < 0.5
    for where, address, port in ((topology.node, VIP, 80), (topology.outside, NODE_ADDRESS, PORT)):
        with pytest.raises(ConnectionRefusedError):
            where.ask(address, port)
    with pytest.raises(ConnectionRefusedError):
        topology.client.namespace.ask_udp(VIP, 80)


def test_a_pod_reaches_itself_through_its_service(topology: Topology, engine: NftablesEngine, feed: Feed) -> None:
    engine.apply(feed.change(service("web", VIP, topology.web1.backend())))
    assert topology.web1.ask(VIP) == topology.web1.address


def test_the_node_reaches_a_backend_that_runs_on_the_node(
    topology: Topology, engine: NftablesEngine, feed: Feed
) -> None:
    topology.node.serve(NODE_ADDRESS, 8099, "agent")
    agent = replace(topology.web1.backend(8099), address=ip_address(NODE_ADDRESS).packed)
    engine.apply(feed.change(service("dns", VIP, agent, internal_local=True)))
    assert topology.node.ask(VIP, 80) == "agent"
    assert topology.client.ask(VIP) == "agent"


def test_terminating_backends_serve_only_where_none_is_ready(
    topology: Topology, engine: NftablesEngine, feed: Feed
) -> None:
    dying = topology.web1.backend(flags=DYING)
    engine.apply(feed.change(service("web", VIP, dying, topology.web2.backend())))
    assert {topology.client.ask(VIP) for _ in range(20)} == {topology.web2.address}
    engine.apply(feed.change(service("web", VIP, dying, topology.web2.backend(flags=BackendFlag.TERMINATING))))
    assert {topology.client.ask(VIP) for _ in range(10)} == {topology.web1.address}


def test_internal_traffic_policy_local_uses_backends_of_this_node_only(
    topology: Topology, engine: NftablesEngine, feed: Feed
) -> None:
    far = topology.far.backend()
    engine.apply(feed.change(service("web", VIP, topology.web1.backend(), far, internal_local=True)))
    assert {topology.client.ask(VIP) for _ in range(20)} == {topology.web1.address}
    engine.apply(feed.change(service("web", VIP, far, internal_local=True)))
    assert seconds_to_refuse(topology, VIP) < 0.5


def test_external_traffic_policy_local_keeps_the_client_address_and_drops_without_local_backends(
    topology: Topology, engine: NftablesEngine, feed: Feed
) -> None:
    far = topology.far.backend()
    engine.apply(feed.change(service("web", VIP, topology.web1.backend(), far, node_port=PORT, external_local=True)))
    assert {topology.outside.ask(NODE_ADDRESS, PORT) for _ in range(20)} == {topology.web1.address}
    assert topology.servers[topology.web1.address].peers[-1] == OUTSIDE_ADDRESS
    assert {topology.node.ask(NODE_ADDRESS, PORT) for _ in range(40)} == {topology.web1.address, topology.far.address}
    engine.apply(feed.change(service("web", VIP, far, node_port=PORT, external_local=True)))
    with pytest.raises(TimeoutError):
        topology.outside.ask(NODE_ADDRESS, PORT, timeout=0.5)
    assert topology.client.ask(NODE_ADDRESS, PORT) == topology.far.address


def test_an_established_connection_outlives_its_route(topology: Topology, engine: NftablesEngine, feed: Feed) -> None:
    engine.apply(feed.change(service("web", VIP, topology.web1.backend())))
    with topology.client.namespace.connect(VIP, 80) as connection:
        stream = connection.makefile("rw")
        assert stream.readline().strip() == topology.web1.address
        engine.apply(feed.change(service("web", VIP, topology.web2.backend())))
        engine.apply(feed.change(removed=("web",)))
        stream.write("still here\n")
        stream.flush()
        assert stream.readline() == "still here\n"


def test_a_udp_client_that_keeps_its_port_moves_to_another_backend(
    topology: Topology, engine: NftablesEngine, feed: Feed
) -> None:
    route = service("dns", VIP, topology.web1.backend(), protocol=Protocol.UDP)
    engine.apply(feed.change(route))
    client = topology.client.namespace.open(socket.SOCK_DGRAM)
    assert topology.client.namespace.ask_udp(VIP, 80, via=client) == topology.web1.address
    engine.apply(feed.change(service("dns", VIP, topology.web2.backend(), protocol=Protocol.UDP)))
    assert topology.client.namespace.ask_udp(VIP, 80, via=client) == topology.web2.address


def test_a_connection_attempt_to_a_backend_that_does_not_answer_moves_on_once_that_is_removed(
    topology: Topology, engine: NftablesEngine, feed: Feed
) -> None:
    """A node that lost its power answers nothing: the next SYN of the same attempt must reach a backend that lives."""
    engine.apply(feed.change(service("web", VIP, topology.web1.backend())))
    topology.web1.namespace.ip(f"route add blackhole {topology.client.address}/32")
    try:
        attempt = topology.client.namespace.open()
        attempt.setblocking(False)
        assert attempt.connect_ex((VIP, 80)) == errno.EINPROGRESS
        engine.apply(feed.change(service("web", VIP, topology.web2.backend())))
        engine.tidy()
        attempt.settimeout(5)  # the second SYN comes after one second, the third after three (RFC 6298)
        with attempt, attempt.makefile() as stream:
            assert stream.readline().strip() == topology.web2.address
    finally:
        topology.web1.namespace.ip(f"route del blackhole {topology.client.address}/32")


def test_a_udp_client_that_was_there_before_the_service_is_translated_too(
    topology: Topology, engine: NftablesEngine, feed: Feed
) -> None:
    topology.node.serve(NODE_ADDRESS, 30053, "node", socket.SOCK_DGRAM)
    client = topology.outside.open(socket.SOCK_DGRAM)
    assert topology.outside.ask_udp(NODE_ADDRESS, 30053, via=client) == "node"
    engine.apply(feed.change(service("dns", VIP, topology.web2.backend(), protocol=Protocol.UDP, node_port=30053)))
    assert topology.outside.ask_udp(NODE_ADDRESS, 30053, via=client) == topology.web2.address


def test_connections_are_counted_by_service(topology: Topology, engine: NftablesEngine, feed: Feed) -> None:
    engine.apply(feed.change(service("web", VIP, topology.web1.backend()), service("idle", "10.96.0.2")))
    for _ in range(7):
        topology.client.ask(VIP)
    engine.apply(feed.change(service("web", VIP, topology.web1.backend(), topology.web2.backend())))
    topology.node.ask(VIP, 80)
    assert {row.service: row.connections for row in engine.counters()} == {"default/web": 8, "default/idle": 0}


def test_no_connection_fails_while_backends_change_all_the_time(
    topology: Topology, engine: NftablesEngine, feed: Feed
) -> None:
    backends = [Backend(ip_address(topology.web1.address).packed, 9000 + number) for number in range(16)]
    for backend in backends:
        topology.web1.serve(backend.port)
    engine.apply(feed.change(service("web", VIP, *backends)))
    stopped, enough = threading.Event(), threading.Event()

    def change() -> None:
        for count in itertools.count():
            if stopped.is_set():
                return
            engine.apply(feed.change(service("web", VIP, *(backends if count % 2 else backends[-1:]))))
            if count == 500:
                enough.set()

    with ThreadPoolExecutor() as pool:
        changing = pool.submit(change)
        try:
            asked = 0
            while not changing.done() and (asked < 1500 or not enough.is_set()):
                assert topology.client.ask(VIP, timeout=0.9) == topology.web1.address
                asked += 1
        finally:
            stopped.set()
        changing.result(10)


def test_two_ports_of_a_service_are_routed_apart(topology: Topology, engine: NftablesEngine, feed: Feed) -> None:
    ports = (
        ServicePort("a", Protocol.TCP, 80, 0, (topology.web1.backend(),)),
        ServicePort("b", Protocol.TCP, 81, 0, (topology.web2.backend(),)),
    )
    engine.apply(feed.change(ServiceRoute("default/web", (ip_address(VIP).packed,), ports)))
    assert (topology.client.ask(VIP, 80), topology.client.ask(VIP, 81)) == (
        topology.web1.address,
        topology.web2.address,
    )
