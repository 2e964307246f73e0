"""The kernel's maps equal the route table: after restarts, interference, refusals, and any sequence of changes."""

from __future__ import annotations

import asyncio
import errno
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.netns import run

from kernelet.dataplane.proxy import EngineError, create_engine
from kernelet.dataplane.proxy.nftables.engine import NftablesEngine
from kernelet.dataplane.proxy.nftables.numbers import DROP, NONE, seconds_of, slots_of
from kernelet.dataplane.proxy.nftables.ruleset import HAIRPIN, IP, KINDS
from kernelet.dataplane.routes import Backend, BackendFlag, Prefix, Protocol, ServicePort, ServiceRoute
from kernelet.ext.nft import AF_INET, AF_INET6, Batch, BatchError, NetlinkError, Socket

from .topology import CONFIG, Feed, Topology, service

SETS = [*(name for kind in KINDS[IP] for name in kind.sets), HAIRPIN]


def kernel(topology: Topology) -> dict[tuple[int, str], dict[bytes, bytes | str | None]]:
    """Everything in the tables' sets."""
    with topology.node.entered(), Socket() as netlink:
        return {
            (family, name): netlink.elements("kernelet", family, name)
            for family in (AF_INET, AF_INET6)
            for name in SETS
        }


def nothing(topology: Topology) -> bool:
    return not any(kernel(topology).values())


def routes(*services: ServiceRoute) -> frozenset[tuple[bytes, int, int, bytes, int]]:
    """What `restore` gives for services whose backends are all ready and of their addresses' family."""
    return frozenset(
        (address, port.protocol, port.port, backend.address, backend.port)
        for item in services
        for address in (*item.cluster_ips, *item.external_ips)
        for port in item.ports
        for backend in port.backends
        if len(backend.address) == len(address)
    )


def started(topology: Topology) -> NftablesEngine:
    with topology.node.entered():
        made = create_engine("auto", CONFIG)
        assert isinstance(made, NftablesEngine)
        made.start()
    return made


@pytest.fixture
def restarted(topology: Topology, engine: NftablesEngine) -> Iterator[NftablesEngine]:
    """A second engine on the table that `engine` has made."""
    made = started(topology)
    try:
        yield made
    finally:
        made.close()


def test_a_person_can_list_the_rules_with_nft(topology: Topology, engine: NftablesEngine, feed: Feed) -> None:
    engine.apply(feed.change(service("web", "10.96.0.1", topology.web1.backend(), node_port=30080)))
    listed = run("ip", "netns", "exec", topology.node.name, "nft", "list", "ruleset")
    assert "10.96.0.1 . tcp . 80" in listed
    assert f"{topology.web1.address} . 8080" in listed


def test_one_changed_endpoint_writes_a_few_elements_however_many_there_are(
    topology: Topology, engine: NftablesEngine, feed: Feed
) -> None:
    many = [Backend(bytes((10, 244, 7, number)), 80) for number in range(1, 41)]
    engine.apply(feed.change(*(service(f"s{number}", f"10.96.1.{number}", *many) for number in range(1, 21))))
    steps = ((many[1:], 5), (many, 3), ([*many[:-1], Backend(b"\x0a\xf4\x08\x01", 80)], 2))
    for backends, operations in steps:
        before = engine.written
        engine.apply(feed.change(service("s3", "10.96.1.3", *backends)))
        assert engine.written - before == operations
        assert engine.restore() == routes(*feed.services.values())


def test_a_restarted_engine_writes_nothing_and_traffic_goes_on(
    topology: Topology, engine: NftablesEngine, feed: Feed
) -> None:
    pods = (topology.web1, topology.web2, topology.far)
    engine.apply(feed.change(service("web", "10.96.0.1", *(pod.backend() for pod in pods), node_port=30080)))
    engine.apply(feed.change(service("web", "10.96.0.1", *(pod.backend() for pod in pods[1:]), node_port=30080)))
    before = kernel(topology)
    engine.close()
    assert topology.client.ask("10.96.0.1") in {pod.address for pod in pods[1:]}
    second = started(topology)
    try:
        assert topology.client.ask("10.96.0.1") in {pod.address for pod in pods[1:]}
        assert second.restore() == routes(*feed.services.values())
        second.apply(feed.snapshot())
        assert second.written == 0
        assert kernel(topology) == before
        second.apply(feed.change(service("web", "10.96.0.1", *(pod.backend() for pod in pods), node_port=30080)))
        assert second.restore() == routes(*feed.services.values())
    finally:
        second.close()


