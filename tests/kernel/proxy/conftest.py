"""The engine of these tests."""

from __future__ import annotations

import pytest

from kernelet.dataplane.proxy.nftables.engine import NftablesEngine


@pytest.fixture
def engine(nftables: NftablesEngine) -> NftablesEngine:
    return nftables
