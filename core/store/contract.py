"""The Store contract: etcd's model (keys, one revision counter, compare-and-swap, watch, compaction).

Revisions are positive integers that grow by one or more with each committed write, also across restarts. Every call
may be made from any task of one event loop; a call that returned a revision has made it durable. Every call may raise
StoreUnavailable; after that, or after a cancellation, a write may or may not have happened: read to know.

Keys start with `/` and are ordered by code point; another key is a ValueError.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol


class StoreError(Exception):
    """Base of every store error."""


class KeyExists(StoreError):
    """create: the key exists."""


class KeyMissing(StoreError):
    """update or delete: there is no such key."""


class RevisionMismatch(StoreError):
    """update or delete: the key's mod_revision is not the expected one; `current` is the value that stands."""

    def __init__(self, message: str, current: KeyValue) -> None:
        super().__init__(message)
        self.current = current


class Compacted(StoreError):
    """The asked revision is older than the oldest kept; `oldest` is the first that can be asked."""

    def __init__(self, message: str, oldest: int) -> None:
        super().__init__(message)
        self.oldest = oldest


class FutureRevision(StoreError):
    """The asked revision has not been reached."""


class StoreUnavailable(StoreError):
    """The store cannot be reached or cannot write (disk full, etcd down); the message names it and the fix."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    key: str
    value: bytes
    create_revision: int
    mod_revision: int


class EventType(enum.Enum):
    PUT = "PUT"
    DELETE = "DELETE"


@dataclass(frozen=True, slots=True)
class Event:
    """One committed change. For DELETE, `kv` holds the last value with mod_revision = the deletion's revision."""

    type: EventType
    kv: KeyValue
    previous: KeyValue | None
    """What stood before; None for a creation."""


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """Events in revision order, all that happened up to `revision`; empty events mark progress only."""

    events: tuple[Event, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Page:
    items: tuple[KeyValue, ...]
    revision: int
    """The store's revision this page is a snapshot of; ask the next page with it."""
    next_key: str
    """Where the next page starts; "" when this is the last."""
    remaining: int
    """Keys left after this page."""


class Watcher(Protocol):
    """What Store.watch returns: `async for batch in watcher`, ended by `aclose()` (contextlib.aclosing does it).

    A pending `anext` may be cancelled (asyncio.timeout) without losing anything. aclose() may be called by any task,
    also while another waits in `anext`, which then sees the end of the iteration. A watcher that was dropped without
    aclose() is released by the garbage collector.
    """

    def __aiter__(self) -> AsyncIterator[WatchBatch]: ...

    async def __anext__(self) -> WatchBatch: ...

    async def aclose(self) -> None: ...


class Store(Protocol):
    """A durable, watchable, ordered map. Implementations: SqliteStore, EtcdStore."""

    async def get(self, key: str) -> KeyValue | None:
        """What stands now, every acknowledged write included; None if there is no such key."""
        ...

    async def list(self, prefix: str, *, revision: int = 0, limit: int = 0, start_key: str = "") -> Page:
        """Keys with this prefix ("": all) in key order, as of `revision` (0: now), from `start_key` on.

        limit 0 is no limit. Raises Compacted, FutureRevision.
        """
        ...

    async def create(self, key: str, value: bytes) -> KeyValue:
        """Raises KeyExists."""
        ...

    async def update(self, key: str, value: bytes, expected: int) -> KeyValue:
        """Replaces the value if its mod_revision is `expected`. Raises KeyMissing, RevisionMismatch."""
        ...

    async def delete(self, key: str, expected: int) -> Event:
        """Removes the key if its mod_revision is `expected` (0: whatever stands).

        Raises KeyMissing, RevisionMismatch.
        """
        ...

    def watch(self, prefix: str, from_revision: int) -> Watcher:
        """Every change of revision >= from_revision, each once, in order; then waits for more.

        Yields a batch with no events from time to time (at least each second while the store moves on elsewhere), so
        that a reader knows the revision it has seen. from_revision may lie in the future; 0 or 1 is the beginning.
        Raises Compacted from the iteration when from_revision is gone, or when the reader was so slow that what it
        has not read yet is gone; raises StoreUnavailable once the store is closed.
        """
        ...

    async def revision(self) -> int:
        """The revision of the newest committed write (0 or 1: none yet)."""
        ...

    async def compact(self, revision: int) -> None:
        """Forgets what was overwritten or deleted before `revision`.

        list at a revision below it and watch from below it raise Compacted from now on; `revision` itself can be asked.
        Does nothing if that much is gone already. Raises FutureRevision. Other calls go on meanwhile.
        """
        ...

    async def close(self) -> None:
        """Ends every watcher, task and thread. Writes asked before are committed first."""
        ...
