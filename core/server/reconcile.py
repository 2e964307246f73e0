"""Housekeeping of an API server: leaked allocations, old events, compaction. Each is one task with its own period.

Several API servers may run them at once: every removal is a compare-and-swap.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from ..api import codec, times
from ..api.errors import JSON
from ..store import Compacted, KeyMissing, RevisionMismatch, Store, StoreError
from .allocators import ALLOCATIONS, Allocator, Claims, Taken, holder_of
from .entries import Entry
from .services import allocation_keys
from .watchcache import Feed

log = logging.getLogger(__name__)

SERVICES = "/registry/services/"
EVENTS = "/registry/events/"
_EVENT_TIMES = ("lastTimestamp", "eventTime", "firstTimestamp")


async def every(seconds: float, what: str, job: Callable[[], Awaitable[None]]) -> None:
    """Runs a job each `seconds` until cancelled; a store that fails is reported and asked again next time."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await job()
        except StoreError as error:
            log.warning("%s failed, next attempt in %.0f s: %s", what, seconds, error)


class AllocationRepair:
    """Returns allocations no service holds, and restores those that are missing."""

    def __init__(self, store: Store, feed: Feed, allocator: Allocator) -> None:
        self._store = store
        self._feed = feed
        self._allocator = allocator
        self._suspects: set[tuple[str, int]] = set()

    async def run(self) -> None:
        """One pass. An allocation is returned once two passes found no holder: its service may be on the way."""
        wanted = self._wanted()
        suspects: set[tuple[str, int]] = set()
        for entry in list(self._feed.collection(ALLOCATIONS).sorted()):
            if wanted.get(entry.key) == holder_of(entry.stored):
                continue
            found = (entry.key, entry.revision)
            if found in self._suspects:
                await self._return(entry)
            else:
                suspects.add(found)
        self._suspects = suspects
        await self._restore(wanted)

    def _wanted(self) -> dict[str, str]:
        wanted: dict[str, str] = {}
        for entry in self._feed.collection(SERVICES).sorted():
            service = codec.decode(entry.stored)
            for key in allocation_keys(service):
                wanted[key] = service["metadata"]["uid"]
        return wanted

    async def _return(self, entry: Entry) -> None:
        log.warning("allocation %s belongs to no service, it is released", entry.key)
        try:
            await self._store.delete(entry.key, entry.revision)
        except (KeyMissing, RevisionMismatch):
            log.debug("allocation %s was released by another server", entry.key)

    async def _restore(self, wanted: dict[str, str]) -> None:
        known = self._feed.collection(ALLOCATIONS)
        for key, uid in wanted.items():
            if known.get(key) is None:
                try:
                    await self._allocator.claim_key(key, Claims(uid, "restored"))
                    log.warning("allocation %s was missing and is restored for the service of uid %s", key, uid)
                except Taken:
                    log.debug("allocation %s exists by now", key)


class EventCleaner:
    """Removes Events older than their time to live, counted from when they were last seen."""

    def __init__(self, store: Store, feed: Feed, ttl_seconds: float) -> None:
        self._store = store
        self._feed = feed
        self._ttl = timedelta(seconds=ttl_seconds)

    async def run(self) -> None:
        now = times.now()
        for entry in list(self._feed.collection(EVENTS).sorted()):
            if now - _last_seen(codec.decode(entry.stored), now) > self._ttl:
                try:
                    await self._store.delete(entry.key, entry.revision)
                except (KeyMissing, RevisionMismatch):
                    log.debug("event %s was changed or removed meanwhile", entry.key)


def _last_seen(event: JSON, now: datetime) -> datetime:
    series = event.get("series") or {}
    stamps = [series.get("lastObservedTime"), *(event.get(name) for name in _EVENT_TIMES)]
    stamps.append(event["metadata"].get("creationTimestamp"))
    return max((found for found in map(times.parse_or_none, stamps) if found is not None), default=now)


class Compactor:
    """Forgets history older than one period, so that a client has at least that long to resume."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._last = 0

    async def run(self) -> None:
        due, self._last = self._last, await self._store.revision()
        if due:
            try:
                await self._store.compact(due)
            except Compacted:
                log.debug("revision %d was compacted by another server", due)
