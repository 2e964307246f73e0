"""What is the userspace engine's own: turns, the relay, and the process that carries the traffic."""

from __future__ import annotations

import asyncio
import itertools
import os
import select
import signal
import socket
import time
from collections import Counter
from dataclasses import replace
from ipaddress import ip_address

import pytest

from kernelet.dataplane.proxy import EngineError, create_engine
from kernelet.dataplane.proxy.userspace.engine import UserspaceEngine
from kernelet.dataplane.routes import Protocol

from ..proxy.topology import CONFIG, Feed, Topology, service

VIP = "10.96.0.1"


def test_backends_take_turns(topology: Topology, engine: UserspaceEngine, feed: Feed) -> None:
    pods = (topology.web1, topology.web2, topology.far)
    engine.apply(feed.change(service("web", VIP, *(pod.backend() for pod in pods))))
    answers = Counter(topology.client.ask(VIP) for _ in range(30))
    assert answers == {pod.address: 10 for pod in pods}
    assert topology.node.ask(VIP, 80) in answers, "the node itself is a client too"
    assert topology.web1.ask(VIP) in answers, "and a backend"


def test_a_backend_that_refuses_is_followed_by_the_next(
    topology: Topology, engine: UserspaceEngine, feed: Feed
) -> None:
    engine.apply(feed.change(service("web", VIP, topology.web1.backend(9999), topology.web2.backend())))
    assert {topology.client.ask(VIP) for _ in range(6)} == {topology.web2.address}


def test_a_backend_that_refuses_is_followed_by_another_however_heavy_it_is(
    topology: Topology, engine: UserspaceEngine, feed: Feed
) -> None:
    dead = replace(topology.web1.backend(9999), weight=20)
    engine.apply(feed.change(service("web", VIP, dead, topology.web2.backend())))
    assert {topology.client.ask(VIP) for _ in range(21)} == {topology.web2.address}


def test_heavier_backends_have_more_turns_not_all_in_a_row(
    topology: Topology, engine: UserspaceEngine, feed: Feed
) -> None:
    web1, web2 = (replace(pod.backend(), weight=2) for pod in (topology.web1, topology.web2))
    engine.apply(feed.change(service("web", VIP, web1, web2, topology.far.backend())))
    answers = [topology.client.ask(VIP) for _ in range(15)]
    assert all(one != other for one, other in itertools.pairwise(answers))
    assert Counter(answers) == {topology.web1.address: 6, topology.web2.address: 6, topology.far.address: 3}


def test_a_killed_engine_ends_with_its_carrier_and_addresses_refuse_until_the_next_one(
    topology: Topology, feed: Feed
) -> None:
    snapshot = feed.change(service("web", VIP, topology.web1.backend()))
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            with topology.node.entered():
                doomed = UserspaceEngine(CONFIG)
                doomed.start()
            doomed.apply(snapshot)
            assert doomed._worker is not None
            os.write(writer, str(doomed._worker.pid).encode())
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as told:
        carrier = os.pidfd_open(int(os.read(told.fileno(), 16)))
    assert topology.client.ask(VIP) == topology.web1.address
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert select.select([carrier], [], [], 10)[0], "it ends with its parent"
    os.close(carrier)
    with pytest.raises(ConnectionRefusedError):
        topology.client.ask(VIP)
    with topology.node.entered():
        engine = UserspaceEngine(CONFIG)
        engine.start()
    engine.apply(snapshot)
    assert topology.client.ask(VIP) == topology.web1.address
    engine.close(keep=False)


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


def test_listeners_of_one_port_number_are_told_apart_when_routes_are_read_back(
    topology: Topology, engine: UserspaceEngine, feed: Feed
) -> None:
    """A few hundred listeners of each family and protocol: by chance some have the same port's number."""
    backends = {4: topology.web1.backend(), 16: topology.web1.backend6(8081)}
    expected, services = set(), []
    for number in range(400):
        four, six = (ip_address(network) + number for network in ("10.96.4.0", "fd00:96::4:0"))
        route = service(f"s{number}", str(four), *backends.values())
        ports = tuple(replace(route.ports[0], protocol=protocol) for protocol in (Protocol.TCP, Protocol.UDP))
        services.append(replace(route, cluster_ips=(four.packed, six.packed), ports=ports))
        expected |= {
            (address.packed, protocol, 80, backend.address, backend.port)
            for address in (four, six)
            for protocol in (Protocol.TCP, Protocol.UDP)
            for length, backend in backends.items()
            if length == len(address.packed)
        }
    engine.apply(feed.change(*services))
    assert engine.restore() == expected
