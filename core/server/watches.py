"""One watch, from its initial events to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from ..api import codec
from ..api.errors import BadRequest, Expired, Timeout
from ..api.kinds import Kind
from ..store import Store
from .entries import Entry, Selection
from .requests import Ref, WatchEvent, WatchOptions
from .watchcache import Collection, Feed
from .watchers import Watcher, transition

BOOKMARK_SECONDS = 15.0
FRESHNESS_SECONDS = 3.0
INITIAL_EVENTS_END = "k8s.io/initial-events-end"
_FOREVER = 1e9


def parse_revision(text: str) -> int:
    """A client's resourceVersion as a number; "" and "0" are 0. Raises BadRequest."""
    if not text:
        return 0
    if not text.isascii() or not text.isdigit():
        raise BadRequest(f'invalid resource version "{text}": it must be one the server gave')
    return int(text)


def bookmark(kind: Kind, revision: int, *, initial_end: bool = False) -> WatchEvent:
    """Tells the watcher that it has seen everything up to `revision`."""
    metadata: dict[str, object] = {"resourceVersion": str(revision)}
    if initial_end:
        metadata["annotations"] = {INITIAL_EVENTS_END: "true"}
    body = {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": metadata}
    return WatchEvent("BOOKMARK", codec.encode(body), revision)


async def fresh(feed: Feed, store: Store, revision: int) -> None:
    """Waits for the cache to reach a client's revision. Raises Timeout where that revision is in the future."""
    if not await feed.wait_until(revision, FRESHNESS_SECONDS):
        now = await store.revision()
        raise Timeout(f"Too large resource version: {revision}, current: {now}", retry_after=1)


async def stream(
    feed: Feed, store: Store, ref: Ref, selection: Selection, options: WatchOptions
) -> AsyncGenerator[WatchEvent, None]:
    """Yields events until `timeout_seconds` have passed or the reader is too slow (then a last ERROR event).

    Raises Expired before the first event where the asked revision is gone.
    """
    asked = parse_revision(options.resource_version)
    await fresh(feed, store, asked or (await store.revision() if not options.resource_version else 0))
    collection = feed.collection(ref.kind.storage_prefix)
    watcher = Watcher(ref.namespace, selection)
    # No await between here and the generator's first read of the cache: snapshot and registration are one step.
    if asked and not options.send_initial_events:
        first = _resumed(collection, watcher, asked)
        seen = first[-1].revision if first else asked
    else:
        first = [WatchEvent("ADDED", e.wire(), e.revision) for e in _standing(collection, watcher)]
        seen = feed.revision
    started = feed.revision
    collection.watchers.add(watcher)
    try:
        for event in first:
            yield event
        if options.send_initial_events:
            yield bookmark(ref.kind, started, initial_end=True)
            seen = started
        async with aclosing(_live(feed, ref.kind, watcher, options, seen)) as events:
            async for event in events:
                yield event
    finally:
        collection.watchers.remove(watcher)


def _standing(collection: Collection, watcher: Watcher) -> list[Entry]:
    return [entry for entry in collection.sorted(watcher.namespace) if watcher.selection.matches(entry)]


def _resumed(collection: Collection, watcher: Watcher, asked: int) -> list[WatchEvent]:
    if asked < collection.floor:
        raise Expired(f"too old resource version: {asked} ({collection.floor})")
    events = []
    for change in collection.since(asked):
        entry = change.new or change.old
        if entry is None or (watcher.namespace and entry.namespace != watcher.namespace):
            continue
        found = transition(watcher.selection, change.old, change.new)
        if found is not None:
            events.append(WatchEvent(found[0], found[1].wire(change.revision), change.revision))
    return events


async def _live(
    feed: Feed, kind: Kind, watcher: Watcher, options: WatchOptions, seen: int
) -> AsyncGenerator[WatchEvent, None]:
    loop = asyncio.get_running_loop()
    end = loop.time() + (options.timeout_seconds or _FOREVER)
    next_bookmark = loop.time() + BOOKMARK_SECONDS
    while True:
        while watcher.queue:
            type_, entry, revision = watcher.queue.popleft()
            seen = revision
            yield WatchEvent(type_, entry.wire(revision), revision)
        if watcher.expired:
            yield WatchEvent("ERROR", codec.encode(Expired(watcher.expired).to_status()), seen)
            return
        now = loop.time()
        if options.bookmarks and (now >= next_bookmark or now >= end) and feed.revision > seen:
            # The queue is empty: everything up to the cache's revision has been sent.
            seen = feed.revision
            yield bookmark(kind, seen)
        if now >= end:
            return
        if now >= next_bookmark:
            next_bookmark = now + BOOKMARK_SECONDS
        await watcher.wait(min(end, next_bookmark) if options.bookmarks else end)
