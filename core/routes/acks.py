"""Who holds which version: acknowledgements of connected nodes, and waiting for them. No I/O."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field


class Signal:
    """Something changed: wakes all who wait for a condition, to look again."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Event] = set()

    def notify(self) -> None:
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


@dataclass(slots=True)
class NodeAcks:
    """One node that has connected in this generation."""

    acked: int = 0
    stream: int = 0
    """The number of its newest stream; 0 while it has none."""
    error: str = ""
    behind_since: float | None = None
    """time.monotonic() of when it fell behind; None while it is up to date."""

    @property
    def connected(self) -> bool:
        return self.stream > 0


@dataclass(slots=True)
class AckTable:
    """Acknowledged versions by node. Whoever alters which pods are routed, or nodes live, notifies `changed`.

    A node that comes back may be heard before its old stream is known to be dead; so streams are numbered, and only the
    newest one's messages and end count.
    """

    version: int = 0
    """The newest there is."""
    nodes: dict[str, NodeAcks] = field(default_factory=dict)
    changed: Signal = field(default_factory=Signal)
    _streams: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def connect(self, node: str) -> int:
        """A node's stream opened: what it holds is unknown until it says so. Returns the stream's number."""
        entry = self.nodes.setdefault(node, NodeAcks())
        entry.stream = next(self._streams)
        entry.acked = 0
        self._note_lag(entry)
        self.changed.notify()
        return entry.stream

    def disconnect(self, node: str, stream: int) -> None:
        entry = self._entry(node, stream)
        if entry is not None:
            entry.stream = 0
            self.changed.notify()

    def forget(self, node: str) -> None:
        """The node is no member any more; no effect while it is connected, since it may become one again."""
        if node in self.nodes and not self.nodes[node].connected:
            del self.nodes[node]

    def ack(self, node: str, stream: int, version: int) -> None:
        """The node's kernel holds `version`; 0 says that it holds nothing known."""
        entry = self._entry(node, stream)
        if entry is None:
            return
        entry.acked = max(entry.acked, version)
        if version:
            entry.error = ""
        if entry.acked >= self.version:
            entry.behind_since = None
        self.changed.notify()

    def fail(self, node: str, stream: int, error: str) -> None:
        entry = self._entry(node, stream)
        if entry is not None:
            entry.error = error

    def note_version(self, version: int) -> None:
        """A new version stands: whoever does not hold it begins to lag."""
        self.version = version
        for entry in self.nodes.values():
            self._note_lag(entry)
        self.changed.notify()

    def lagging(self, version: int, live: Iterable[str]) -> list[str]:
        """Live nodes whose kernel is not known to hold `version`, those included that are not connected now.

        Their kernels go on routing by an older version: an agent that was killed is no reason to wait for nothing.
        """
        return sorted(name for name in live if name not in self.nodes or self.nodes[name].acked < version)

    def lag_seconds(self, node: str) -> float:
        behind_since = self.nodes[node].behind_since
        return 0.0 if behind_since is None else time.monotonic() - behind_since

    def _entry(self, node: str, stream: int) -> NodeAcks | None:
        entry = self.nodes.get(node)
        return entry if entry is not None and entry.stream == stream else None

    def _note_lag(self, entry: NodeAcks) -> None:
        if entry.acked < self.version and entry.behind_since is None:
            entry.behind_since = time.monotonic()
