"""Pods that wait for a node, in three places as kube-scheduler's: active, back-off, unschedulable.

*Active* pods are tried next, by priority, then age. A pod that fits nowhere is *unschedulable* until something happens
that may help it; then it is active again, or in *back-off* if it was tried too short a time ago.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

from kernelet.core.scheduler.framework import Helps
from kernelet.core.scheduler.podinfo import Key, PodInfo

FIRST_BACKOFF = 0.5
LONGEST_BACKOFF = 10.0
LONGEST_WAIT = 60.0
"""Seconds after which an unschedulable pod is tried again whatever happened: a net under all reasons not thought of."""


@dataclass(eq=False)
class QueuedPod:
    """One waiting pod. `attempts` counts tries since it last was without failure."""

    pod: PodInfo
    added: float
    attempts: int = 0
    tried: float = 0.0
    helps: Helps = Helps.ANY
    message: str = ""
    """Why it did not fit, as it was last told."""


class SchedulingQueue:
    """Of one event loop. `clock` is monotonic seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._order = itertools.count()
        self._heap: list[tuple[int, float, int, QueuedPod]] = []
        self._active: dict[Key, QueuedPod] = {}
        self._backoff: dict[Key, tuple[QueuedPod, asyncio.TimerHandle]] = {}
        self._unschedulable: dict[Key, tuple[QueuedPod, asyncio.TimerHandle]] = {}
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._active) + len(self._backoff) + len(self._unschedulable)

    def sizes(self) -> tuple[int, int, int]:
        """Active, back-off, unschedulable."""
        return len(self._active), len(self._backoff), len(self._unschedulable)

    def put(self, pod: PodInfo) -> None:
        """A pod that is new, or has changed: a change of more than its status makes an unschedulable one active."""
        queued = self._find(pod.key)
        if queued is None or queued.pod.uid != pod.uid:
            self.remove(pod.key)
            self._activate(QueuedPod(pod, self._clock()))
            return
        changed = queued.pod.spec != pod.spec or queued.pod.labels != pod.labels
        queued.pod = pod
        if changed and pod.key in self._unschedulable:
            self._retry(queued)

    def remove(self, key: Key) -> None:
        self._active.pop(key, None)  # Its entry in the heap is passed over.
        for waiting in (self._backoff.pop(key, None), self._unschedulable.pop(key, None)):
            if waiting is not None:
                waiting[1].cancel()

    async def pop(self) -> QueuedPod:
        """The next pod to try; whoever takes it says later what came of it, or forgets it."""
        while True:
            while self._heap:
                queued = heapq.heappop(self._heap)[3]
                if self._active.get(queued.pod.key) is queued:
                    del self._active[queued.pod.key]
                    queued.attempts += 1
                    queued.tried = self._clock()
                    return queued
            self._filled.clear()
            await self._filled.wait()

    def refuse(self, queued: QueuedPod, helps: Helps) -> None:
        """It fits nowhere: waits for something that may help."""
        queued.helps = helps
        self.remove(queued.pod.key)
        loop = asyncio.get_running_loop()
        self._unschedulable[queued.pod.key] = (queued, loop.call_later(LONGEST_WAIT, self._retry, queued))

    def fail(self, queued: QueuedPod) -> None:
        """An attempt failed for a reason that is not the cluster's state: tried again after its back-off."""
        self.remove(queued.pod.key)
        self._retry(queued)

    def helped(self, event: Helps) -> None:
        """Something happened: pods it may help are tried again."""
        for queued, _ in list(self._unschedulable.values()):
            if queued.helps & event:
                self._retry(queued)

    def close(self) -> None:
        """Drops all that wait."""
        for key in [*self._active, *self._backoff, *self._unschedulable]:
            self.remove(key)

    def _retry(self, queued: QueuedPod) -> None:
        self.remove(queued.pod.key)
        left = queued.tried + backoff(queued.attempts) - self._clock()
        if left <= 0:
            self._activate(queued)
            return
        loop = asyncio.get_running_loop()
        self._backoff[queued.pod.key] = (queued, loop.call_later(left, self._activate, queued))

    def _activate(self, queued: QueuedPod) -> None:
        self.remove(queued.pod.key)
        self._active[queued.pod.key] = queued
        heapq.heappush(self._heap, (-queued.pod.priority, queued.added, next(self._order), queued))
        self._filled.set()

    def _find(self, key: Key) -> QueuedPod | None:
        waiting = self._backoff.get(key) or self._unschedulable.get(key)
        return waiting[0] if waiting else self._active.get(key)


def backoff(attempts: int) -> float:
    """Seconds from the last try to the next: doubles with each attempt."""
    return float(min(FIRST_BACKOFF * 2.0 ** max(attempts - 1, 0), LONGEST_BACKOFF)) if attempts else 0.0
