"""The userspace engine in real namespaces: what the kernel engines' suite asks for, as far as its nature allows."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections import Counter
from dataclasses import replace
from ipaddress import ip_address

import pytest

from kernelet.dataplane.proxy import EngineError, create_engine
from kernelet.dataplane.proxy.userspace import UserspaceEngine
from kernelet.dataplane.routes import BackendFlag, Protocol

from ..proxy.topology import CONFIG, NODE_ADDRESS, Feed, Topology, service

VIP, VIP6, PORT, EXTERNAL = "10.96.0.1", "fd00:96::1", 30080, "198.51.100.7"
DYING = BackendFlag.SERVING | BackendFlag.TERMINATING


def refused_at_once(topology: Topology, address: str, port: int = 80) -> bool:
    begin = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        topology.client.ask(address, port)
    return time.monotonic() - begin < 0.5


def test_backends_take_turns(topology: Topology, engine: UserspaceEngine, feed: Feed) -> None:
    pods = (topology.web1, topology.web2, topology.far)
    engine.apply(feed.change(service("web", VIP, *(pod.backend() for pod in pods))))
    answers = Counter(topology.client.ask(VIP) for _ in range(30))
    assert answers == {pod.address: 10 for pod in pods}
    assert topology.node.ask(VIP, 80) in answers, "the node itself is a client too"
    assert topology.web1.ask(VIP) in answers, "and a backend"


def test_an_ipv6_cluster_ip_leads_to_ipv6_backends(topology: Topology, engine: UserspaceEngine, feed: Feed) -> None:
    route = service("web", VIP, topology.web1.backend(), topology.web1.backend6(8081), topology.web2.backend6(8081))
    engine.apply(feed.change(replace(route, cluster_ips=(*route.cluster_ips, ip_address(VIP6).packed))))
    assert {topology.client.ask(VIP6) for _ in range(4)} == {topology.web1.address, topology.web2.address}
    assert topology.client.ask(VIP) == topology.web1.address


def test_node_ports_and_external_addresses_answer_outside_clients_pods_and_the_node(
    topology: Topology, engine: UserspaceEngine, feed: Feed
) -> None:
    engine.apply(feed.change(service("web", VIP, topology.far.backend(), node_port=PORT, external_ips=(EXTERNAL,))))
    assert topology.outside.ask(NODE_ADDRESS, PORT) == topology.far.address
    assert topology.outside.ask(EXTERNAL, 80) == topology.far.address
    assert topology.client.ask(NODE_ADDRESS, PORT) == topology.far.address
    assert topology.node.ask("127.0.0.1", PORT) == topology.far.address


def test_udp_answers_come_from_the_service_address(topology: Topology, engine: UserspaceEngine, feed: Feed) -> None:
    route = service("dns", VIP, topology.web1.backend(), protocol=Protocol.UDP, node_port=30053)
    engine.apply(feed.change(route))
    assert topology.client.namespace.ask_udp(VIP, 80) == topology.web1.address
    assert topology.node.ask_udp(VIP, 80) == topology.web1.address
    assert topology.outside.ask_udp(NODE_ADDRESS, 30053) == topology.web1.address


def test_a_udp_client_that_keeps_its_port_moves_to_another_backend(
    topology: Topology, engine: UserspaceEngine, feed: Feed
) -> None:
    client = topology.client.namespace.open(socket.SOCK_DGRAM)
    for pod in (topology.web1, topology.web2):
        engine.apply(feed.change(service("dns", VIP, pod.backend(), protocol=Protocol.UDP)))
        assert topology.client.namespace.ask_udp(VIP, 80, via=client) == pod.address


def test_a_udp_client_that_was_there_before_the_service_is_carried_too(
    topology: Topology, engine: UserspaceEngine, feed: Feed
) -> None:
    topology.node.serve(NODE_ADDRESS, 30053, "node", socket.SOCK_DGRAM)
    client = topology.outside.open(socket.SOCK_DGRAM)
    assert topology.outside.ask_udp(NODE_ADDRESS, 30053, via=client) == "node"
    engine.apply(feed.change(service("dns", VIP, topology.web2.backend(), protocol=Protocol.UDP, node_port=30053)))
    assert topology.outside.ask_udp(NODE_ADDRESS, 30053, via=client) == topology.web2.address


def test_a_client_stays_with_its_backend_until_its_time_is_over_or_the_backend_is_gone(
    topology: Topology, engine: UserspaceEngine, feed: Feed
) -> None:
    route = replace(service("web", VIP, topology.web1.backend(), topology.web2.backend()), affinity_seconds=1)
    engine.apply(feed.change(route))
    first, other = topology.client.ask(VIP), topology.far.ask(VIP)
    assert first != other, "the two clients' turns"
    assert {topology.client.ask(VIP) for _ in range(5)} == {first}
    time.sleep(1.1)  # What is tested is time passing.
    assert {topology.client.ask(VIP) for _ in range(5)} == {first}, "its turn again"
    time.sleep(1.1)
    topology.far.ask(VIP)
    stays = topology.client.ask(VIP)
    rest = topology.web1 if stays == topology.web2.address else topology.web2
    engine.apply(feed.change(replace(route, ports=(replace(route.ports[0], backends=(rest.backend(),)),))))
    assert topology.client.ask(VIP) == rest.address


def test_a_backend_that_refuses_is_followed_by_the_next(
    topology: Topology, engine: UserspaceEngine, feed: Feed
) -> None:
    engine.apply(feed.change(service("web", VIP, topology.web1.backend(9999), topology.web2.backend())))
    assert {topology.client.ask(VIP) for _ in range(6)} == {topology.web2.address}


def test_a_service_without_backends_and_an_unknown_port_refuse_at_once(
    topology: Topology, engine: UserspaceEngine, feed: Feed
) -> None:
    engine.apply(feed.change(service("web", VIP, node_port=PORT, external_ips=(EXTERNAL,))))
    assert refused_at_once(topology, VIP)
    assert refused_at_once(topology, VIP, 81)
    assert refused_at_once(topology, EXTERNAL)
    assert refused_at_once(topology, NODE_ADDRESS, PORT)
    with pytest.raises(ConnectionRefusedError):
        topology.client.namespace.ask_udp(VIP, 80)


def test_traffic_policies_choose_this_nodes_backends(topology: Topology, engine: UserspaceEngine, feed: Feed) -> None:
    here, far = topology.web1.backend(), topology.far.backend()
    engine.apply(feed.change(service("web", VIP, here, far, node_port=PORT, internal_local=True, external_local=True)))
    assert {topology.client.ask(VIP) for _ in range(6)} == {topology.web1.address}
    assert {topology.outside.ask(NODE_ADDRESS, PORT) for _ in range(6)} == {topology.web1.address}
    engine.apply(feed.change(service("web", VIP, far, node_port=PORT, internal_local=True, external_local=True)))
    assert refused_at_once(topology, VIP)
    with pytest.raises(TimeoutError):
        topology.outside.ask(NODE_ADDRESS, PORT, timeout=0.5)


def test_terminating_backends_serve_only_where_none_is_ready(
    topology: Topology, engine: UserspaceEngine, feed: Feed
) -> None:
    dying = topology.web1.backend(flags=DYING)
    engine.apply(feed.change(service("web", VIP, dying, topology.web2.backend())))
    assert {topology.client.ask(VIP) for _ in range(6)} == {topology.web2.address}
    engine.apply(feed.change(service("web", VIP, dying)))
    assert topology.client.ask(VIP) == topology.web1.address


def test_much_data_passes_both_ways_and_a_half_closed_connection_stays_open(
    topology: Topology, engine: UserspaceEngine, feed: Feed
) -> None:
    """More than every buffer on the way holds: the sender has to be slowed down, and woken again."""
    engine.apply(feed.change(service("web", VIP, topology.web1.backend())))
    sent = os.urandom(1 << 20) * 24
    with topology.client.namespace.connect(VIP, 80, timeout=20) as connection:
        stream = connection.makefile("rb")
        stream.readline()
        pid = os.fork()
        if not pid:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            os._exit(0)
        time.sleep(0.3)  # So long nothing is read: every buffer fills up.
        received = stream.read()
        os.waitpid(pid, 0)
    assert received == sent


def test_an_established_connection_outlives_its_route(topology: Topology, engine: UserspaceEngine, feed: Feed) -> None:
    engine.apply(feed.change(service("web", VIP, topology.web1.backend())))
    with topology.client.namespace.connect(VIP, 80) as connection:
        stream = connection.makefile("rw")
        assert stream.readline().strip() == topology.web1.address
        engine.apply(feed.change(service("web", VIP, topology.web2.backend())))
        engine.apply(feed.change(removed=("web",)))
        stream.write("still here\n")
        stream.flush()
        assert stream.readline() == "still here\n"
    assert refused_at_once(topology, VIP)


def test_what_is_held_is_read_back_and_connections_are_counted(
    topology: Topology, engine: UserspaceEngine, feed: Feed
) -> None:
    engine.apply(
        feed.change(service("web", VIP, topology.web1.backend(), node_port=PORT), service("idle", "10.96.0.2"))
    )
    vip, pod = ip_address(VIP).packed, ip_address(topology.web1.address).packed
    assert engine.restore() == {(vip, Protocol.TCP, 80, pod, 8080)}
    topology.client.ask(VIP)
    topology.client.ask(NODE_ADDRESS, PORT)
    assert {row.service: row.connections for row in engine.counters()} == {"default/web": 2, "default/idle": 0}
    engine.apply(feed.change(removed=("web", "idle")))
    assert engine.restore() == frozenset()
    assert engine.repair() == 0


def test_a_flushed_ruleset_and_a_killed_process_are_mended(
    topology: Topology, engine: UserspaceEngine, feed: Feed
) -> None:
    engine.apply(feed.change(service("web", VIP, topology.web1.backend())))
    topology.node.run("nft", "flush ruleset")
    with topology.node.entered():
        assert engine.repair() == 2
    assert topology.client.ask(VIP) == topology.web1.address
    assert engine._worker is not None
    os.kill(engine._worker.pid, signal.SIGKILL)
    os.waitid(os.P_PID, engine._worker.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(EngineError, match="does not answer"):
        engine.counters()
    with topology.node.entered():
        assert engine.repair() == 2
    assert topology.client.ask(VIP) == topology.web1.address


async def test_the_death_of_the_process_is_noticed(topology: Topology, engine: UserspaceEngine) -> None:
    noticed = asyncio.Event()
    watching = asyncio.create_task(engine.watch_foreign_changes(noticed.set))
    try:
        for _ in range(2):
            assert engine._worker is not None
            os.kill(engine._worker.pid, signal.SIGKILL)
            async with asyncio.timeout(5):
                await noticed.wait()
            noticed.clear()
            with topology.node.entered():
                assert engine.repair() == 1
            await asyncio.sleep(0)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def test_either_engine_takes_the_others_place(topology: Topology, feed: Feed) -> None:
    route = service("web", VIP, topology.web1.backend())
    feed.change(route)
    for name in ("userspace", "nftables", "userspace", "nftables"):
        with topology.node.entered():
            engine = create_engine(name, CONFIG)
            engine.start()
        engine.apply(feed.snapshot())
        assert topology.client.ask(VIP) == topology.web1.address, name
        engine.close(keep=name == "userspace")
    assert "kernelet" not in topology.node.run("nft", "list", "ruleset")


def test_refused_routes_leave_the_version_before(topology: Topology, engine: UserspaceEngine, feed: Feed) -> None:
    engine.apply(feed.change(service("web", VIP, topology.web1.backend())))
    held = engine.restore()
    topology.node.run("nft", "delete", "table", "ip", "kernelet")
    with pytest.raises(EngineError, match="cannot write nftables table"):
        engine.apply(feed.change(service("other", "10.96.0.9", topology.web2.backend())))
    with topology.node.entered():
        engine.repair()
    assert engine.restore() == held
