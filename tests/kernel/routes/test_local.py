"""`kernelet routes --local` and reports, with the kernel's real tables and maps."""

from __future__ import annotations

import pytest

from kernelet.agents.routes import render
from kernelet.agents.routes.local import kernel_routes
from kernelet.agents.routes.report import report, rows_json
from kernelet.core.cli.failures import CliError
from kernelet.dataplane.proxy.ebpf.engine import EbpfEngine
from kernelet.dataplane.proxy.nftables.engine import NftablesEngine
from kernelet.dataplane.routes import RouteTable

from ..ebpf.conftest import Node
from ..proxy.topology import CONFIG, Feed, Topology, service

VIP = "10.96.0.1"


def test_a_bystander_reads_the_nftables_engines_routes_of_both_families(
    topology: Topology, nftables: NftablesEngine, feed: Feed
) -> None:
    nftables.apply(feed.change(service("web", VIP, topology.web1.backend(), topology.far.backend())))
    nftables.apply(feed.change(service("six", "fd00:96::1", topology.web1.backend6())))
    with topology.node.entered():
        found = kernel_routes(None)
    assert found["engine"] == "nftables"
    assert {row["backend"] for row in found["kernel"]} == {
        topology.web1.address, topology.far.address, topology.web1.address6,
    }  # fmt: skip


def test_a_bystander_reads_the_ebpf_engines_routes_of_the_namespace_it_is_in(
    node: Node, engine: EbpfEngine, feed: Feed
) -> None:
    engine.apply(feed.change(service("web", VIP, node.topology.web1.backend())))
    engine.close()
    with node.topology.node.entered():
        found = kernel_routes(None)
    assert found["engine"] == "ebpf"
    [row] = found["kernel"]
    assert (row["address"], row["port"], row["backend"]) == (VIP, 80, node.topology.web1.address)


@pytest.mark.parametrize(
    ("engine", "reason"), [(None, "cannot read nftables table kernelet"), ("ebpf", "no maps below /sys/fs/bpf")]
)
def test_where_no_routes_are_it_says_why(topology: Topology, engine: str | None, reason: str) -> None:
    with topology.outside.entered(), pytest.raises(CliError, match=reason):
        kernel_routes(engine)


def test_what_is_deleted_behind_an_engines_back_is_missing_from_its_report(
    topology: Topology, nftables: NftablesEngine, feed: Feed
) -> None:
    table = RouteTable()
    for delta in (
        feed.change(service("web", VIP, topology.web1.backend(), topology.far.backend())),
        feed.change(service("ext", "10.96.0.2", topology.web2.backend(), external_ips=("198.51.100.9",))),
    ):
        nftables.apply(delta)
        table.apply(delta)
    assert render.difference(report(CONFIG.node, "nftables", "", table, nftables.restore())) == "equal"
    whole = nftables.restore()
    topology.node.run("nft", "flush", "map", "ip", "kernelet", "backends")
    found = report(CONFIG.node, "nftables", "", table, nftables.restore())
    assert found["missing"] == rows_json(whole)
    assert render.difference(found) == "4 missing"
