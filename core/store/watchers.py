"""Fan-out of committed changes to watchers, in memory, with the log as the fallback.

A hub knows `head`, the newest revision it was told of. A watcher is in one of two states:

- *replaying*: what it has to deliver next is at or below head; it is read from the durable log, page by page;
- *live*: everything at or below head is delivered or in its buffer; `publish` appends to the buffer.

The step from replaying to live and `publish` both run on the event loop without a wait between looking at head and
acting on it, so no change falls between. A buffer is bounded: a watcher that does not read loses its buffer, not its
place, and replays from there. A queue per watcher without a bound was the alternative; one stuck client would then
hold every change since in memory.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence

from .contract import Event, StoreUnavailable, WatchBatch

BUFFER_EVENTS = 8192
BUFFER_BYTES = 16 << 20
PROGRESS_SECONDS = 0.25

Replay = Callable[[str, int], AsyncGenerator[WatchBatch, None]]
"""(prefix, from_revision) -> batches up to some revision reached at the time of the call. Raises Compacted."""


class Hub:
    """All watchers of one store. Belongs to the event loop that runs when it is made."""

    def __init__(self, name: str, replay: Replay, head: int) -> None:
        """`name` is for messages; `head` the newest revision that will not be published."""
        self.name = name
        self.replay = replay
        self.head = head
        self.closed = False
        self._loop = asyncio.get_running_loop()
        self._watchers: weakref.WeakSet[Watch] = weakref.WeakSet()
        self._arrivals: list[tuple[int, asyncio.Future[None]]] = []
        self._ticker: asyncio.TimerHandle | None = None

    @property
    def in_use(self) -> bool:
        """Somebody watches or waits for a revision."""
        return bool(self._watchers or self._arrivals)

    def watch(self, prefix: str, from_revision: int) -> Watch:
        watch = Watch(self, prefix, max(1, from_revision))
        self._watchers.add(watch)
        if self._ticker is None and not self.closed:
            self._ticker = self._loop.call_later(PROGRESS_SECONDS, self._tick)
        return watch

    def forget(self, watch: Watch) -> None:
        self._watchers.discard(watch)

    def publish(self, events: Sequence[Event], revision: int) -> None:
        """Hands on what was committed after head, in revision order, all of it up to `revision`."""
        for watch in self._watchers:
            watch.offer(events)
        self._advance(revision)

    def lose(self, revision: int) -> None:
        """Moves head to `revision` although changes before it were not seen: every watcher goes back to the log."""
        for watch in self._watchers:
            watch.fall_back()
        self._advance(revision)

    async def reached(self, revision: int) -> None:
        """Waits until head is `revision` or later."""
        if self.head >= revision:
            return
        entry = (revision, self._loop.create_future())
        self._arrivals.append(entry)
        try:
            await entry[1]
        finally:
            if entry in self._arrivals:
                self._arrivals.remove(entry)

    def close(self) -> None:
        self.closed = True
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        for watch in self._watchers:
            watch.interrupt()
        for _, future in self._arrivals:
            if not future.done():
                future.set_exception(StoreUnavailable(f"store {self.name} was closed"))

    def _advance(self, revision: int) -> None:
        self.head = revision
        for wanted, future in self._arrivals:
            if wanted <= revision and not future.done():
                future.set_result(None)

    def _tick(self) -> None:
        for watch in self._watchers:
            watch.mark_progress()
        self._ticker = self._loop.call_later(PROGRESS_SECONDS, self._tick) if self._watchers else None


class Watch:
    """One watcher; see contract.Watcher."""

    def __init__(self, hub: Hub, prefix: str, from_revision: int) -> None:
        self._hub = hub
        self._prefix = prefix
        self._next = from_revision
        self._live = False
        self._closed = False
        self._progress_due = False
        self._buffer: list[Event] = []
        self._buffered_bytes = 0
        self._wake = asyncio.Event()
        self._replay: AsyncGenerator[WatchBatch, None] | None = None
        self._step: asyncio.Task[WatchBatch | None] | None = None

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> WatchBatch:
        while True:
            if self._closed:
                raise StopAsyncIteration
            if self._hub.closed:
                await self.aclose()
                raise StoreUnavailable(f"store {self._hub.name} was closed while it was watched")
            if self._live:
                batch = self._take()
                if batch is None and self._live:
                    self._wake.clear()
                    await self._wake.wait()
            elif self._replay is None and self._next > self._hub.head:
                self._live = True
                continue
            else:
                batch = await self._read_log()
            if batch is not None and not self._closed:
                self._next = batch.revision + 1
                return batch

    async def aclose(self) -> None:
        self._closed = True
        self._hub.forget(self)
        self._drop_buffer()
        step = self._step
        self.interrupt()
        if step is not None:
            await asyncio.wait([step])
        await self._end_replay()

    def offer(self, events: Iterable[Event]) -> None:
        """Buffers what is of interest; called by the hub for every commit."""
        if not self._live:
            return
        prefix, first, buffer = self._prefix, self._next, self._buffer
        before = len(buffer)
        for event in events:
            if event.kv.key.startswith(prefix) and event.kv.mod_revision >= first:
                buffer.append(event)
                self._buffered_bytes += len(event.kv.value)
        if len(buffer) == before:
            return
        if len(buffer) > BUFFER_EVENTS or self._buffered_bytes > BUFFER_BYTES:
            self.fall_back()
        self._wake.set()

    def fall_back(self) -> None:
        """Gives up the buffer; what it held is read from the log."""
        self._live = False
        self._drop_buffer()
        self._wake.set()

    def mark_progress(self) -> None:
        if self._live and self._next <= self._hub.head:
            self._progress_due = True
            self._wake.set()

    def interrupt(self) -> None:
        """Makes a waiting reader look whether it is over."""
        self._wake.set()
        if self._step is not None:
            self._step.cancel()

    def _take(self) -> WatchBatch | None:
        """What the buffer holds; everything up to head is in it."""
        if self._buffer:
            batch = WatchBatch(tuple(self._buffer), self._hub.head)
            self._drop_buffer()
        elif self._progress_due and self._next <= self._hub.head:
            batch = WatchBatch((), self._hub.head)
        else:
            return None
        self._progress_due = False
        return batch

    def _drop_buffer(self) -> None:
        self._buffer.clear()
        self._buffered_bytes = 0

    async def _read_log(self) -> WatchBatch | None:
        """The next page of the log; None at its end.

        The page is read by a task of its own, so that aclose() from another task can stop it. When the reader is
        cancelled the replay is given up, and the next call starts a new one from the same place.
        """
        if self._replay is None:
            self._replay = self._hub.replay(self._prefix, self._next)
        self._step = asyncio.ensure_future(_page(self._replay))
        batch = None
        try:
            batch = await self._step
        except asyncio.CancelledError:
            # Either our own task is to stop, or interrupt() stopped the step alone.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
        finally:
            self._step = None
            if batch is None:
                await self._end_replay()
        return batch

    async def _end_replay(self) -> None:
        replay, self._replay = self._replay, None
        if replay is not None:
            await replay.aclose()


async def _page(replay: AsyncGenerator[WatchBatch, None]) -> WatchBatch | None:
    return await anext(replay, None)
