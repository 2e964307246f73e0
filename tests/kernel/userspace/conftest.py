"""The topology of the kernel engines' tests, with the userspace engine on the node."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kernelet.dataplane.proxy import create_engine
from kernelet.dataplane.proxy.userspace.engine import UserspaceEngine

from ..proxy.topology import CONFIG, Topology


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