def test_a_snapshot_writes_only_what_differs_from_the_kernel(
    topology: Topology, engine: NftablesEngine, restarted: NftablesEngine, feed: Feed
) -> None:
    backend = topology.web1.backend()
    engine.apply(feed.change(*(service(f"s{number}", f"10.96.1.{number}", backend) for number in range(1, 5))))
    feed.change(service("s2", "10.96.1.2", topology.web2.backend()), removed=("s4",))
    restarted.apply(feed.snapshot())
    assert restarted.written == 2 + 3 + 1, "a backend replaced; s4's verdict, counter, backend; a local address new"
    assert restarted.restore() == routes(*feed.services.values())


def test_removing_every_service_leaves_the_maps_empty(topology: Topology, engine: NftablesEngine, feed: Feed) -> None:
    engine.apply(
        feed.change(
            service("a", "10.96.0.1", topology.web1.backend(), topology.far.backend(), node_port=30080),
            service("b", "10.96.0.2", topology.web1.backend(), external_ips=("198.51.100.7",), external_local=True),
            service("c", "10.96.0.3"),
        )
    )
    assert not nothing(topology)
    engine.apply(feed.change(removed=("a", "b", "c")))
    assert nothing(topology)


def test_closing_without_keep_leaves_no_table(topology: Topology) -> None:
    engine = started(topology)
    assert "kernelet" in topology.node.run("nft", "list tables")
    engine.close(keep=False)
    assert "kernelet" not in topology.node.run("nft", "list tables")


def test_more_backends_than_there_are_chains_for_get_their_chain(
    topology: Topology, engine: NftablesEngine, feed: Feed
) -> None:
    backends = [Backend(ip_address(topology.web1.address).packed, port) for port in range(8000, 8099)]
    engine.apply(feed.change(service("web", "10.96.0.1", *backends)))
    assert len(engine.restore()) == 99
    assert engine.repair() == 0


@pytest.mark.parametrize(
    "damage",
    [
        "flush ruleset",
        "delete table ip kernelet",
        "flush table ip kernelet",
        "flush chain ip kernelet dispatch",
        "flush map ip kernelet backends",
        "flush map ip kernelet services",
        "flush map ip kernelet lb_chains",
        "add element ip kernelet nodeports { tcp . 30999 : 0:5 }",
    ],
)
async def test_interference_is_noticed_and_mended_within_a_second(
    topology: Topology, engine: NftablesEngine, feed: Feed, damage: str
) -> None:
    engine.apply(feed.change(service("web", "10.96.0.1", topology.web1.backend(), node_port=30080)))
    before = kernel(topology)
    mended = asyncio.Event()

    def repair() -> None:
        assert engine.repair() > 0
        mended.set()

    watch = asyncio.create_task(engine.watch_foreign_changes(repair))
    try:
        begin = time.monotonic()
        await asyncio.to_thread(topology.node.run, "nft", damage)
        await asyncio.wait_for(mended.wait(), 1)
        assert time.monotonic() - begin < 1
        assert kernel(topology) == before
        assert topology.client.ask("10.96.0.1") == topology.web1.address
        assert topology.outside.ask("192.0.2.1", 30080) == topology.web1.address
        assert engine.repair() == 0
    finally:
        watch.cancel()
        await asyncio.wait([watch])


