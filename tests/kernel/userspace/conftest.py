"""The topology of the kernel engines' tests, with the userspace engine on the node."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.netns import Lab

from kernelet.dataplane.proxy import create_engine
from kernelet.dataplane.proxy.userspace import UserspaceEngine

from ..proxy.topology import CONFIG, Feed, Topology


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
def engine(topology: Topology) -> Iterator[UserspaceEngine]:
    with topology.node.entered():
        made = create_engine("userspace", CONFIG)
        assert isinstance(made, UserspaceEngine)
        made.start()
    try:
        yield made
    finally:
        made.close(keep=False)


@pytest.fixture
def feed() -> Feed:
    return Feed()
