"""One topology for a module's tests; a fresh engine and an empty table for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kernelet.dataplane.proxy import create_engine
from kernelet.dataplane.proxy.nftables import NftablesEngine

from .topology import CONFIG, Topology


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