async def test_own_changes_and_other_tables_wake_nobody(topology: Topology, engine: NftablesEngine, feed: Feed) -> None:
    calls: list[str] = []
    watch = asyncio.create_task(engine.watch_foreign_changes(lambda: calls.append("called")))
    await asyncio.sleep(0)
    many = [Backend(bytes((10, 244, 7, number)), 80) for number in range(1, 100)]
    engine.apply(feed.change(*(service(f"s{number}", f"10.96.1.{number}", *many) for number in range(1, 51))))
    engine.apply(feed.change(service("s3", "10.96.1.3", *many[:35])))
    await asyncio.to_thread(topology.node.run, "nft", "add table ip other; add chain ip other c; delete table ip other")
    await asyncio.sleep(0.1)  # nothing is to happen, so there is no event to wait for
    watch.cancel()
    await asyncio.wait([watch])
    assert calls == []


def test_a_change_after_unnoticed_interference_succeeds_all_the_same(
    topology: Topology, engine: NftablesEngine, feed: Feed
) -> None:
    engine.apply(feed.change(service("web", "10.96.0.1", topology.web1.backend())))
    topology.node.run("nft", "flush map ip kernelet backends")
    engine.apply(feed.change(service("web", "10.96.0.1", topology.web2.backend())))
    assert topology.client.ask("10.96.0.1") == topology.web2.address
    topology.node.run("nft", "flush ruleset")
    engine.apply(feed.change(service("web", "10.96.0.1", topology.web1.backend())))
    assert topology.client.ask("10.96.0.1") == topology.web1.address


def test_a_table_of_an_incompatible_version_is_rebuilt(topology: Topology, feed: Feed) -> None:
    topology.node.run("nft", "table ip kernelet { map backends { type mark : ipv4_addr; }\n }")
    engine = started(topology)
    try:
        engine.apply(feed.change(service("web", "10.96.0.1", topology.web1.backend())))
        assert topology.client.ask("10.96.0.1") == topology.web1.address
    finally:
        engine.close(keep=False)


@pytest.fixture
def narrow(topology: Topology) -> Iterator[NftablesEngine]:
    """An engine whose `services` map the kernel lets hold two elements."""
    topology.node.run(
        "nft",
        "table ip kernelet { map services { type ipv4_addr . inet_proto . inet_service : classid; size 2; }\n }",
    )
    made = started(topology)
    try:
        yield made
    finally:
        made.close(keep=False)


@pytest.mark.parametrize("how", ["delta", "snapshot"])
def test_a_refused_service_is_named_and_all_others_are_routed(
    topology: Topology, narrow: NftablesEngine, feed: Feed, how: str
) -> None:
    narrow.apply(feed.change(service("a", "10.96.0.1", topology.web1.backend())))
    delta = feed.change(
        service("a", "10.96.0.1", topology.web2.backend()),
        service("b", "10.96.0.2", topology.web1.backend()),
        service("c", "10.96.0.3", topology.web1.backend(), node_port=30080),
        service("d", "10.96.0.4", topology.web1.backend()),
    )
    with pytest.raises(EngineError) as caught:
        narrow.apply(delta if how == "delta" else feed.snapshot())
    refused = {item for item in "abcd" if f"service default/{item}:" in str(caught.value)}
    assert len(refused) == 2, "the map has room for two"
    assert re.search(r"refused to add element 10\.96\.0\.\d \. tcp \. 80 of nftables map services", str(caught.value))
    for number, name in enumerate("abcd", 1):
        if name not in refused:
            expected = topology.web2 if name == "a" else topology.web1
            assert topology.client.ask(f"10.96.0.{number}") == expected.address
    assert topology.outside.ask("192.0.2.1", 30080) == topology.web1.address, "what else the service has is routed"
    with pytest.raises(EngineError, match="snapshot"):
        narrow.apply(feed.change())
    with pytest.raises(EngineError, match="refused to add element"):
        narrow.repair()
    feed.change(removed=tuple(refused)[:1])
    feed.change(removed=tuple(refused)[1:])
    narrow.apply(feed.snapshot())
    assert narrow.repair() == 0
    narrow.apply(feed.change(service("a", "10.96.0.1", topology.web1.backend())))


