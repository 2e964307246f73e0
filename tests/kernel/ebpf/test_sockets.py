"""What processes in a hooked cgroup meet when they use a service's address."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from ipaddress import ip_address

from kernelet.dataplane.proxy.ebpf.engine import EbpfEngine
from kernelet.dataplane.proxy.ebpf.kernel import serve_namespace
from kernelet.dataplane.routes import Delta, Protocol, ServiceRoute
from kernelet.ext.bpf import AFFINITY
from kernelet.ext.libbpf import Map

from ..proxy.topology import Feed, service
from .conftest import Node

VIP, VIP6, PORT = "10.96.0.1", "fd00:96::1", 80


def conntrack_free(node: Node) -> bool:
    """Whether no packet towards a service's address has been seen: sockets went straight to the backends."""
    text = node.topology.node.run("cat", "/proc/net/nf_conntrack")
    return "10.96." not in text


def test_tcp_connections_spread_over_the_backends_and_see_the_service_as_their_peer(
    node: Node, engine: EbpfEngine, feed: Feed
) -> None:
    web1, web2 = node.topology.web1, node.topology.web2
    engine.apply(feed.change(service("web", VIP, web1.backend(), web2.backend())))
    answers = node.client().tcp(VIP, PORT, 200)
    tally = Counter(answer["name"] for answer in answers)
    assert set(tally) == {web1.address, web2.address}
    assert min(tally.values()) > 60
    assert {tuple(answer["peer"]) for answer in answers} == {(VIP, PORT)}
    assert conntrack_free(node)
    [counter] = engine.counters()
    assert (counter.service, counter.connections) == ("default/web", 200)


def test_ipv6_and_mapped_sockets_are_served_too(node: Node, engine: EbpfEngine, feed: Feed) -> None:
    web1, far = node.topology.web1, node.topology.far
    engine.apply(feed.change(service("six", VIP6, web1.backend6(8081), far.backend6(8081))))
    client = node.client()
    answers = client.tcp(VIP6, PORT, 40)
    assert {answer["name"] for answer in answers} == {web1.address, far.address}
    assert {tuple(answer["peer"]) for answer in answers} == {(VIP6, PORT)}
    engine.apply(feed.change(service("four", VIP, web1.backend())))
    [answer] = client.tcp(VIP, PORT, 1, True)
    assert answer == {"name": web1.address, "peer": [f"::ffff:{VIP}", PORT]}


def test_udp_answers_come_from_the_service(node: Node, engine: EbpfEngine, feed: Feed) -> None:
    web1, web2 = node.topology.web1, node.topology.web2
    engine.apply(feed.change(service("dns", VIP, web1.backend(), web2.backend(), protocol=Protocol.UDP)))
    six = service("dns6", VIP6, web1.backend6(8082), web2.backend6(8082), protocol=Protocol.UDP)
    engine.apply(feed.change(six))
    client = node.client()
    names = set()
    for _ in range(20):
        for vip in (VIP, VIP6):
            for connected in (False, True):
                [answer] = client.udp(vip, PORT, 1, connected)
                assert answer["source"] == [vip, PORT]
                assert answer.get("peer", [vip, PORT]) == [vip, PORT]
                names.add(answer["name"])
    assert names == {web1.address, web2.address}
    assert conntrack_free(node)


def test_an_unconnected_socket_stays_with_its_backend_until_the_service_changes(
    node: Node, engine: EbpfEngine, feed: Feed
) -> None:
    web1, web2, far = node.topology.web1, node.topology.web2, node.topology.far
    udp = Protocol.UDP
    engine.apply(feed.change(service("dns", VIP, web1.backend(), web2.backend(), protocol=udp)))
    client = node.client()
    [first] = {answer["name"] for answer in client.udp(VIP, PORT, 30, False, "kept")}
    assert first in (web1.address, web2.address)
    engine.apply(feed.change(service("dns", VIP, far.backend(), protocol=udp)))
    assert {answer["name"] for answer in client.udp(VIP, PORT, 5, False, "kept")} == {far.address}


def with_affinity(made: ServiceRoute, seconds: int) -> ServiceRoute:
    return replace(made, affinity_seconds=seconds)


def test_affinity_is_each_pods_own(node: Node, engine: EbpfEngine, feed: Feed) -> None:
    topology = node.topology
    pods = [topology.web1, topology.web2, topology.far]
    engine.apply(feed.change(with_affinity(service("web", VIP, *(pod.backend() for pod in pods)), 600)))
    clients = [*(pod.namespace for pod in (*pods, topology.client)), topology.node]
    for namespace in clients:
        assert len({name for _ in range(2) for name in node.client(namespace).names(VIP, times=5)}) == 1
    with Map.open(node.pins / "maps" / "affinity") as remembered:
        assert len(remembered.items()) == len(clients)


