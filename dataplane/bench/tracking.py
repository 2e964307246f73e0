"""What the node of a world tracks: connection tracking decides what a new connection costs, so it is watched.

Each network namespace has a table's worth of entries of its own, but the limit (`nf_conntrack_max`) is the machine's,
and so is the hash table: entries that one subject leaves behind lengthen the chains that the next one's packets walk.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kernelet.ext.nft import AF_INET, Socket

from .topology import World

_SYSCTLS = Path("/proc/sys/net/netfilter")
_STATISTICS = Path("/proc/thread-self/net/stat/nf_conntrack")
_DELETE = 1 << 8 | 2
"""IPCTNL_MSG_CT_DELETE (linux/netfilter/nfnetlink_conntrack.h); without a tuple it is for all of a family."""


@dataclass(frozen=True, slots=True)
class Tracking:
    """The table of a world's node."""

    entries: int
    limit: int
    """As many entries as a namespace of this machine may have."""
    pushed_out: int
    """Connections since the world was made whose entry made room for another, or that got none: the table was full."""


def tracking(world: World) -> Tracking:
    """All zero where the kernel has no connection tracking, or none that is loaded."""
    return world.node.inside(_read)


def _read() -> Tracking:
    if not (_SYSCTLS / "nf_conntrack_count").exists():
        return Tracking(0, 0, 0)
    entries, limit = (int((_SYSCTLS / f"nf_conntrack_{name}").read_text()) for name in ("count", "max"))
    names, *processors = (line.split() for line in _STATISTICS.read_text().splitlines())
    columns = [names.index(name) for name in ("drop", "early_drop")]
    return Tracking(entries, limit, sum(int(row[column], 16) for row in processors for column in columns))


def forget(world: World) -> None:
    """Empties the table. Raises NetlinkError."""

    def flush() -> None:
        with Socket() as socket:
            socket.request(_DELETE, 0, AF_INET, b"")

    if tracking(world).entries:
        world.node.inside(flush)