def test_a_service_that_cannot_be_had_does_not_keep_others_from_being_routed(
    topology: Topology, engine: NftablesEngine, feed: Feed
) -> None:
    engine.apply(feed.change(service("good", "10.96.0.1", topology.web1.backend())))
    with pytest.raises(EngineError, match=r"service default/bad has a port .*; other services are routed"):
        engine.apply(
            feed.change(
                service("bad", "10.96.0.2", topology.web1.backend(), port=70000),
                service("good", "10.96.0.1", topology.web2.backend()),
            )
        )
    assert topology.client.ask("10.96.0.1") == topology.web2.address


def test_the_kernel_names_the_element_it_refuses(topology: Topology, engine: NftablesEngine) -> None:
    keys = [bytes((10, 96, 1, number, 6, 0, 0, 0, 0, 80, 0, 0)) for number in range(1, 9)]
    with topology.node.entered(), Socket() as netlink:
        batch = Batch()
        batch.add_elements("kernelet", AF_INET, "services", [(key, b"\1\0\0\0") for key in keys])
        batch.delete_elements("kernelet", AF_INET, "services", [keys[0], b"\1" * 12])
        batch.add_elements("kernelet", AF_INET, "np_chains", [(b"\6\0\0\1", "goto nowhere")])
        with pytest.raises(BatchError) as caught:
            netlink.commit(batch)
        assert [(item.operation, item.set_name, item.key, item.errno) for item in caught.value.failures] == [
            ("delete", "services", b"\1" * 12, errno.ENOENT),
            ("add", "np_chains", b"\6\0\0\1", errno.ENOENT),
        ]
        assert netlink.elements("kernelet", AF_INET, "services") == {}, "all or nothing"
        with pytest.raises(NetlinkError) as missing:
            netlink.elements("kernelet", AF_INET, "nosuchset")
        assert missing.value.errno == errno.ENOENT


def test_a_batch_for_a_generation_that_has_passed_is_refused(topology: Topology, engine: NftablesEngine) -> None:
    with topology.node.entered(), Socket() as netlink:
        batch = Batch(netlink.generation())
        batch.add_elements("kernelet", AF_INET, "services", [(b"\1" * 12, b"\1\0\0\0")])
        topology.node.run("nft", "add table ip other; delete table ip other")
        with pytest.raises(BatchError) as caught:
            netlink.commit(batch)
        assert caught.value.errno == errno.ERESTART


def backends() -> st.SearchStrategy[tuple[Backend, ...]]:
    v4 = st.sampled_from([bytes((10, 244, 0, number)) for number in range(1, 7)])
    v6 = st.sampled_from([ip_address(f"fd00:244::{number}").packed for number in range(1, 4)])
    flags = st.sampled_from(
        [BackendFlag.READY, BackendFlag.NONE, BackendFlag.SERVING | BackendFlag.TERMINATING, BackendFlag.SERVING]
    )
    weights = st.sampled_from([1, 1, 1, 2, 6, 255])
    nodes = st.sampled_from(["here", "there", ""])
    one = st.builds(Backend, v4 | v6, st.sampled_from([80, 8080]), flags, nodes, weights)
    return st.lists(one, max_size=7).map(tuple)


RANGES: list[Prefix] = [
    (ip_address(text).packed, bits)
    for text, bits in (("10.0.0.0", 8), ("10.244.0.0", 16), ("192.0.2.1", 32), ("fd00::", 16), ("::", 0))
]


def one_service() -> st.SearchStrategy[ServiceRoute]:
    protocols = st.sampled_from(Protocol)
    port = st.builds(
        ServicePort, st.just("p"), protocols, st.sampled_from([80, 443]), st.sampled_from([0, 30080]), backends()
    )
    addresses = [ip_address(text).packed for text in ("10.96.0.1", "10.96.0.2", "fd00:96::1", "198.51.100.7")]
    ips = st.lists(st.sampled_from(addresses), max_size=2, unique=True).map(tuple)
    return st.builds(
        ServiceRoute,
        st.sampled_from(["default/a", "default/b", "default/c"]),
        ips,
        st.lists(port, max_size=2).map(tuple),
        ips,
        external_local=st.booleans(),
        internal_local=st.booleans(),
        affinity_seconds=st.sampled_from([0, 0, 600, 7200]),
        balancer_ips=ips,
        source_ranges=st.lists(st.sampled_from(RANGES), max_size=3).map(tuple),
    )


