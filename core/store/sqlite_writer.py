"""The one thread that writes: it commits whatever is queued as one transaction (group commit).

A commit costs one fdatasync however many writes it holds; while it runs, the next writes queue up, so that the cost per
write falls as the load grows and a lone writer never waits for company.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .contract import Event, StoreError, StoreUnavailable
from .sqlite_log import Log

BATCH_JOBS = 1024
BATCH_BYTES = 16 << 20


@dataclass(slots=True, eq=False)
class Job:
    """One unit of work inside a transaction; what it returns or raises settles `future`."""

    work: Callable[..., Any]
    """Called with the Log and `args`. An Event it returns is published; a StoreError it raises concerns it alone."""
    args: tuple[Any, ...]
    size: int
    future: asyncio.Future[Any]


Outcome = tuple[Job, Any, BaseException | None]
Publish = Callable[[Sequence[Event], int], None]


class Writer:
    """Owns the log. `publish` is called on the event loop after a commit, before its futures resolve."""

    def __init__(self, path: str, log: Log, publish: Publish) -> None:
        self._path = path
        self._log = log
        self._db = log.connection
        self._publish = publish
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"store-writer {path}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, work: Callable[..., Any], *args: Any, size: int = 0) -> asyncio.Future[Any]:
        """Queues work; called on the event loop. Raises StoreUnavailable once stopped."""
        if self._stopping or not self._thread.is_alive():
            raise StoreUnavailable(f"store {self._path} is closed")
        future = self._loop.create_future()
        self._queue.put(Job(work, args, size, future))
        return future

    def stop(self) -> None:
        """Lets the thread end after what is queued; join() waits for it."""
        if not self._stopping:
            self._stopping = True
            self._queue.put(None)

    def join(self) -> None:
        """Blocks until the thread has ended and its connection is closed."""
        self._thread.join()

    def _run(self) -> None:
        batch: list[Job] = []
        try:
            while self._gather(batch):
                self._commit(batch)
                batch.clear()
            self._commit(batch)
            batch.clear()
        finally:
            # Reached by an error of our own too: then nobody may wait for ever for what was queued.
            self._stopping = True
            while not self._queue.empty():
                job = self._queue.get()
                if job is not None:
                    batch.append(job)
            gone = StoreUnavailable(f"store {self._path}: the writer has stopped; restart the process")
            self._tell((), [(job, None, gone) for job in batch])
            self._db.close()

    def _gather(self, batch: list[Job]) -> bool:
        """Waits for a job, then takes what else is there; False after the last."""
        size = 0
        job = self._queue.get()
        while job is not None:
            # The caller may have given up; what was not begun need not be done.
            if not job.future.cancelled():
                batch.append(job)
                size += job.size
            if len(batch) >= BATCH_JOBS or size > BATCH_BYTES or self._queue.empty():
                return True
            job = self._queue.get()
        return False

    def _commit(self, batch: list[Job]) -> None:
        if not batch:
            return
        before = self._log.newest
        try:
            events, outcomes = self._transaction(batch)
        except sqlite3.Error as error:
            self._log.newest = before
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if len(batch) > 1:
                # One of them is too much (say, for what is left of the disk); the others may still fit.
                for job in batch:
                    self._commit([job])
                return
            events, outcomes = [], [(batch[0], None, unavailable(self._path, error))]
        self._tell(events, outcomes)

    def _transaction(self, batch: list[Job]) -> tuple[list[Event], list[Outcome]]:
        events: list[Event] = []
        outcomes: list[Outcome] = []
        self._db.execute("BEGIN IMMEDIATE")
        for job in batch:
            try:
                result = job.work(self._log, *job.args)
            except StoreError as error:
                outcomes.append((job, None, error))
            else:
                outcomes.append((job, result, None))
                if type(result) is Event:
                    events.append(result)
        self._db.execute("COMMIT")
        return events, outcomes

    def _tell(self, events: Sequence[Event], outcomes: list[Outcome]) -> None:
        # Raised when the loop was closed with the store still open: then nobody waits for the answer.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._deliver, events, outcomes)

    def _deliver(self, events: Sequence[Event], outcomes: list[Outcome]) -> None:
        if events:
            self._publish(events, events[-1].kv.mod_revision)
        for job, result, error in outcomes:
            if job.future.done():
                continue
            if error is None:
                job.future.set_result(result)
            else:
                job.future.set_exception(error)


def unavailable(path: str, error: sqlite3.Error) -> StoreUnavailable:
    """What an error of SQLite means for the store's user, with the fix."""
    name = getattr(error, "sqlite_errorname", "") or type(error).__name__
    if name == "SQLITE_FULL" or name.startswith("SQLITE_IOERR"):
        fix = (
            "free space on its file system or check the disk; nothing acknowledged is lost, and writes work again then"
        )
    elif name in ("SQLITE_CORRUPT", "SQLITE_NOTADB", "NotAStore"):
        fix = "it is not a Kernelet store of this version, or damaged; choose another file or restore it from a backup"
    elif name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH")):
        fix = "check that the file and its folder belong to this user and can be written"
    else:
        fix = "restart the process; if it stays, restore the file from a backup"
    return StoreUnavailable(f"store {path}: {error} ({name}): {fix}")
