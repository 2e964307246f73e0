"""What every controller runs on: shared informers -> work queue -> reconcile, and expectations.

A controller is one function, `reconcile(key)`, that looks at the caches, decides and writes. It is called again for a
key after every change of something the key depends on, never twice at once for one key, and again with growing pauses
after an error. It must therefore be right to call it at any time, any number of times.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from kernelet.core.api.errors import ApiError, Conflict, ServiceUnavailable
from kernelet.core.client.workqueue import WorkQueue
from kernelet.core.controllers.access import Key

T = TypeVar("T")

log = logging.getLogger(__name__)

EXPECTATION_TIMEOUT = 300.0
"""Seconds after which a cache that never showed an expected change is trusted again."""


class Controller:
    """A named reconcile loop with `workers` tasks. Raises nothing by itself: errors are logged and the key retried."""

    def __init__(self, name: str, reconcile: Callable[[Key], Awaitable[None]], workers: int = 4) -> None:
        self.name = name
        self.queue: WorkQueue[Key] = WorkQueue()
        self._reconcile = reconcile
        self._workers = workers

    def enqueue(self, key: Key) -> None:
        """Has the key reconciled soon, once, however often it is asked for meanwhile."""
        self.queue.add(key)

    def enqueue_after(self, key: Key, seconds: float) -> None:
        """Has the key reconciled once `seconds` have passed."""
        self.queue.add_after(key, max(seconds, 0.0))

    async def run(self) -> None:
        """Works until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self._workers):
                    group.create_task(self._work(), name=f"{self.name}-{number}")
        finally:
            self.queue.shutdown()

    async def _work(self) -> None:
        while True:
            key = await self.queue.get()
            try:
                await self._once(key)
            finally:
                self.queue.done(key)

    async def _once(self, key: Key) -> None:
        shown = "/".join(part for part in key if part)
        try:
            await self._reconcile(key)
        except (Conflict, ServiceUnavailable) as error:
            # The cache was behind, or the API server is away: both pass.
            log.debug("%s will try again object=%s cause=%s", self.name, shown, error)
        except ApiError as error:
            log.warning("%s failed and will try again object=%s cause=%s", self.name, shown, error)
        except Exception:
            # A worker outlives whatever one object does to it; the stack says where to look.
            log.exception("%s failed and will try again object=%s", self.name, shown)
        else:
            self.queue.forget(key)
            return
        self.queue.add_rate_limited(key)


@dataclass
class _Expected:
    creations: int = 0
    deletions: set[str] = field(default_factory=set)
    since: float = 0.0


class Expectations:
    """Per owner, the creations and deletions its cache has not shown yet.

    A controller that has just created three pods must not look at a cache from before and create three more. So it
    says what it expects, the informer's handlers take it off as it comes in, and the owner is left alone until
    nothing is expected, or `timeout` seconds have passed.
    """

    def __init__(self, timeout: float = EXPECTATION_TIMEOUT, clock: Callable[[], float] = time.monotonic) -> None:
        self._expected: dict[Key, _Expected] = {}
        self._timeout = timeout
        self._clock = clock

    def expect_creations(self, key: Key, count: int) -> None:
        self._expected[key] = _Expected(creations=count, since=self._clock())

    def expect_deletions(self, key: Key, uids: Iterable[str]) -> None:
        self._expected[key] = _Expected(deletions=set(uids), since=self._clock())

    def creation_observed(self, key: Key, count: int = 1) -> None:
        """The cache has shown a creation, or one that was expected has failed."""
        if expected := self._expected.get(key):
            expected.creations -= count

    def deletion_observed(self, key: Key, uid: str) -> None:
        if expected := self._expected.get(key):
            expected.deletions.discard(uid)

    def satisfied(self, key: Key) -> bool:
        expected = self._expected.get(key)
        if expected is None or (expected.creations <= 0 and not expected.deletions):
            return True
        if self._clock() - expected.since < self._timeout:
            return False
        log.warning("cache never showed an expected change object=%s/%s waited=%ds", *key, self._timeout)
        return True

    def forget(self, key: Key) -> None:
        self._expected.pop(key, None)


async def slow_start(count: int, action: Callable[[int], Awaitable[None]], first: int = 1) -> int:
    """Runs `action(0..count-1)` in batches of 1, 2, 4, ...; stops after the batch in which one raises.

    Returns how many succeeded; raises the first error, as `SlowStartError`, when one failed. Where every attempt would
    fail (a quota, an invalid template) the API server sees one request instead of `count`.
    """
    succeeded, started, batch = 0, 0, first
    while started < count:
        size = min(batch, count - started)
        results = await asyncio.gather(*(action(started + index) for index in range(size)), return_exceptions=True)
        started += size
        failures = [result for result in results if isinstance(result, BaseException)]
        succeeded += size - len(failures)
        if failures:
            raise SlowStartError(succeeded, failures[0]) from failures[0]
        batch *= 2
    return succeeded


class SlowStartError(Exception):
    """A batch failed after `succeeded` actions; `first` is the first error."""

    def __init__(self, succeeded: int, first: BaseException) -> None:
        super().__init__(str(first))
        self.succeeded = succeeded
        self.first = first


async def bounded(action: Callable[[T], Awaitable[None]], items: Iterable[T], limit: int = 32) -> None:
    """Runs `action(item)` for all, at most `limit` at once; raises the first error after all have ended."""
    gate = asyncio.Semaphore(limit)

    async def run(item: T) -> None:
        async with gate:
            await action(item)

    results = await asyncio.gather(*(run(item) for item in items), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
