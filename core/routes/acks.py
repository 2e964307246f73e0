"""Who holds which version: acknowledgements of connected nodes, and waiting for them. No I/O."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class NodeAcks:
    """One node that has connected in this generation."""

    acked: int = 0
    connected: bool = False
    error: str = ""
    behind_since: float | None = None
    """time.monotonic() of when it fell behind; None while it is up to date."""


@dataclass(slots=True)
class AckTable:
    """Acknowledged versions by node. `changed` is called by whoever alters the route table or the set of live nodes."""

    version: int = 0
    """The newest there is."""
    nodes: dict[str, NodeAcks] = field(default_factory=dict)
    _waiters: set[asyncio.Event] = field(default_factory=set)

    def connect(self, node: str) -> None:
        """A node's stream opened: what it holds is unknown until it says so."""
        entry = self.nodes.setdefault(node, NodeAcks())
        entry.connected = True
        entry.acked = 0
        self.changed()

    def disconnect(self, node: str) -> None:
        self.nodes[node].connected = False
        self.changed()

    def ack(self, node: str, version: int) -> None:
        entry = self.nodes[node]
        entry.acked = max(entry.acked, version)
        entry.error = ""
        if entry.acked >= self.version:
            entry.behind_since = None
        self.changed()

    def fail(self, node: str, error: str) -> None:
        self.nodes[node].error = error

    def note_version(self, version: int) -> None:
        """A new version stands: whoever does not hold it begins to lag."""
        self.version = version
        now = time.monotonic()
        for entry in self.nodes.values():
            if entry.acked < version and entry.behind_since is None:
                entry.behind_since = now
        self.changed()

    def lagging(self, version: int, live: Iterable[str]) -> list[str]:
        """Live nodes whose kernel is not known to hold `version`, those included that are not connected now.

        Their kernels go on routing by an older version: an agent that was killed is no reason to wait for nothing.
        """
        return sorted(name for name in live if self.nodes.get(name, NodeAcks()).acked < version)

    def lag_seconds(self, node: str) -> float:
        behind_since = self.nodes[node].behind_since
        return 0.0 if behind_since is None else time.monotonic() - behind_since

    def changed(self) -> None:
        """Wakes everyone who waits, to look again."""
        for event in self._waiters:
            event.set()

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Returns once `condition` holds; it is looked at after each change. Bound it by asyncio.timeout."""
        event = asyncio.Event()
        self._waiters.add(event)
        try:
            while not condition():
                await event.wait()
                event.clear()
        finally:
            self._waiters.discard(event)
