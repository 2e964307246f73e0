"""Watchers of one collection, indexed so that a change visits only those it may concern."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator

from .entries import Entry, Selection

QUEUE_LIMIT = 8192
"""Events a watcher may leave unread before its watch ends."""

Item = tuple[str, Entry, int]
"""Event type, object, revision."""


def transition(selection: Selection, old: Entry | None, new: Entry | None) -> tuple[str, Entry] | None:
    """What a change is to a watcher with a selection: an object that stops matching is DELETED as it last matched."""
    was = old is not None and selection.matches(old)
    if new is not None and selection.matches(new):
        return ("MODIFIED" if was else "ADDED"), new
    return ("DELETED", old) if was and old is not None else None


class Watcher:
    """A queue of events with one reader. `expired` holds the reason once the watch has ended from this side."""

    def __init__(self, namespace: str, selection: Selection) -> None:
        self.namespace = namespace
        self.selection = selection
        self.queue: deque[Item] = deque()
        self.expired = ""
        self._wake = asyncio.Event()

    def offer(self, old: Entry | None, new: Entry | None, revision: int) -> None:
        found = transition(self.selection, old, new)
        if found is None or self.expired:
            return
        if len(self.queue) >= QUEUE_LIMIT:
            self.queue.clear()
            self.expire(f"the watcher is too slow: {QUEUE_LIMIT} events were left unread; list again")
            return
        self.queue.append((*found, revision))
        self._wake.set()

    def expire(self, why: str) -> None:
        self.expired = why
        self._wake.set()

    async def wait(self, until: float) -> None:
        """Returns once something is queued, the watch has expired, or the loop's clock has reached `until`."""
        if self.queue or self.expired:
            return
        self._wake.clear()
        try:
            async with asyncio.timeout_at(until):
                await self._wake.wait()
        except TimeoutError:
            return


class Dispatcher:
    """Each watcher sits in one bucket: by object name, by node, by namespace, or with those that see all."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, str], dict[Watcher, None]] = {}
        self._by_node = 0

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self._buckets.values())

    def add(self, watcher: Watcher) -> None:
        bucket = self._bucket_of(watcher)
        self._by_node += bucket[0] == "node"
        self._buckets.setdefault(bucket, {})[watcher] = None

    def remove(self, watcher: Watcher) -> None:
        bucket = self._bucket_of(watcher)
        watchers = self._buckets.get(bucket, {})
        if watcher not in watchers:
            return
        del watchers[watcher]
        self._by_node -= bucket[0] == "node"
        if not watchers:
            self._buckets.pop(bucket, None)

    def dispatch(self, old: Entry | None, new: Entry | None, revision: int) -> None:
        entry = new or old
        if entry is None or not self._buckets:
            return
        keys = [("all", ""), ("namespace", entry.namespace), ("name", entry.name)]
        if self._by_node:
            keys.extend({("node", side.node): None for side in (old, new) if side is not None})
        for key in keys:
            for watcher in self._buckets.get(key, ()):
                if not watcher.namespace or watcher.namespace == entry.namespace:
                    watcher.offer(old, new, revision)

    def expire(self, why: str) -> None:
        for watcher in list(self):
            watcher.expire(why)

    def __iter__(self) -> Iterator[Watcher]:
        for bucket in self._buckets.values():
            yield from bucket

    def _bucket_of(self, watcher: Watcher) -> tuple[str, str]:
        selection = watcher.selection
        if selection.name:
            return ("name", selection.name)
        if selection.node:
            return ("node", selection.node)
        namespace = watcher.namespace or selection.namespace
        return ("namespace", namespace) if namespace else ("all", "")