changes = st.tuples(
    st.lists(one_service(), max_size=3, unique_by=lambda item: item.id),
    st.lists(st.sampled_from(["default/a", "default/b", "default/c"]), max_size=1),
    st.sampled_from(["delta", "delta", "delta", "delta", "snapshot", "restart"]),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(changes, min_size=1, max_size=12))
def test_after_any_sequence_of_changes_the_kernel_equals_a_fresh_one_given_the_same_table(
    topology: Topology, history: list[tuple[list[ServiceRoute], list[str], str]]
) -> None:
    engine = started(topology)
    feed = Feed()
    try:
        engine.apply(feed.change())
        for services, removed, how in history:
            names = tuple(name.removeprefix("default/") for name in removed if name not in {s.id for s in services})
            delta = feed.change(*services, removed=names)
            if how == "restart":
                engine.close()
                engine = started(topology)
            engine.apply(delta if how == "delta" else feed.snapshot())
            assert engine.repair() == 0, "what a delta wrote is what the whole table asks for"
            assert dense(kernel(topology))
        engine.apply(feed.change(removed=("a", "b", "c")))
        assert nothing(topology)
    finally:
        engine.close(keep=False)


def dense(held: dict[tuple[int, str], dict[bytes, bytes | str | None]]) -> bool:
    """Every frontend of N slots has exactly the slots 0..N-1, each with an id under affinity, and no slot is alone."""
    for kind in (kind for made in KINDS.values() for kind in made):
        slots, sticky = set(), set()
        for key, data in held[kind.family.number, kind.frontends].items():
            assert isinstance(data, bytes)
            number = 0 if data in (NONE, DROP) else int.from_bytes(data, sys.byteorder)
            keys = {key + slot.to_bytes(4, sys.byteorder) for slot in range(slots_of(number))}
            slots |= keys
            sticky |= keys if seconds_of(number) else set()
        ids = held[kind.family.number, kind.ids]
        named = {key[:-4] + number for key, number in ids.items() if isinstance(number, bytes)}
        if ids.keys() != sticky or held[kind.family.number, kind.backends].keys() != slots | named:
            return False
    return True


WRITER = """
import sys
from ipaddress import ip_network
from kernelet.dataplane.proxy import EngineConfig, create_engine
from kernelet.dataplane.routes import *

def routed(number):
    backends = tuple(Backend(bytes((10, 244, 7, last)), int(sys.argv[1])) for last in range(1, 11))
    address = bytes((10, 96, number >> 8, number & 255))
    return ServiceRoute(f"default/s{number}", (address,), (ServicePort("main", Protocol.TCP, 80, 0, backends),))

engine = create_engine("nftables", EngineConfig("here", (), (ip_network("10.244.0.0/16"),), ()))
engine.start()
services = [routed(number) for number in range(300)]
print("writing", flush=True)
engine.apply(Delta("g", 1, 0, services))
print("written", flush=True)
"""


def test_an_engine_killed_while_it_writes_leaves_all_of_the_old_routes_or_all_of_the_new(
    topology: Topology, engine: NftablesEngine
) -> None:
    def write(port: int, kill_after: float | None = None) -> float:
        """Replaces all backends in a process that is killed after so many seconds; how long it wrote otherwise."""
        command = ["ip", "netns", "exec", topology.node.name, sys.executable, "-c", WRITER, str(port)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "writing\n"
            begin = time.monotonic()
            if kill_after is not None:
                time.sleep(kill_after)  # the point at which it dies, not a wait for anything
                process.kill()
            else:
                assert process.stdout.readline() == "written\n"
            return time.monotonic() - begin

    seconds = write(80)
    old = engine.restore()
    assert len(old) == 3000
    for step in range(8):
        write(81, kill_after=seconds * step / 8)
        assert {port for *_, port in engine.restore()} in ({80}, {81})
        assert len(engine.restore()) == 3000
        write(80)
        assert engine.restore() == old
