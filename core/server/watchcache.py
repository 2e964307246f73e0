"""The watch cache: everything under /registry/ in memory, fed by one watch of the store.

One feed serves all kinds, so that the whole cache has one revision and a read that asks for the newest state waits
for one number. A collection (one kind) keeps its objects by key and by namespace and a ring of its newest changes,
from which watches resume. On start the feed first loads a snapshot some thousand revisions old where the store still
has it, and replays the changes since: clients then resume their watches over a restart of the server.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..store import Compacted, EventType, FutureRevision, KeyValue, Store, StoreUnavailable
from ..store import Event as StoreEvent
from .entries import Entry
from .watchers import Dispatcher

log = logging.getLogger(__name__)

PREFIX = "/registry/"
RING = 4096
REPLAYED_REVISIONS = 2000
PAGE = 2000
_BACKOFF_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Change:
    """A creation (old None), an update, or a deletion (new None) at a revision."""

    old: Entry | None
    new: Entry | None
    revision: int


class Collection:
    """One kind's objects and newest changes."""

    def __init__(self, floor: int) -> None:
        self._objects: dict[str, Entry] = {}
        self._by_namespace: dict[str, dict[str, Entry]] = {}
        self._sorted: list[str] | None = None
        self.ring: deque[Change] = deque()
        self.floor = floor
        """Every change after this revision is in the ring."""
        self.last_change = floor
        """The revision of the newest change; a snapshot at or after it equals the present state."""
        self.watchers = Dispatcher()

    def get(self, key: str) -> Entry | None:
        return self._objects.get(key)

    def __len__(self) -> int:
        return len(self._objects)

    def sorted(self, namespace: str = "") -> Iterable[Entry]:
        """Entries in key order, of one namespace or all."""
        if namespace:
            entries = self._by_namespace.get(namespace, {})
            return [entries[key] for key in sorted(entries)]
        if self._sorted is None:
            self._sorted = sorted(self._objects)
        return [self._objects[key] for key in self._sorted]

    def since(self, revision: int) -> Iterator[Change]:
        """The changes after a revision that is not below the floor, oldest first."""
        newest = []
        for change in reversed(self.ring):
            if change.revision <= revision:
                break
            newest.append(change)
        return reversed(newest)

    def load(self, kv: KeyValue) -> None:
        """Adds an object of the first snapshot."""
        self._put(Entry.of(kv))

    def apply(self, event: StoreEvent) -> None:
        """Takes one change of the store and hands it to the watchers it concerns."""
        key, revision = event.kv.key, event.kv.mod_revision
        old = self._objects.get(key)
        if event.type is EventType.PUT:
            new = Entry.of(event.kv)
            self._put(new)
            change = Change(old, new, revision)
        else:
            if old is None:
                return
            self._remove(old)
            change = Change(old, None, revision)
        if len(self.ring) >= RING:
            self.floor = self.ring.popleft().revision
        self.ring.append(change)
        self.last_change = revision
        self.watchers.dispatch(change.old, change.new, revision)

    def _put(self, entry: Entry) -> None:
        if entry.key not in self._objects:
            self._sorted = None
        self._objects[entry.key] = entry
        if entry.namespace:
            self._by_namespace.setdefault(entry.namespace, {})[entry.key] = entry

    def _remove(self, entry: Entry) -> None:
        self._sorted = None
        del self._objects[entry.key]
        if entry.namespace:
            entries = self._by_namespace[entry.namespace]
            del entries[entry.key]
            if not entries:
                del self._by_namespace[entry.namespace]


class Feed:
    """All collections and the task that keeps them current. Read only between awaits of one event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._collections: dict[str, Collection] = {}
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._floor = 0
        self.revision = 0
        self.following = False

    def collection(self, prefix: str) -> Collection:
        """The collection of a kind's storage prefix, such as `/registry/pods/`."""
        found = self._collections.get(prefix)
        if found is None:
            found = self._collections[prefix] = Collection(self._floor)
        return found

    async def wait_until(self, revision: int, seconds: float) -> bool:
        """Whether the cache holds everything up to `revision` within `seconds`."""
        if self.revision >= revision:
            return True
        reached = asyncio.get_running_loop().create_future()
        waiter = (revision, reached)
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(seconds):
                await reached
        except TimeoutError:
            return self.revision >= revision
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
        return True

    async def load(self) -> None:
        """Fills the cache from the store. Raises StoreUnavailable."""
        newest = await self._store.revision()
        start = max(1, newest - REPLAYED_REVISIONS)
        try:
            await self._load_at(start)
        except Compacted as error:
            try:
                await self._load_at(error.oldest)
            except Compacted:
                await self._load_at(0)  # compacted again meanwhile
        except FutureRevision:
            await self._load_at(0)  # an empty store

    async def _load_at(self, revision: int) -> None:
        items: list[KeyValue] = []
        page = await self._store.list(PREFIX, revision=revision, limit=PAGE)
        items.extend(page.items)
        snapshot = revision or page.revision
        while page.next_key:
            page = await self._store.list(PREFIX, revision=snapshot, limit=PAGE, start_key=page.next_key)
            items.extend(page.items)
        self._floor = snapshot
        self._collections = {}
        for kv in items:
            self.collection(_prefix_of(kv.key)).load(kv)
        self._advance(snapshot)

    async def follow(self) -> None:
        """Keeps the cache current until cancelled; survives an unreachable store and a compaction it slept through."""
        failures = 0
        while True:
            try:
                async for batch in self._store.watch(PREFIX, self.revision + 1):
                    self.following, failures = True, 0
                    for event in batch.events:
                        self.collection(_prefix_of(event.kv.key)).apply(event)
                    self._advance(batch.revision)
                log.warning("the store ended its watch, opening another")
            except Compacted:
                log.warning("the cache at revision %d fell behind the store's compaction, loading anew", self.revision)
                await self._reload()
            except StoreUnavailable as error:
                log.warning("the store cannot be followed, retrying: %s", error)
            self.following = False
            await asyncio.sleep(_BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS) - 1)])
            failures += 1

    async def _reload(self) -> None:
        old = self._collections
        try:
            await self._load_at(0)
        except StoreUnavailable as error:
            log.warning("the store cannot be read, retrying: %s", error)
            return
        for collection in old.values():
            collection.watchers.expire("the server fell behind the store and has loaded it anew; list again")

    def _advance(self, revision: int) -> None:
        if revision <= self.revision:
            return
        self.revision = revision
        if not self._waiters:
            return
        waiting = []
        for waiter in self._waiters:
            if waiter[0] > revision:
                waiting.append(waiter)
            elif not waiter[1].done():
                waiter[1].set_result(None)
        self._waiters = waiting


def _prefix_of(key: str) -> str:
    return key[: key.index("/", len(PREFIX)) + 1]
