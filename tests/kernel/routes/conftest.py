"""The topologies and engines of their own tests."""

from __future__ import annotations

from ..ebpf.conftest import bpffs, engine, feed, node, topology
from ..trace.conftest import nftables

__all__ = ["bpffs", "engine", "feed", "nftables", "node", "topology"]
