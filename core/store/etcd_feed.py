"""One etcd watch over all keys of a store, handed to the hub; and further ones for watchers that are behind.

Why one watch and not one per watcher: a watcher has to learn how far the store got even if nothing of its prefix
changed, and etcd's ways to tell are no use. Its periodic notification comes each ten minutes unless etcd is
started otherwise, and the one on request may overtake events (etcd before 3.4.25 and 3.5.8), so that a reader who
trusts it loses some. Events of a single watch come in order, so an event of *any* key proves that all before it were
seen. When the revision grows by writes of other users of the same etcd only, we put a key of our own (`mark`) to have
such an event.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace

import grpc
import grpc.aio

from kernelet.proto import etcd_pb2 as pb

from .contract import Compacted, Event, EventType, KeyValue, StoreUnavailable, WatchBatch
from .etcd_calls import CALL_SECONDS, Calls, OutOfRange, WatchCall
from .watchers import Hub

POLL_SECONDS = 0.3
RETRY_SECONDS = (0.05, 2.0)

log = logging.getLogger(__name__)


class Feed:
    """Keeps `hub` up to date while run() runs."""

    def __init__(self, calls: Calls) -> None:
        root = calls.address.root
        self._calls = calls
        self._keys = f"{root}/".encode()
        # '!' < '/' < '0': the range holds the mark and every key, all of which start with '/'.
        self._mark = f"{root}!progress".encode()
        self._range = (f"{root}!".encode(), f"{root}0".encode())
        # Whether head is the revision of an event in our range, and a second watch can thus know that it got there.
        self._anchored = False
        self._unlimited: asyncio.Timeout | None = None
        self.hub: Hub

    async def open(self) -> None:
        """Makes the hub, at etcd's revision. Raises StoreUnavailable."""
        self.hub = Hub(self._calls.address.url, self._replay, await self.revision())

    async def run(self) -> None:
        """Until cancelled; then watchers end too."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow_all(), name="store-etcd-watch")
                group.create_task(self._pulse(), name="store-etcd-progress")
        finally:
            self.hub.close()

    async def revision(self) -> int:
        """etcd's revision, linearizable. Raises StoreUnavailable."""
        answer = await self._calls.range(pb.RangeRequest(key=self._mark, keys_only=True))
        return answer.header.revision

    async def oldest(self) -> int:
        """The first revision whose events etcd has complete. Raises StoreUnavailable."""
        try:
            async with aclosing(self._watch(1, CALL_SECONDS)) as batches:
                async for batch in batches:
                    if batch.events:
                        break
        except Compacted as error:
            return error.oldest
        except TimeoutError:
            log.warning("etcd did not tell its compaction revision within %s s", CALL_SECONDS)
        return 1

    async def check_kept(self, revision: int) -> None:
        """Raises Compacted unless events from `revision` on can be had with what stood before each.

        That is so if the state just before can be read: an etcd compacted *at* a revision still answers a watch from
        it, but without previous values and, in some versions, without deletions.
        """
        if revision <= 1:
            return
        try:
            await self._calls.range(pb.RangeRequest(key=self._mark, revision=revision - 1, keys_only=True))
        except OutOfRange as error:
            if revision - 1 <= await self.revision():
                raise await self.compacted(revision) from error

    async def compacted(self, revision: int) -> Compacted:
        oldest = max(revision + 1, await self.oldest())
        return Compacted(f"revision {revision} is compacted; the oldest kept is {oldest}", oldest)

    async def _put_mark(self) -> int:
        answer = await self._calls.put(pb.PutRequest(key=self._mark))
        return answer.header.revision

    async def _follow_all(self) -> None:
        while True:
            try:
                async with aclosing(self._follow(self.hub.head + 1, None)) as batches:
                    async for batch in batches:
                        if batch.revision > self.hub.head:
                            self.hub.publish(batch.events, batch.revision)
                            self._anchored = True
            except Compacted:
                await self._skip_gap()

    async def _skip_gap(self) -> None:
        """We were away for so long that changes are gone. Watchers go to the log and find that out by themselves."""
        lost = self.hub.head + 1
        revision = await self._insist(self.revision)
        log.warning("etcd compacted revision %s before it was read; watchers have to list anew", lost)
        self._anchored = False
        self.hub.lose(revision)

    async def _insist(self, call: Callable[[], Awaitable[int]]) -> int:
        retry = _Retry()
        while True:
            try:
                return await call()
            except StoreUnavailable as error:
                await retry.wait(error)

    async def _pulse(self) -> None:
        """Puts the mark when etcd's revision has grown, yet no event came; restarts a watch that stays silent then."""
        while True:
            head = self.hub.head
            await asyncio.sleep(POLL_SECONDS)
            if self.hub.head != head or not self.hub.in_use:
                continue
            try:
                newest = await self.revision()
                if newest <= self.hub.head:
                    continue
                await asyncio.sleep(POLL_SECONDS)
                if self.hub.head >= newest:
                    continue
                target = await self._put_mark()
                async with asyncio.timeout(CALL_SECONDS):
                    await self.hub.reached(target)
            except TimeoutError:
                log.warning("etcd's watch has been silent for %s s; opening it again", CALL_SECONDS)
                self._reopen()
            except StoreUnavailable as error:
                log.debug("no progress from etcd: %s", error)

    async def _replay(self, prefix: str, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        target = self.hub.head if self._anchored else await self._insist(self._put_mark)
        async with aclosing(self._follow(from_revision, CALL_SECONDS)) as batches:
            async for batch in batches:
                events = tuple(event for event in batch.events if event.kv.key.startswith(prefix))
                yield WatchBatch(events, batch.revision)
                if batch.revision >= target:
                    return

    async def _follow(self, from_revision: int, patience: float | None) -> AsyncGenerator[WatchBatch, None]:
        """Everything of the store from a revision on, across lost connections. Raises Compacted.

        A silence of more than `patience` seconds counts as a lost connection; None: only _reopen ends it.
        """
        retry = _Retry()
        while True:
            try:
                async with aclosing(self._watch(from_revision, patience)) as batches:
                    async for batch in batches:
                        retry = _Retry()
                        if batch.events or batch.revision >= from_revision:
                            yield batch
                            from_revision = batch.revision + 1
            except (StoreUnavailable, TimeoutError) as error:
                await retry.wait(error)

    async def _watch(self, from_revision: int, patience: float | None) -> AsyncGenerator[WatchBatch, None]:
        """One watch stream: first a batch at from_revision - 1, when it is open, then all that comes.

        Raises Compacted, StoreUnavailable, TimeoutError.
        """
        endpoint, call = self._calls.watch()
        first, end = self._range
        create = pb.WatchCreateRequest(key=first, range_end=end, start_revision=from_revision, prev_kv=True)
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await call.write(pb.WatchRequest(create_request=create))
                answer = await call.read()
            checked = False
            while isinstance(answer, pb.WatchResponse):
                batch = await self._batch(answer, from_revision)
                if batch.events and not checked:
                    await self.check_kept(from_revision)
                    checked = True
                yield batch
                answer = await self._read(call, patience)
            raise StoreUnavailable(f"etcd at {endpoint} ended the watch")
        except grpc.aio.AioRpcError as error:
            raise self._calls.failed(endpoint, error) from error
        finally:
            call.cancel()

    async def _read(self, call: WatchCall, patience: float | None) -> object:
        """The next answer; a wait without a limit of its own can be ended by _reopen."""
        try:
            async with asyncio.timeout(patience) as limit:
                if patience is None:
                    self._unlimited = limit
                return await call.read()
        finally:
            if patience is None:
                self._unlimited = None

    def _reopen(self) -> None:
        if self._unlimited is not None:
            self._unlimited.reschedule(asyncio.get_running_loop().time())

    async def _batch(self, answer: pb.WatchResponse, from_revision: int) -> WatchBatch:
        if answer.compact_revision:
            oldest = answer.compact_revision + 1
            raise Compacted(f"revision {from_revision} is compacted; the oldest kept is {oldest}", oldest)
        if answer.canceled:
            raise StoreUnavailable(f"etcd cancelled the watch: {answer.cancel_reason}")
        # A member that lags behind may send what is older than asked for.
        fresh = [event for event in answer.events if event.kv.mod_revision >= from_revision]
        if not fresh:
            return WatchBatch((), from_revision - 1)
        events = [await self._event(event) for event in fresh if event.kv.key != self._mark]
        return WatchBatch(tuple(event for event in events if event is not None), fresh[-1].kv.mod_revision)

    async def _event(self, found: pb.Event) -> Event | None:
        """None for what is not ours."""
        key = self.key_of(found.kv.key)
        if key is None:
            return None
        revision = found.kv.mod_revision
        previous = None
        if found.HasField("prev_kv"):
            old = found.prev_kv
            previous = KeyValue(key, old.value, old.create_revision, old.mod_revision)
        if found.type == pb.Event.PUT:
            if previous is None and found.kv.create_revision != revision:
                raise await self.compacted(revision)
            return Event(EventType.PUT, KeyValue(key, found.kv.value, found.kv.create_revision, revision), previous)
        if previous is None:
            raise await self.compacted(revision)
        return Event(EventType.DELETE, replace(previous, mod_revision=revision), previous)

    def key_of(self, raw: bytes) -> str | None:
        """The key of the store which etcd's key stands for; None if it is none."""
        if not raw.startswith(self._keys):
            return None
        try:
            return raw[len(self._keys) - 1 :].decode()
        except UnicodeDecodeError:
            return None


class _Retry:
    """Waits longer after each failure in a row, with jitter, so that many stores do not come back at once."""

    def __init__(self) -> None:
        self._seconds = RETRY_SECONDS[0]

    async def wait(self, error: Exception) -> None:
        log.log(
            logging.WARNING if self._seconds == RETRY_SECONDS[0] else logging.DEBUG, "etcd watch: %s; retrying", error
        )
        await asyncio.sleep(self._seconds * random.uniform(0.5, 1.0))
        self._seconds = min(self._seconds * 2, RETRY_SECONDS[1])