def test_affinity_ends_after_its_time(node: Node, engine: EbpfEngine, feed: Feed) -> None:
    pods = [node.topology.web1, node.topology.web2, node.topology.far]
    engine.apply(feed.change(with_affinity(service("web", VIP, *(pod.backend() for pod in pods)), 600)))
    client = node.client()
    names = set()
    for _ in range(30):
        names.update(client.names(VIP))
        with Map.open(node.pins / "maps" / "affinity") as remembered:
            [(key, value)] = remembered.items()
            _, *backend = AFFINITY.unpack(value)
            long_ago = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - 601 * 10**9
            remembered.update(key, AFFINITY.pack(max(long_ago, 0), *backend))
    # Where the machine has run for less than the time, nothing can be that old.
    assert len(names) == (3 if time.clock_gettime(time.CLOCK_MONOTONIC) > 601 else 1)


def test_node_ports_answer_the_nodes_processes_on_loopback_and_not_a_pods(
    node: Node, engine: EbpfEngine, feed: Feed
) -> None:
    web1 = node.topology.web1
    engine.apply(feed.change(service("web", VIP, web1.backend(), node_port=30080)))
    engine.apply(feed.change(service("six", VIP6, web1.backend6(8081), node_port=30081)))
    host = node.client(node.topology.node)
    assert host.tcp("127.0.0.1", 30080) == [{"name": web1.address, "peer": ["127.0.0.1", 30080]}]
    assert host.tcp("::1", 30081) == [{"name": web1.address, "peer": ["::1", 30081]}]
    assert conntrack_free(node)
    assert node.client().names("127.0.0.1", 30080) == ["ECONNREFUSED"]


def test_clients_that_are_no_sockets_here_are_served_by_packets(node: Node, engine: EbpfEngine, feed: Feed) -> None:
    web1 = node.topology.web1
    engine.apply(feed.change(service("web", VIP, web1.backend(), node_port=30080, external_ips=("198.51.100.9",))))
    assert node.topology.outside.ask("192.0.2.1", 30080) == web1.address
    assert node.topology.outside.ask("198.51.100.9", 80) == web1.address


def test_the_nodes_own_sockets_are_served_whatever_their_cgroup_and_others_below_it_are_not(
    node: Node, engine: EbpfEngine, feed: Feed
) -> None:
    web1 = node.topology.web1
    engine.apply(feed.change(service("web", VIP, web1.backend())))
    host = node.topology.node
    assert node.client(host, served=False).tcp(VIP, PORT) == [{"name": web1.address, "peer": [VIP, PORT]}]
    elsewhere = node.client(node.topology.outside, served=False)
    assert elsewhere.names(VIP) != [web1.address], "no pod of this node, nor the node itself"
    [counter] = engine.counters()
    assert counter.connections == 1


def test_whoever_enters_a_pods_namespace_is_served_once_it_is_known(node: Node, engine: EbpfEngine, feed: Feed) -> None:
    web1 = node.topology.web1
    engine.apply(feed.change(service("web", VIP, web1.backend())))
    pod, visitor = node.client(), node.client(served=False)
    assert visitor.names(VIP) != [web1.address]
    serve_namespace(node.pins, pod.pid)
    for process in (visitor, pod):
        assert process.tcp(VIP, PORT) == [{"name": web1.address, "peer": [VIP, PORT]}]
    [counter] = engine.counters()
    assert counter.connections == 2


def test_a_process_of_a_pods_cgroup_in_the_nodes_namespace_is_served_once(
    node: Node, engine: EbpfEngine, feed: Feed
) -> None:
    web1, web2 = node.topology.web1, node.topology.web2
    chained = service("chained", web1.address, web2.backend(), port=8080)
    engine.apply(feed.change(service("web", VIP, web1.backend()), chained))
    host_network = node.client(node.topology.node)
    assert host_network.tcp(VIP, PORT) == [{"name": web1.address, "peer": [VIP, PORT]}]
    assert {counter.service: counter.connections for counter in engine.counters()}.get("default/chained", 0) == 0


def test_two_nodes_of_one_host_serve_their_own_sockets_only(node: Node, engine: EbpfEngine, feed: Feed) -> None:
    web1, web2 = node.topology.web1, node.topology.web2
    engine.apply(feed.change(service("web", VIP, web1.backend())))
    other = node.another(node.topology.outside)
    other.apply(Delta("g", 1, 0, [service("web", VIP, web2.backend())]))
    assert node.client(node.topology.node, served=False).names(VIP) == [web1.address]
    assert [counter.connections for counter in other.counters()] == [0]
    assert node.client().names(VIP) == [web1.address]
    assert [counter.connections for counter in engine.counters()] == [2]


def test_a_balancers_address_that_is_not_for_everybody_is_left_to_packets(
    node: Node, engine: EbpfEngine, feed: Feed
) -> None:
    web1, web2, client = node.topology.web1, node.topology.web2, node.client()
    balancer = bytes((198, 51, 100, 7))
    balanced = replace(service("a", VIP, web1.backend()), balancer_ips=(balancer,))
    engine.apply(feed.change(balanced, service("b", "10.96.0.2", web2.backend(), external_ips=("198.51.100.7",))))
    assert client.names("198.51.100.7") == [web1.address]
    engine.apply(feed.change(replace(balanced, source_ranges=((bytes((192, 0, 2, 0)), 24),))))
    assert client.names("198.51.100.7") not in ([web1.address], [web2.address])
    assert (balancer, 6, 80, ip_address(web1.address).packed, 8080) in engine.restore()


