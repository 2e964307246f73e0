"""Tests in here run as root, in network namespaces that they make and remove."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest
from support.netns import Lab

from kernelet.dataplane.proxy.ebpf.kernel import BPFFS
from kernelet.dataplane.proxy.nftables.engine import NftablesEngine
from kernelet.ext.libbpf import mount_bpffs

from .proxy.topology import CONFIG, Feed, Topology, serving


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Namespaces that live as long as the module's tests."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make network namespaces")
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def topology(lab: Lab) -> Topology:
    return serving(lab)


@pytest.fixture
def feed() -> Feed:
    return Feed()


@pytest.fixture(scope="session")
def bpffs() -> Iterator[None]:
    """Mounted; unmounted afterwards if it was not there before."""
    mounted = mount_bpffs(BPFFS)
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", str(BPFFS)], check=True, timeout=60)


@pytest.fixture
def nftables(topology: Topology) -> Iterator[NftablesEngine]:
    """A started engine on the node of the module's topology; its tables go with the test."""
    with topology.node.entered():
        made = NftablesEngine(CONFIG)
        made.start()
    try:
        yield made
    finally:
        made.close(keep=False)
