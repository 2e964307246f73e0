"""Which engine a node gets, and how one takes over from another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kernelet.dataplane.proxy import EngineError, choose, create_engine, make_way, programmed
from kernelet.dataplane.proxy.ebpf.engine import EbpfEngine
from kernelet.dataplane.proxy.nftables.engine import NftablesEngine
from kernelet.ext.nft import AF_INET, Socket, delete_flows

from ..proxy.topology import Feed, service
from .conftest import Node

VIP, PORT = "10.96.0.1", 80


@pytest.fixture
def packets(node: Node) -> Iterator[NftablesEngine]:
    """The nftables engine on the same node."""
    with node.topology.node.entered():
        made = create_engine("nftables", node.config)
        assert isinstance(made, NftablesEngine)
        made.start()
        try:
            yield made
        finally:
            made.close(keep=False)


def test_auto_is_ebpf_where_the_kernel_takes_its_programs(node: Node) -> None:
    assert choose("auto", node.config) == ("ebpf", "the kernel takes its socket programs")
    assert not node.pins.exists()


def test_auto_is_nftables_elsewhere_and_says_why(node: Node, tmp_path: Path) -> None:
    engine, reason = choose("auto", replace(node.config, cgroups=(), host_cgroup=None))
    assert (engine, "no cgroup" in reason) == ("nftables", True)
    engine, reason = choose("auto", replace(node.config, host_cgroup=tmp_path))
    assert engine == "nftables"
    assert f"cannot attach BPF program host_connect4 to cgroup {tmp_path}" in reason


def test_an_unknown_engine_is_refused_with_the_names_of_those_there_are(node: Node) -> None:
    with pytest.raises(EngineError, match="no proxy engine is called 'ipvs'; use one of auto, ebpf, nftables"):
        create_engine("ipvs", node.config)


def test_the_nftables_engine_takes_over_without_a_failed_connection(
    node: Node, engine: EbpfEngine, feed: Feed, packets: NftablesEngine
) -> None:
    web1, web2 = node.topology.web1, node.topology.web2
    engine.apply(feed.change(service("web", VIP, web1.backend())))
    client = node.client()
    assert client.hold("old", VIP, PORT)[0] == web1.address
    engine.close()
    feed.change(service("web", VIP, web2.backend()))
    packets.apply(feed.snapshot())
    assert client.names(VIP) == [web1.address], "sockets are still translated"
    make_way("nftables", node.config)
    assert client.names(VIP) == [web2.address]
    assert client.echo("old", "still here") == "still here"
    assert not node.pins.exists()
    assert programmed(node.config) == "nftables"
    make_way("nftables", node.config)


def test_the_ebpf_engine_takes_over_without_a_failed_connection(
    node: Node, feed: Feed, packets: NftablesEngine
) -> None:
    web1, web2 = node.topology.web1, node.topology.web2
    feed.change(service("web", VIP, web1.backend()))
    packets.apply(feed.snapshot())
    client = node.client()
    assert client.names(VIP) == [web1.address]
    engine = node.engine()
    try:
        assert client.names(VIP) == [web1.address], "packets are still translated"
        feed.change(service("web", VIP, web2.backend()))
        engine.apply(feed.snapshot())
        make_way("ebpf", node.config)
        assert client.tcp(VIP, PORT) == [{"name": web2.address, "peer": [VIP, PORT]}]
        assert programmed(node.config) == "ebpf"
    finally:
        engine.close()


def is_tracked(node: Node) -> bool:
    """Whether conntrack sees what goes from pod to pod and belongs to no service."""
    web1 = node.topology.web1
    assert node.client().names(web1.address, 8080) == [web1.address]
    return f"dst={web1.address}" in node.topology.node.run("cat", "/proc/net/nf_conntrack")


def test_connections_that_packets_made_outlive_the_change_to_sockets(
    node: Node, feed: Feed, packets: NftablesEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    web1, web2 = node.topology.web1, node.topology.web2
    feed.change(service("web", VIP, web1.backend()))
    packets.apply(feed.snapshot())
    client = node.client()
    assert client.hold("old", VIP, PORT) == [web1.address, [VIP, PORT]]
    packets.close()
    monkeypatch.setattr("kernelet.dataplane.proxy.ebpf.packets._FLOWS_SECONDS", 0)
    engine = node.engine()
    try:
        with node.topology.node.entered():
            engine.apply(feed.snapshot())
            engine.tidy()
            assert client.echo("old", "still here") == "still here"
            assert client.names(VIP) == [web1.address]
            assert is_tracked(node)
            with Socket() as netlink:
                delete_flows(netlink, AF_INET, lambda flow: True)
            engine.apply(feed.change(service("web", VIP, web2.backend())))
            engine.tidy()
            assert client.names(VIP) == [web2.address]
            assert not is_tracked(node)
            assert engine.repair() == 0
    finally:
        engine.close()


def test_pods_that_are_there_when_the_ebpf_engine_comes_can_be_entered(node: Node, feed: Feed) -> None:
    web1 = node.topology.web1
    pod, visitor = node.client(), node.client(served=False)
    engine = node.engine()
    try:
        engine.apply(feed.change(service("web", VIP, web1.backend())))
        for process in (pod, visitor):
            assert process.names(VIP) == [web1.address]
    finally:
        engine.close()