def test_refusals_are_counted_apart_from_connections(node: Node, engine: EbpfEngine, feed: Feed) -> None:
    web1 = node.topology.web1
    engine.apply(feed.change(service("none", VIP), service("web", "10.96.0.2", web1.backend())))
    client = node.client()
    client.tcp(VIP, PORT, 3)
    client.tcp("10.96.0.2", PORT, 2)
    counted = {item.service: (item.connections, item.refusals) for item in engine.counters()}
    assert counted == {"default/none": (0, 3), "default/web": (2, 0)}
    engine.apply(feed.change(removed=("none",)))
    engine.apply(feed.change(service("fresh", "10.96.0.3", web1.backend())))
    counted = {item.service: (item.connections, item.refusals) for item in engine.counters()}
    assert counted == {"default/web": (2, 0), "default/fresh": (0, 0)}, "a counter that is used again begins anew"


def test_a_client_of_a_consistent_service_keeps_its_backend_without_being_remembered(
    node: Node, engine: EbpfEngine, feed: Feed
) -> None:
    pods = [node.topology.web1, node.topology.web2, node.topology.far]
    consistent = replace(service("web", VIP, *(pod.backend() for pod in pods)), consistent=True)
    engine.apply(feed.change(consistent))
    clients = [node.client(where) for where in (*(pod.namespace for pod in pods), None, node.topology.node)]
    first = [client.names(VIP, times=10) for client in clients]
    assert all(len(set(names)) == 1 for names in first)
    used = first[0][0]
    left = tuple(pod.backend() for pod in pods if pod.address == used)
    engine.apply(feed.change(replace(consistent, ports=(replace(consistent.ports[0], backends=left),))))
    assert {name for client in clients for name in client.names(VIP, times=3)} == {used}
    engine.apply(feed.change(consistent))
    assert [client.names(VIP, times=10) for client in clients] == first
    with Map.open(node.pins / "maps" / "affinity") as remembered:
        assert not remembered.items()


def test_connections_to_other_addresses_are_left_alone(node: Node, engine: EbpfEngine, feed: Feed) -> None:
    web1 = node.topology.web1
    engine.apply(feed.change(service("web", VIP, web1.backend())))
    client = node.client()
    assert client.tcp(web1.address, 8080) == [{"name": web1.address, "peer": [web1.address, 8080]}]
    assert client.udp(web1.address, 8080, 1, True)[0]["peer"] == [web1.address, 8080]


def test_a_socket_that_turns_from_a_service_to_its_backend_sees_the_backend(
    node: Node, engine: EbpfEngine, feed: Feed
) -> None:
    web1 = node.topology.web1
    engine.apply(feed.change(service("dns", VIP, web1.backend(), protocol=Protocol.UDP)))
    client = node.client()
    assert client.udp(VIP, PORT, 1, True, "kept")[0]["peer"] == [VIP, PORT]
    assert client.udp(web1.address, 8080, 1, True, "kept")[0]["peer"] == [web1.address, 8080]


def test_connected_udp_sockets_are_released_when_their_backend_leaves(
    node: Node, engine: EbpfEngine, feed: Feed
) -> None:
    web1, web2 = node.topology.web1, node.topology.web2
    client, host = node.client(), node.client(node.topology.node)
    six = service("six", VIP6, web1.backend6(8082), protocol=Protocol.UDP)
    engine.apply(feed.change(service("dns", VIP, web1.backend(), protocol=Protocol.UDP), six))
    for process in (client, host):
        assert process.udp(VIP, PORT, 1, True, "served")[0]["name"] == web1.address
        assert process.udp(VIP6, PORT, 1, True, "six")[0]["name"] == web1.address
        assert process.udp(web1.address, 8080, 1, True, "direct")[0]["name"] == web1.address
    engine.apply(feed.change(service("dns", VIP, web1.backend(), web2.backend(), protocol=Protocol.UDP)))
    engine.tidy()
    assert client.send_again("served") == {"name": web1.address}, "its backend is still there"
    engine.apply(feed.change(service("dns", VIP, web2.backend(), protocol=Protocol.UDP), removed=("six",)))
    engine.tidy()
    for process in (client, host):
        assert process.send_again("served") == {"error": "EDESTADDRREQ"}
        assert process.send_again("six") == {"error": "EDESTADDRREQ"}
        assert process.send_again("direct") == {"name": web1.address}
        told, answered = process.udp(VIP, PORT, 2, True, "served")
        assert told == {"error": "ECONNABORTED"}
        assert answered["name"] == web2.address, "the same socket can go on"
