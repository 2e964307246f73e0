"""One topology for a module's tests; a fresh engine and an empty table for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.netns import Lab

from kernelet.dataplane.proxy import create_engine
from kernelet.dataplane.proxy.nftables import NftablesEngine

from .topology import CONFIG, Feed, Topology


@pytest.fixture(scope="module")
def topology(lab: Lab) -> Topology:
    """Pods that serve TCP and UDP on 8080, IPv4 and IPv6, and answer with their IPv4 address."""
    made = Topology(lab)
    for pod in (made.web1, made.web2, made.far):
        made.servers[pod.address] = pod.serve()
        pod.serve_udp()
        pod.namespace.serve("::", 8081, pod.address)
    return made


@pytest.fixture
def engine(topology: Topology) -> Iterator[NftablesEngine]:
    with topology.node.entered():
        made = create_engine("nftables", CONFIG)
        assert isinstance(made, NftablesEngine)
        made.start()
    try:
        yield made
    finally:
        made.close(keep=False)


@pytest.fixture
def feed() -> Feed:
    return Feed()
