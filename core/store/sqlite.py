"""SqliteStore: the embedded store, one file, one process.

Writes go through one thread that commits in groups (sqlite_writer); reads run on a small pool of connections, each on a
snapshot, so that neither blocks the event loop or the other; watchers are fed from memory after each commit (watchers).
WAL with synchronous=FULL: an acknowledged write is on disk before its caller hears of it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from .contract import Event, KeyValue, Page, StoreUnavailable, WatchBatch
from .keys import check_key, future, key_range
from .sqlite_log import Log, connect, oldest_revision, read_changes, read_key, read_page
from .sqlite_writer import Writer, unavailable
from .watchers import Hub, Watch

P = ParamSpec("P")
R = TypeVar("R")

READERS = 3


class SqliteStore:
    """A Store in one SQLite file. Make it with open(); it belongs to the running event loop."""

    def __init__(self, path: str, lock: int, log: Log) -> None:
        """Takes over the lock's file descriptor and the log with its connection."""
        self._path = path
        self._lock = lock
        self._readers = _Readers(path)
        self._hub = Hub(path, self._replay, log.newest)
        self._writer = Writer(path, log, self._hub.publish)
        self._writer.start()
        self._compacting = asyncio.Lock()
        self._closed: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, path: str) -> SqliteStore:
        """Opens or creates the file (mode 0600) and its folder; locks it for this process.

        Raises StoreUnavailable if another process has it open, if it cannot be read or is not a store.
        """
        return cls(path, *await asyncio.to_thread(_open_file, path))

    async def get(self, key: str) -> KeyValue | None:
        check_key(key)
        return await self._readers.run(read_key, key)

    async def list(self, prefix: str, *, revision: int = 0, limit: int = 0, start_key: str = "") -> Page:
        return await self._readers.run(read_page, prefix, revision, limit, start_key)

    async def create(self, key: str, value: bytes) -> KeyValue:
        check_key(key)
        event: Event = await self._writer.submit(Log.create, key, value, size=len(value))
        return event.kv

    async def update(self, key: str, value: bytes, expected: int) -> KeyValue:
        check_key(key)
        event: Event = await self._writer.submit(Log.update, key, value, expected, size=len(value))
        return event.kv

    async def delete(self, key: str, expected: int) -> Event:
        check_key(key)
        event: Event = await self._writer.submit(Log.delete, key, expected)
        return event

    def watch(self, prefix: str, from_revision: int) -> Watch:
        key_range(prefix)
        return self._hub.watch(prefix, from_revision)

    async def revision(self) -> int:
        return self._hub.head

    async def compact(self, revision: int) -> None:
        """Removes rows a few hundred at a time, between other writes, then gives free pages back."""
        if revision > self._hub.head:
            raise future(revision, self._hub.head)
        async with self._compacting:
            if revision <= await self._readers.run(oldest_revision):
                return
            await self._writer.submit(Log.set_oldest, revision)
            while await self._writer.submit(Log.sweep):
                pass
            while await self._writer.submit(Log.shrink):
                pass

    async def close(self) -> None:
        if self._closed is None:
            self._hub.close()
            self._writer.stop()
            self._closed = asyncio.create_task(asyncio.to_thread(self._close_files))
        await asyncio.shield(self._closed)

    def _close_files(self) -> None:
        self._writer.join()
        self._readers.close()
        os.close(self._lock)

    async def _replay(self, prefix: str, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        more = True
        while more:
            batch, more = await self._readers.run(read_changes, prefix, from_revision)
            if batch.revision >= from_revision:
                yield batch
            from_revision = batch.revision + 1


class _Readers:
    """A few threads, each with a connection of its own, opened when first used."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix=f"store-reader {path}")
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self._closed = False

    async def run(self, read: Callable[Concatenate[sqlite3.Connection, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls `read` with a connection in a reader's thread. Raises what it raises, SQLite's as StoreUnavailable."""
        if self._closed:
            raise StoreUnavailable(f"store {self._path} is closed")

        def call() -> R:
            try:
                return read(self._connection(), *args, **kwargs)
            except sqlite3.Error as error:
                raise unavailable(self._path, error) from error

        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    def close(self) -> None:
        """Blocks until running reads are done."""
        self._closed = True
        self._pool.shutdown(wait=True)
        for connection in self._opened:
            connection.close()

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = connect(self._path, writer=False)
            self._opened.append(connection)
        return connection


def _open_file(path: str) -> tuple[int, Log]:
    """The descriptor that holds the lock, and the log on the writer's connection."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # SQLite gives the -wal and -shm files the mode of the database.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        fix = "check that the file and its folder belong to this user and can be written"
        raise StoreUnavailable(f"store {path}: {error.strerror}: {fix}") from error
    try:
        _take_lock(path, lock)
        return lock, Log(connect(path, writer=True))
    except sqlite3.Error as error:
        os.close(lock)
        raise unavailable(path, error) from error
    except StoreUnavailable:
        os.close(lock)
        raise


def _take_lock(path: str, lock: int) -> None:
    """A lock on a file beside the database: locks on the database itself are SQLite's own (fcntl(2), F_SETLK)."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        raise StoreUnavailable(
            f"store {path} is in use by process {owner}; stop that process or choose another file"
        ) from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
