"""A queue of keys for reconcilers: each key once, never with two workers, failures later and later.

As client-go's rate-limited work queue: what counts is that a key changed, not how often; a key added while a worker
has it is handed out again once that worker is done with it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class QueueShutDown(Exception):
    """`get` on a queue that was shut down."""


class WorkQueue(Generic[K]):
    """For the tasks of one event loop. `first_delay` and `longest_delay` (seconds) bound a key's back-off."""

    def __init__(self, *, first_delay: float = 0.01, longest_delay: float = 30.0) -> None:
        self._first_delay = first_delay
        self._longest_delay = longest_delay
        self._ready: OrderedDict[K, None] = OrderedDict()
        self._working: set[K] = set()
        self._again: set[K] = set()
        self._failures: dict[K, int] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._waiters: list[asyncio.Future[None]] = []
        self._shut_down = False

    def __len__(self) -> int:
        """Keys that wait for a worker."""
        return len(self._ready)

    def add(self, key: K) -> None:
        """Hands the key out as soon as a worker is free; forgets a later time it was to be added at."""
        if self._shut_down:
            return
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        if key in self._working:
            self._again.add(key)
        elif key not in self._ready:
            self._ready[key] = None
            self._wake()

    def add_after(self, key: K, delay: float) -> None:
        """Adds the key in `delay` seconds, or earlier if an earlier time is already set."""
        if self._shut_down:
            return
        if delay <= 0:
            self.add(key)
            return
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= loop.time() + delay:
                return
            timer.cancel()
        self._timers[key] = loop.call_later(delay, self.add, key)

    def add_rate_limited(self, key: K) -> None:
        """Adds the key after its back-off, which doubles each time until `forget`."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        self.add_after(key, min(self._first_delay * 2.0 ** min(failures, 32), self._longest_delay))

    def forget(self, key: K) -> None:
        """The key succeeded: its next failure starts with the first delay."""
        self._failures.pop(key, None)

    def failures(self, key: K) -> int:
        """How often the key was added rate-limited since it was last forgotten."""
        return self._failures.get(key, 0)

    async def get(self) -> K:
        """The key that waited longest. Follow with `done(key)`. Raises QueueShutDown once the queue is shut down."""
        while not self._ready and not self._shut_down:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                # A key this waiter was woken for must not wait until the next one is added.
                if waiter.done() and not waiter.cancelled() and self._ready:
                    self._wake()
                raise
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
        if self._shut_down:
            raise QueueShutDown
        key, _ = self._ready.popitem(last=False)
        self._working.add(key)
        return key

    def done(self, key: K) -> None:
        """The worker is finished with the key, which may now be handed out again."""
        self._working.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def shutdown(self) -> None:
        """Ends every present and future `get`; keys that wait are dropped."""
        self._shut_down = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._ready.clear()
        self._again.clear()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
                return
