"""What holds for the SQLite store alone: crashes, a full disk, one process per file, the file's size."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sqlite3
import stat
import sys
import time
from contextlib import aclosing
from pathlib import Path

import pytest

from kernelet.core.store import Event, KeyExists, StoreUnavailable, open_store
from kernelet.core.store.sqlite import SqliteStore

CHILD = [sys.executable, str(Path(__file__).with_name("store_child.py"))]


async def start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(*CHILD, *arguments, stdout=asyncio.subprocess.PIPE)


async def test_whatever_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    path = str(tmp_path / "store.db")
    acknowledged: dict[str, int] = {}
    newest = 0
    chance = random.Random(7)
    for _ in range(8):
        child = await start("write", path)
        assert child.stdout is not None
        lines = [await child.stdout.readline()]
        await asyncio.sleep(chance.uniform(0, 0.2))
        child.send_signal(signal.SIGKILL)
        lines += (await child.stdout.read()).splitlines(keepends=True)
        await child.wait()
        found = dict(line.decode().split() for line in lines if line.endswith(b"\n"))
        assert found
        assert min(int(revision) for revision in found.values()) > newest
        acknowledged |= {key: int(revision) for key, revision in found.items()}
        store = await SqliteStore.open(path)
        standing = {item.key: item.mod_revision for item in (await store.list("/")).items}
        newest = await store.revision()
        await store.close()
        assert acknowledged.items() <= standing.items()
        assert newest >= max(standing.values())
    assert len(acknowledged) > 100


async def test_a_full_disk_fails_writes_with_the_fix_and_loses_nothing_and_works_again(tmp_path: Path) -> None:
    path = str(tmp_path / "store.db")
    child = await start("full", path, "3000000")
    assert child.stdout is not None
    async with asyncio.timeout(20):
        told = json.loads(await child.stdout.read())
    assert await child.wait() == 0
    assert len(told["done"]) > 20
    assert all(path in error and "free space" in error for error in told["errors"])
    assert sorted(told["listed"]) == sorted(told["done"])
    assert sorted(told["watched"]) == sorted([*told["done"], "/after"])
    store = await open_store(f"sqlite://{path}")
    assert {item.key for item in (await store.list("/")).items} == {*told["done"], "/after"}
    assert await store.revision() == told["last"]
    await store.close()


async def test_a_file_is_refused_to_a_second_opener_and_free_after_close(tmp_path: Path) -> None:
    path = str(tmp_path / "store.db")
    store = await SqliteStore.open(path)
    child = await start("open", path)
    assert child.stdout is not None
    told = (await child.stdout.read()).decode()
    await child.wait()
    with pytest.raises(StoreUnavailable) as refused:
        await SqliteStore.open(path)
    await store.close()
    for message in (told, str(refused.value)):
        assert path in message
        assert "in use by process" in message
    await (await SqliteStore.open(path)).close()


async def test_a_file_that_is_no_store_is_refused_with_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"something else " * 1000)
    with pytest.raises(StoreUnavailable, match="choose another file"):
        await SqliteStore.open(str(path))
    with pytest.raises(StoreUnavailable, match=r"folder|directory"):
        await SqliteStore.open(str(path / "below" / "store.db"))


async def test_the_files_can_be_read_by_their_owner_only(tmp_path: Path) -> None:
    store = await SqliteStore.open(str(tmp_path / "new" / "store.db"))
    await store.create("/secrets/a", b"x")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").iterdir()}
    await store.close()
    assert modes == dict.fromkeys(["store.db", "store.db-wal", "store.db-shm", "store.db.lock"], 0o600)


async def test_revisions_and_compaction_go_on_after_a_restart(tmp_path: Path) -> None:
    path = str(tmp_path / "store.db")
    store = await SqliteStore.open(path)
    created = await store.create("/a", b"one")
    event = await store.delete("/a", 0)
    await store.compact(event.kv.mod_revision)
    await store.close()
    store = await SqliteStore.open(path)
    assert await store.revision() == event.kv.mod_revision
    with pytest.raises(Exception, match="compacted"):
        await store.list("/", revision=created.mod_revision)
    again = await store.create("/a", b"two")
    assert again.mod_revision > event.kv.mod_revision
    async with aclosing(store.watch("/", event.kv.mod_revision)) as watcher:
        kinds = [(found.type, found.kv.mod_revision) for found in (await anext(watcher)).events]
    assert [revision for _, revision in kinds] == [event.kv.mod_revision, again.mod_revision]
    await store.close()


async def test_refused_writes_of_a_group_do_not_fail_the_others(tmp_path: Path) -> None:
    store = await SqliteStore.open(str(tmp_path / "store.db"))
    await store.create("/1", b"")
    calls = [store.create(f"/{number % 7}", b"") for number in range(100)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(result, KeyExists) for result in results) == 94
    assert len((await store.list("/")).items) == 7
    assert await store.revision() == 7
    await store.close()


async def test_a_cancelled_caller_stops_neither_the_writer_nor_the_others(tmp_path: Path) -> None:
    store = await SqliteStore.open(str(tmp_path / "store.db"))
    tasks = [asyncio.create_task(store.create(f"/{number}", b"")) for number in range(50)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert not any(isinstance(result, BaseException) for result in results[1::2])
    standing = {item.key for item in (await store.list("/")).items}
    assert standing >= {f"/{number}" for number in range(1, 50, 2)}
    await store.close()


async def test_compaction_bounds_the_file_and_lets_writes_through(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = await SqliteStore.open(str(path))
    size = 0
    slowest = 0.0
    for _ in range(4):
        for number in range(4):
            await asyncio.gather(*(overwrite(store, f"/{key}", 5) for key in range(number * 25, number * 25 + 25)))
        compaction = asyncio.create_task(store.compact(await store.revision()))
        while not compaction.done():
            started = time.monotonic()
            await overwrite(store, "/during", 1)
            slowest = max(slowest, time.monotonic() - started)
        await compaction
        size = max(size, path.stat().st_size)
    await store.close()
    # 8,000 values of 4 KiB were written, 101 are left.
    assert size < 16 << 20
    assert path.stat().st_size < 5 << 20
    assert slowest < 1


async def test_compaction_leaves_no_row_of_what_was_deleted_or_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "store.db")
    store = await SqliteStore.open(path)
    await store.create("/stays", b"one")
    for _ in range(2):
        await asyncio.gather(*(store.create(f"/{number}", b"x") for number in range(700)))
        await asyncio.gather(*(overwrite(store, f"/{number}", 1) for number in range(700)))
        await asyncio.gather(*(store.delete(f"/{number}", 0) for number in range(700)))
        last = await store.create(f"/last/{_}", b"")
        await store.compact(last.mod_revision)
    await store.close()
    with contextlib.closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT key, deleted FROM log ORDER BY key").fetchall()
    assert rows == [("/last/0", 0), ("/last/1", 0), ("/stays", 0)]


async def overwrite(store: SqliteStore, key: str, times: int) -> None:
    for _ in range(times):
        standing = await store.get(key)
        if standing is None:
            await store.create(key, b"x" * 4096)
        else:
            await store.update(key, b"x" * 4096, standing.mod_revision)


async def test_a_long_read_does_not_hold_up_the_event_loop(tmp_path: Path) -> None:
    store = await SqliteStore.open(str(tmp_path / "store.db"))
    await asyncio.gather(*(store.create(f"/{number}", b"x" * 2000) for number in range(5000)))
    events: list[Event] = []
    gaps: list[float] = []

    async def tick() -> None:
        while True:
            started = time.monotonic()
            await asyncio.sleep(0.001)
            gaps.append(time.monotonic() - started)

    ticker = asyncio.create_task(tick())
    async with aclosing(store.watch("/", 1)) as watcher:
        while len(events) < 5000:
            events += (await anext(watcher)).events
    assert len((await store.list("/")).items) == 5000
    ticker.cancel()
    await store.close()
    assert sorted(gaps)[len(gaps) // 2] < 0.05
