"""The maps equal the route table: after restarts, kills, interference, growth and any sequence of changes."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from kernelet.dataplane.proxy import EngineError
from kernelet.dataplane.proxy.ebpf.engine import EbpfEngine
from kernelet.dataplane.proxy.ebpf.kernel import cgroup_root, obstacle
from kernelet.dataplane.routes import Backend, Delta, ServiceRoute
from kernelet.ext.bpf import BACKEND_KEY, ENDPOINT, SERVICE, SERVICE_KEY
from kernelet.ext.libbpf import BpfError, Link, Map

from ..proxy.topology import Feed, service
from .conftest import Node

VIP, PORT = "10.96.0.1", 80
ROUTE_MAPS = ("services", "backends", "members", "counters")


def elements(node: Node) -> dict[str, list[tuple[bytes, bytes]]]:
    """Everything in the pinned maps that follows from routes; of the counters those that have counted."""
    found = {}
    for name in ROUTE_MAPS:
        with Map.open(node.pins / "maps" / name) as item:
            found[name] = [(key, value) for key, value in item.items() if name != "counters" or any(value)]
    return found


def program_ids(node: Node) -> set[int]:
    """Of the attached programs."""
    found = set()
    for path in (node.pins / "links").iterdir():
        with Link.open(path) as link:
            found.add(link.info().program_id)
    return found


def program_exists(number: int) -> bool:
    try:
        for item in Map.of_program(number).values():
            item.close()  # else the test itself would keep the map
    except BpfError as error:
        assert error.errno == errno.ENOENT
        return False
    return True


def map_exists(number: int) -> bool:
    try:
        Map.by_id(number).close()
    except BpfError as error:
        assert error.errno == errno.ENOENT
        return False
    return True


def routes(*services: ServiceRoute) -> frozenset[tuple[bytes, int, int, bytes, int]]:
    """What `restore` gives for services whose backends are all ready."""
    return frozenset(
        (address, port.protocol, port.port, backend.address, backend.port)
        for item in services
        for address in (*item.cluster_ips, *item.external_ips)
        for port in item.ports
        for backend in port.backends
        if len(backend.address) == len(address)
    )


def test_a_restarted_engine_finds_nothing_to_write(node: Node, engine: EbpfEngine, feed: Feed) -> None:
    web1, web2 = node.topology.web1.backend(), node.topology.web2.backend()
    affine = replace(service("affine", "10.96.0.2", web1, web2), affinity_seconds=60)
    engine.apply(feed.change(service("web", VIP, web1, web2, node_port=30080), affine, service("none", "10.96.0.3")))
    before = elements(node)
    engine.close()
    second = node.engine()
    try:
        assert second.restore() == routes(*feed.services.values())
        second.apply(feed.snapshot())
        assert second.written == 0
        assert elements(node) == before
        second.apply(feed.change(service("web", VIP, web2)))
        assert second.restore() == routes(*feed.services.values())
    finally:
        second.close()


def test_an_upgrade_replaces_the_programs_under_traffic(node: Node, engine: EbpfEngine, feed: Feed) -> None:
    web1 = node.topology.web1
    engine.apply(feed.change(service("web", VIP, web1.backend())))
    client = node.client()
    seen = program_ids(node)
    for _ in range(3):
        next_engine = node.engine()
        next_engine.close()
        assert set(client.names(VIP, times=20)) == {web1.address}
    assert seen.isdisjoint(program_ids(node))


def test_maps_of_another_layout_are_replaced_only_when_the_new_ones_are_filled(
    node: Node, engine: EbpfEngine, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    web1, web2 = node.topology.web1, node.topology.web2
    engine.apply(feed.change(service("web", VIP, web1.backend())))
    engine.close()
    monkeypatch.setattr("kernelet.dataplane.proxy.ebpf.kernel._fits", lambda existing, declared: False)
    second = node.engine()
    try:
        client = node.client()
        assert client.tcp(VIP, PORT) == [{"name": web1.address, "peer": [VIP, PORT]}], "the old programs serve"
        second.apply(Delta("g", 7, 0, [service("web", VIP, web2.backend())]))
        assert client.tcp(VIP, PORT) == [{"name": web2.address, "peer": [VIP, PORT]}]
        assert second.restore() == routes(service("web", VIP, web2.backend()))
    finally:
        second.close()


def test_maps_grow_under_traffic(node: Node, engine: EbpfEngine, feed: Feed) -> None:
    web1 = node.topology.web1
    engine.apply(feed.change(service("web", VIP, web1.backend())))
    client = node.client()
    assert client.hold("old", VIP, PORT)[0] == web1.address
    many = [service(f"many{i}", str(ip_address("10.96.1.0") + i), *fake(4, i)) for i in range(3000)]
    engine.apply(feed.change(*many))
    with Map.open(node.pins / "maps" / "backends") as backends, Map.open(node.pins / "maps" / "services") as services:
        assert backends.info.max_entries >= 12001
        assert services.info.max_entries >= 3001
    assert set(client.names(VIP, times=20)) == {web1.address}
    assert client.echo("old", "hello") == "hello"
    assert engine.restore() == routes(*feed.services.values())


def test_a_host_that_can_run_the_programs_has_no_obstacle(bpffs: None) -> None:
    assert obstacle(cgroup_root()) == ""


def fake(count: int, seed: int = 0) -> list[Backend]:
    return [Backend((ip_address("10.244.128.0") + seed * count + i).packed, 80) for i in range(count)]


def test_a_full_map_is_an_error_that_names_the_setting(node: Node, feed: Feed) -> None:
    engine = node.engine(max_map_entries=4096)
    try:
        engine.apply(feed.change(service("web", VIP, *fake(3))))
        with pytest.raises(EngineError, match=r"map backends is full.*raise max_map_entries"):
            engine.apply(feed.change(service("large", "10.96.0.2", *fake(5000))))
        assert engine.restore() == routes(service("web", VIP, *fake(3)))
    finally:
        engine.close()


@pytest.mark.parametrize("damage", ["detach", "unpin links", "unpin maps", "unpin all"])
async def test_links_and_pins_that_others_remove_are_noticed_and_mended(
    node: Node, engine: EbpfEngine, feed: Feed, damage: str
) -> None:
    web1 = node.topology.web1
    engine.apply(feed.change(service("web", VIP, web1.backend())))
    noticed = asyncio.Event()
    watch = asyncio.create_task(engine.watch_foreign_changes(noticed.set))
    try:
        links, maps = sorted((node.pins / "links").iterdir()), sorted((node.pins / "maps").iterdir())
        if damage == "detach":
            for path in links:
                with Link.open(path) as link:
                    link.detach()
        else:
            for path in [*(links if "maps" not in damage else ()), *(maps if "links" not in damage else ())]:
                path.unlink()
        await asyncio.wait_for(noticed.wait(), 1)
        assert engine.repair() > 0
        assert engine.repair() == 0
    finally:
        watch.cancel()
        await asyncio.wait([watch])
    assert len(list((node.pins / "links").iterdir())) == 16
    assert node.client().tcp(VIP, PORT) == [{"name": web1.address, "peer": [VIP, PORT]}]


def test_a_cgroup_that_is_made_anew_is_hooked_again(node: Node, engine: EbpfEngine, feed: Feed) -> None:
    web1 = node.topology.web1
    engine.apply(feed.change(service("web", VIP, web1.backend())))
    node.cgroup.rmdir()
    node.cgroup.mkdir()
    assert engine.repair() > 0
    assert node.client().tcp(VIP, PORT) == [{"name": web1.address, "peer": [VIP, PORT]}]


def test_elements_that_others_change_are_mended(node: Node, engine: EbpfEngine, feed: Feed) -> None:
    web1, web2 = node.topology.web1.backend(), node.topology.web2.backend()
    affine = replace(service("affine", "10.96.0.2", web1, web2), affinity_seconds=60)
    engine.apply(feed.change(service("web", VIP, web1, web2), affine))
    with (
        Map.open(node.pins / "maps" / "services") as services,
        Map.open(node.pins / "maps" / "backends") as backends,
        Map.open(node.pins / "maps" / "members") as members,
    ):
        stray = SERVICE_KEY.pack(bytes(16), b"\0\1", 6, 0)
        services.update(stray, SERVICE.pack(99, 1, 0, 0, 5, 0))
        backends.update(BACKEND_KEY.pack(99, 0), ENDPOINT.pack(bytes(16), b"\0\1", 0))
        [one, *_] = [key for key, _ in backends.items() if key != BACKEND_KEY.pack(99, 0)]
        assert backends.delete(one)
        assert members.delete(members.items()[0][0])
    assert engine.repair() > 0
    assert engine.repair() == 0
    assert engine.restore() == routes(*feed.services.values())


def test_the_loss_of_a_service_leaves_nothing_of_it(node: Node, engine: EbpfEngine, feed: Feed) -> None:
    web1 = node.topology.web1
    affine = replace(service("web", VIP, web1.backend(), node_port=30080), affinity_seconds=60)
    engine.apply(feed.change(affine))
    assert node.client().names(VIP) == [web1.address]
    assert all(elements(node).values())
    engine.apply(feed.change(removed=("web",)))
    assert not any(elements(node).values())


def test_closing_without_keeping_leaves_no_pin_link_map_or_program(node: Node, feed: Feed) -> None:
    engine = node.engine()
    engine.apply(feed.change(service("web", VIP, node.topology.web1.backend())))
    numbers = program_ids(node)
    with Map.open(node.pins / "maps" / "services") as services:
        map_number = services.info.id
    engine.close(keep=False)
    assert not node.pins.exists()
    deadline = time.monotonic() + 5  # the kernel frees things a moment after their last user is gone
    while time.monotonic() < deadline:
        left = [number for number in numbers if program_exists(number)]
        if not left and not map_exists(map_number):
            break
        time.sleep(0.01)
    assert not left
    assert not map_exists(map_number)
    engine = node.engine()
    engine.close(keep=False)
    engine.close(keep=False)


def test_what_the_packet_engine_refuses_is_not_given_to_sockets_either(
    node: Node, engine: EbpfEngine, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    web1, web2 = node.topology.web1, node.topology.web2
    engine.apply(feed.change(service("web", VIP, web1.backend())))

    def refuse(delta: Delta) -> None:
        raise EngineError("no")

    with monkeypatch.context() as patched:
        patched.setattr(engine._packets, "apply", refuse)
        with pytest.raises(EngineError, match="no"):
            engine.apply(feed.change(service("web", VIP, web2.backend())))
    assert engine.restore() == routes(service("web", VIP, web1.backend()))
    assert len(elements(node)["backends"]) == 1
    engine.apply(feed.snapshot())
    assert engine.restore() == routes(service("web", VIP, web2.backend()))


def test_the_missing_cgroup_setting_is_named(node: Node) -> None:
    with pytest.raises(EngineError, match="no cgroup to attach to"):
        node.engine(cgroups=(), host_cgroup=None)


def test_pins_outside_a_bpf_filesystem_are_refused(node: Node, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="mount -t bpf bpf /sys/fs/bpf"):
        node.engine(pins=tmp_path)


def test_kill_while_maps_grow_leaves_traffic_and_the_next_engine_whole(node: Node, feed: Feed) -> None:
    web1 = node.topology.web1
    small = service("web", VIP, web1.backend())
    large = [service(f"s{i}", str(ip_address("10.96.4.0") + i), *fake(6, i)) for i in range(1500)]
    client = node.client()
    for attempt in range(6):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                made = node.engine()
                made.apply(Delta("g", 1, 0, [small]))
                os.write(writer, b"x")
                made.apply(Delta("g", 2, 1, large))
            finally:
                os._exit(1)
        os.close(writer)
        assert os.read(reader, 1)
        time.sleep(attempt * 0.03)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        assert client.tcp(VIP, PORT) == [{"name": web1.address, "peer": [VIP, PORT]}]
        held = node.engine()
        try:
            assert held.restore() in (routes(small), routes(small, *large))
            held.apply(Delta("g", 2, 0, [small, *large]))
            assert held.restore() == routes(small, *large)
            assert client.names(VIP) == [web1.address]
            held.close(keep=False)
        finally:
            held.close()


def test_repair_keeps_what_a_snapshot_brought_to_sockets_though_packets_refused_it(
    node: Node, engine: EbpfEngine, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    web1, web2 = node.topology.web1, node.topology.web2
    engine.apply(feed.change(service("web", VIP, web1.backend())))
    feed.change(service("web", VIP, web2.backend()))

    def refuse(delta: Delta) -> None:
        raise EngineError("service default/other: refused")

    monkeypatch.setattr(engine._packets, "apply", refuse)
    with pytest.raises(EngineError, match="default/other"):
        engine.apply(feed.snapshot())
    engine.repair()
    assert node.client().names(VIP) == [web2.address]
