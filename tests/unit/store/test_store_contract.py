"""What every store promises; each test runs on SQLite and on etcd."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing

import pytest

from kernelet.core.store import (
    Compacted,
    Event,
    EventType,
    FutureRevision,
    KeyExists,
    KeyMissing,
    KeyValue,
    RevisionMismatch,
    Store,
    StoreError,
    StoreUnavailable,
    open_store,
    watchers,
)
from kernelet.core.store.contract import Watcher


async def events_until(watcher: Watcher, revision: int) -> list[Event]:
    """Reads batches until one reaches `revision`; checks that batches and events are in order and do not overlap."""
    events: list[Event] = []
    seen = 0
    async with asyncio.timeout(10):
        async for batch in watcher:
            revisions = [event.kv.mod_revision for event in batch.events]
            assert revisions == sorted(revisions)
            assert all(seen < found <= batch.revision for found in revisions)
            assert batch.revision > seen
            seen = batch.revision
            events += batch.events
            if seen >= revision:
                break
    return events


async def test_a_created_key_is_read_back_with_its_revision(store: Store) -> None:
    before = await store.revision()
    created = await store.create("/pods/a", b"one")
    assert created.create_revision == created.mod_revision > before
    assert (
        await store.get("/pods/a") == created == KeyValue("/pods/a", b"one", created.mod_revision, created.mod_revision)
    )
    assert await store.revision() >= created.mod_revision
    assert await store.get("/pods/b") is None


async def test_creating_a_key_twice_is_refused_until_it_was_deleted(store: Store) -> None:
    first = await store.create("/a", b"one")
    with pytest.raises(KeyExists, match="/a"):
        await store.create("/a", b"two")
    assert (await store.get("/a")) == first
    await store.delete("/a", 0)
    again = await store.create("/a", b"two")
    assert again.create_revision == again.mod_revision > first.mod_revision


async def test_an_update_needs_the_revision_that_stands_and_tells_it_otherwise(store: Store) -> None:
    created = await store.create("/a", b"one")
    updated = await store.update("/a", b"two", created.mod_revision)
    assert (updated.value, updated.create_revision) == (b"two", created.create_revision)
    for stale in (created.mod_revision, 0):
        with pytest.raises(RevisionMismatch) as refused:
            await store.update("/a", b"three", stale)
        assert refused.value.current == updated
    with pytest.raises(KeyMissing):
        await store.update("/b", b"one", created.mod_revision)
    with pytest.raises(KeyMissing):
        await store.update("/b", b"one", 0)
    assert await store.get("/a") == updated


async def test_a_delete_tells_what_it_removed(store: Store) -> None:
    created = await store.create("/a", b"one")
    with pytest.raises(RevisionMismatch) as refused:
        await store.delete("/a", created.mod_revision + 1)
    assert refused.value.current == created
    event = await store.delete("/a", created.mod_revision)
    assert (event.type, event.previous, event.kv.value) == (EventType.DELETE, created, b"one")
    assert event.kv.mod_revision > created.mod_revision
    assert await store.get("/a") is None
    with pytest.raises(KeyMissing):
        await store.delete("/a", 0)


async def test_pages_of_a_list_are_one_snapshot_in_key_order(store: Store) -> None:
    names = ["/pods/a", "/pods/a/b", "/pods/b", "/pods/z", "/pods/é", "/pods/\U0001f600"]
    for name in reversed(names):
        await store.create(name, name.encode())
    await store.create("/podsx", b"not under the prefix")
    page = await store.list("/pods/", limit=2)
    kept, counts = list(page.items), [page.remaining]
    await store.delete("/pods/z", 0)
    await store.create("/pods/c", b"too late for the snapshot")
    while page.next_key:
        page = await store.list("/pods/", revision=page.revision, limit=2, start_key=page.next_key)
        kept += page.items
        counts.append(page.remaining)
    assert [item.key for item in kept] == sorted(names) == names
    assert [item.value for item in kept] == [name.encode() for name in names]
    assert counts == [4, 2, 0]
    now = await store.list("")
    assert "/pods/c" in {item.key for item in now.items} > {"/podsx", "/pods/a"}
    assert "/pods/z" not in {item.key for item in now.items}


async def test_revisions_out_of_reach_and_malformed_keys_are_refused(store: Store) -> None:
    await store.create("/a", b"")
    newest = await store.revision()
    with pytest.raises(FutureRevision):
        await store.list("/", revision=newest + 1000)
    with pytest.raises(FutureRevision):
        await store.compact(newest + 1000)
    for key in ("a", "", "/a\0b"):
        with pytest.raises(ValueError, match="key"):
            await store.create(key, b"")


async def test_compaction_forgets_what_was_replaced_and_keeps_what_stands(store: Store) -> None:
    first = await store.create("/a", b"one")
    second = await store.update("/a", b"two", first.mod_revision)
    await store.create("/gone", b"x")
    await store.delete("/gone", 0)
    deleted = await store.create("/b", b"x")
    event = await store.delete("/b", 0)
    await store.compact(event.kv.mod_revision)
    await store.compact(event.kv.mod_revision - 1)
    for revision in (first.mod_revision, event.kv.mod_revision - 1):
        with pytest.raises(Compacted) as refused:
            await store.list("/", revision=revision)
        assert refused.value.oldest == event.kv.mod_revision
        with pytest.raises(Compacted) as refused:
            await anext(store.watch("/", revision))
        assert refused.value.oldest == event.kv.mod_revision
    assert (await store.list("/", revision=event.kv.mod_revision)).items == (second,)
    # What the oldest revision did, and to what, is still known.
    async with aclosing(store.watch("/", event.kv.mod_revision)) as watcher:
        assert await events_until(watcher, event.kv.mod_revision) == [event]
    assert event.previous == deleted


async def test_a_watch_replays_the_past_and_goes_on_with_the_present(store: Store) -> None:
    created = await store.create("/pods/a", b"one")
    await store.create("/other", b"not of interest")
    updated = await store.update("/pods/a", b"two", created.mod_revision)
    past = [Event(EventType.PUT, created, None), Event(EventType.PUT, updated, created)]
    async with aclosing(store.watch("/pods/", created.mod_revision)) as watcher:
        assert await events_until(watcher, updated.mod_revision) == past
        deletion = await store.delete("/pods/a", 0)
        later = await store.create("/pods/a", b"three")
        present = [deletion, Event(EventType.PUT, later, None)]
        assert await events_until(watcher, later.mod_revision) == present
    async with aclosing(store.watch("/pods/", updated.mod_revision)) as watcher:
        assert await events_until(watcher, later.mod_revision) == [*past[1:], *present]


async def test_a_watch_may_start_in_the_future(store: Store) -> None:
    start = await store.revision()
    for offset in (3, 1):
        async with aclosing(store.watch("/", start + offset)) as watcher:
            reading = asyncio.create_task(events_until(watcher, start + 4))
            await asyncio.sleep(0.01)
            written = [await store.create(f"/{offset}/{number}", b"") for number in range(4)]
            assert [event.kv for event in await reading] == written[offset - 1 :]
        start = written[-1].mod_revision


async def test_a_watcher_of_a_quiet_prefix_learns_how_far_the_store_got(store: Store) -> None:
    async with aclosing(store.watch("/quiet/", await store.revision() + 1)) as watcher:
        for _ in range(2):
            written = await store.create(f"/busy/{_}", b"")
            async with asyncio.timeout(2):
                batch = await anext(watcher)
            assert (batch.events, batch.revision) == ((), written.mod_revision)


async def test_a_watcher_that_does_not_read_gets_everything_once_from_the_log(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchers, "BUFFER_EVENTS", 8)
    first = await store.create("/a", b"0")
    async with aclosing(store.watch("/", first.mod_revision)) as watcher:
        await events_until(watcher, first.mod_revision)
        waiting = asyncio.create_task(anext(watcher))
        written = [await store.create("/live", b"")]
        assert [event.kv for event in (await waiting).events] == written
        for number in range(100):
            written.append(await store.create(f"/n/{number}", b""))
        events = await events_until(watcher, written[-1].mod_revision)
        assert [event.kv for event in events] == written[1:]
        last = await store.create("/live/again", b"")
        assert [event.kv for event in await events_until(watcher, last.mod_revision)] == [last]


async def test_a_cancelled_wait_for_the_next_batch_loses_nothing(store: Store) -> None:
    written = [await store.create("/first", b"")]
    seen: list[KeyValue] = []
    async with aclosing(store.watch("/", written[0].mod_revision)) as watcher, asyncio.timeout(20):
        for number in range(30):
            written.append(await store.create(f"/{number}", b""))
            for patience in (0, 0.0005, 0.002):
                try:
                    async with asyncio.timeout(patience):
                        seen += [event.kv for event in (await anext(watcher)).events]
                except TimeoutError:
                    continue
        while len(seen) < len(written):
            seen += [event.kv for event in (await anext(watcher)).events]
    assert seen == written


async def test_closing_a_watcher_ends_the_task_that_reads_it(store: Store) -> None:
    watcher = store.watch("/", await store.revision() + 1)

    async def read() -> str:
        async for _ in watcher:
            pass
        return "ended"

    reader = asyncio.create_task(read())
    await store.create("/a", b"")
    await asyncio.sleep(0.01)
    await watcher.aclose()
    assert await asyncio.wait_for(reader, 1) == "ended"
    await watcher.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(watcher)


async def test_closing_the_store_ends_its_watchers_tasks_and_threads(url: str) -> None:
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    store = await open_store(url)
    started = await store.create("/a", b"")
    waiting = asyncio.create_task(events_until(store.watch("/", started.mod_revision), 1 << 60))
    written = asyncio.create_task(store.create("/b", b""))
    await asyncio.sleep(0.05)
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await waiting
    await asyncio.wait([written])
    for call in (store.get("/a"), store.create("/c", b"")):
        with pytest.raises(StoreUnavailable, match="closed"):
            await call
    # gRPC's own tasks see the end of their calls a few turns of the loop later.
    await asyncio.wait(asyncio.all_tasks() - tasks or [asyncio.create_task(asyncio.sleep(0))], timeout=1)
    assert asyncio.all_tasks() == tasks
    own = {thread.name for thread in set(threading.enumerate()) - threads if thread.name.startswith("store")}
    assert own == set()


async def test_of_many_writers_racing_for_a_key_exactly_one_wins_each_revision(store: Store) -> None:
    created = await store.create("/counter", b"0")
    wins: list[int] = []

    async def increment() -> None:
        standing = created
        for _ in range(5):
            while True:
                try:
                    value = str(int(standing.value) + 1).encode()
                    standing = await store.update("/counter", value, standing.mod_revision)
                except RevisionMismatch as lost:
                    standing = lost.current
                else:
                    wins.append(standing.mod_revision)
                    break

    await asyncio.gather(*(increment() for _ in range(16)))
    final = await store.get("/counter")
    assert final is not None
    assert int(final.value) == len(wins) == len(set(wins)) == 80
    async with aclosing(store.watch("/counter", created.mod_revision + 1)) as watcher:
        events = await events_until(watcher, final.mod_revision)
    assert [event.kv.value for event in events] == [str(number).encode() for number in range(1, 81)]


async def test_of_many_creations_of_one_key_exactly_one_succeeds(store: Store) -> None:
    results = await asyncio.gather(*(store.create("/a", str(n).encode()) for n in range(32)), return_exceptions=True)
    created = [result for result in results if isinstance(result, KeyValue)]
    assert len(created) == 1
    assert all(isinstance(result, KeyValue | KeyExists) for result in results)
    assert await store.get("/a") == created[0]


async def test_watchers_see_concurrent_writes_once_each_while_old_ones_are_compacted(store: Store) -> None:
    start = await store.revision() + 1
    writing = True

    async def write(writer: int) -> None:
        for number in range(30):
            item = await store.create(f"/{writer}/{number}", b"x")
            item = await store.update(item.key, b"y", item.mod_revision)
            await store.delete(item.key, item.mod_revision)

    async def compact() -> None:
        while writing:
            await store.compact(await store.revision() - 200)
            await asyncio.sleep(0.01)

    async def follow() -> list[Event]:
        async with aclosing(store.watch("/3/", start)) as watcher:
            found: list[Event] = []
            while len(found) < 90:
                found += (await anext(watcher)).events
            return found

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        followers = [group.create_task(follow()) for _ in range(3)]
        await asyncio.sleep(0)
        compaction = group.create_task(compact())
        await asyncio.gather(*(write(writer) for writer in range(8)))
        writing = False
        await compaction
    for follower in followers:
        events = follower.result()
        assert len(events) == 90
        assert [event.kv.value for event in events] == [b"x", b"y", b"y"] * 30
        assert all((event.previous is None) == (index % 3 == 0) for index, event in enumerate(events))


async def test_a_url_without_a_store_is_refused_with_the_fix() -> None:
    with pytest.raises(ValueError, match="sqlite:///FILE"):
        await open_store("mysql://x")
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:2379"):
        await open_store("etcd://")
    with pytest.raises(StoreError, match="check that it runs"):
        await open_store("etcd://127.0.0.1:1")
