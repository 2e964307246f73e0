"""Events (core/v1): what happened to an object, for people to read.

Fire and forget: `event` never waits. One task writes; the queue is bounded, what does not fit is counted and logged.
The same event within ten minutes is not written again, its count grows (as client-go's event correlator).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from kernelet.core.api.errors import JSON, AlreadyExists, ApiError, NotFound, ServiceUnavailable
from kernelet.core.api.kinds import KINDS
from kernelet.core.api.times import now_rfc3339
from kernelet.core.client.client import Client

NORMAL = "Normal"
WARNING = "Warning"

WINDOW = 600.0
"""Seconds since the last of its kind in which an event counts as the same."""
REMEMBERED = 4096
QUEUED = 1000
FLUSH_SECONDS = 2.0
PAUSE = 0.5
MESSAGE_LIMIT = 1024

_log = logging.getLogger(__name__)
_EVENT = KINDS.resolve("events")

_Identity = tuple[str, ...]


@dataclass(slots=True)
class _Written:
    name: str
    count: int
    last: float


@dataclass(frozen=True, slots=True)
class _Pending:
    involved: Mapping[str, str]
    type: str
    reason: str
    message: str
    when: str

    def identity(self) -> _Identity:
        return (*self.involved.values(), self.type, self.reason, self.message)


class EventRecorder:
    """Writes events in the name of one component. Use as a context manager, or `start` it in a task group.

    `host` is the node it runs on, if any.
    """

    def __init__(self, client: Client, component: str, host: str = "", *, queued: int = QUEUED) -> None:
        self._client = client
        self._component = component
        self._host = host
        self._queue: asyncio.Queue[_Pending] = asyncio.Queue(queued)
        self._written: OrderedDict[_Identity, _Written] = OrderedDict()
        self._task: asyncio.Task[None] | None = None
        self.dropped = 0
        """Events that did not fit into the queue or could not be written."""

    def event(self, obj: Any, type: str, reason: str, message: str) -> None:
        """Records that something happened to a model object or an ObjectReference; never waits, never raises.

        `type` is Normal or Warning, `reason` one word in CamelCase, `message` for people.
        """
        pending = _Pending(_involved(obj), type, reason, message[:MESSAGE_LIMIT], now_rfc3339())
        try:
            self._queue.put_nowait(pending)
        except asyncio.QueueFull:
            self._drop(pending, "the queue is full")

    def start(self, group: asyncio.TaskGroup) -> Self:
        """Writes in a task of the group; call `close` before the group ends to write what is queued."""
        self._task = group.create_task(self.run(), name="events")
        return self

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.run(), name="events")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def run(self) -> None:
        """Writes events until cancelled."""
        while True:
            pending = await self._queue.get()
            try:
                await self._write_when_reachable(pending)
            except ApiError as error:
                self._drop(pending, str(error))
            finally:
                self._queue.task_done()

    async def close(self) -> None:
        """Writes what is queued, for at most two seconds, and ends the task."""
        task, self._task = self._task, None
        if task is None:
            return
        if not task.done():
            try:
                await asyncio.wait_for(self._queue.join(), FLUSH_SECONDS)
            except TimeoutError:
                _log.warning("%d events were not written before the end", self._queue.qsize())
        task.cancel()
        await asyncio.wait([task])

    async def _write_when_reachable(self, pending: _Pending) -> None:
        """While the API server is away events wait, those of the queue too."""
        body = self._body(pending)
        while True:
            try:
                await self._write(pending, body)
            except ServiceUnavailable as error:
                _log.info("event waits for the API server: %s", error)
                await asyncio.sleep(PAUSE)
            else:
                return

    async def _write(self, pending: _Pending, body: JSON) -> None:
        identity, now = pending.identity(), time.monotonic()
        known = self._written.get(identity)
        if known is not None and now - known.last < WINDOW and await self._count(pending, known):
            known.last = now
            self._written.move_to_end(identity)
            return
        try:
            await self._client.raw.create(_EVENT, body)
        except AlreadyExists:
            _log.debug("event %s was written by an attempt whose answer was lost", body["metadata"]["name"])
        self._written[identity] = _Written(body["metadata"]["name"], 1, now)
        self._written.move_to_end(identity)
        while len(self._written) > REMEMBERED:
            self._written.popitem(last=False)

    async def _count(self, pending: _Pending, known: _Written) -> bool:
        """Whether the event of before is still there to be counted up."""
        namespace = pending.involved["namespace"] or "default"
        patch: JSON = {"count": known.count + 1, "lastTimestamp": pending.when}
        try:
            await self._client.raw.patch(_EVENT, known.name, patch, namespace)
        except NotFound:
            return False
        known.count += 1
        return True

    def _body(self, pending: _Pending) -> JSON:
        involved = {key: value for key, value in pending.involved.items() if value}
        source = {"component": self._component} | ({"host": self._host} if self._host else {})
        return {
            "apiVersion": "v1",
            "kind": "Event",
            # As Kubernetes names events: the object's name and the time, which no two events share.
            "metadata": {
                "name": f"{pending.involved['name']}.{time.time_ns():x}",
                "namespace": pending.involved["namespace"] or "default",
            },
            "involvedObject": involved,
            "type": pending.type,
            "reason": pending.reason,
            "message": pending.message,
            "source": source,
            "firstTimestamp": pending.when,
            "lastTimestamp": pending.when,
            "count": 1,
            "reportingComponent": self._component,
            "reportingInstance": self._host or socket.gethostname(),
        }

    def _drop(self, pending: _Pending, why: str) -> None:
        self.dropped += 1
        what = f"{pending.involved['kind']} {pending.involved['namespace']}/{pending.involved['name']}"
        _log.warning(
            "event dropped (%d so far): %s: %s %s: %s", self.dropped, why, what, pending.reason, pending.message
        )


def _involved(obj: Any) -> dict[str, str]:
    """The ObjectReference of a model object, or of a reference itself; every field, "" where unknown."""
    metadata = getattr(obj, "metadata", None)
    holder = obj if metadata is None else metadata
    fields = ("namespace", "name", "uid", "resourceVersion")
    found = {field: str(getattr(holder, field, None) or "") for field in fields}
    found["resourceVersion"] = ""  # Differs with each change: it would keep equal events apart.
    return {
        "apiVersion": str(getattr(obj, "apiVersion", None) or ""),
        "kind": str(getattr(obj, "kind", None) or ""),
        "fieldPath": str(getattr(obj, "fieldPath", None) or ""),
        **found,
    }
