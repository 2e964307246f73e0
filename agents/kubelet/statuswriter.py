"""Writes pod statuses: on change only, the latest state of a pod wins, never two writes of one pod at once."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

import msgspec
from lightkube.models.core_v1 import Pod

from kernelet.core.api.errors import ApiError, Invalid, NotFound
from kernelet.core.client.client import Client
from kernelet.core.client.workqueue import WorkQueue

from . import pods

log = logging.getLogger(__name__)

JSON = dict[str, Any]
_WRITERS = 4
_OWN_FIELDS = (
    "phase", "reason", "message", "conditions", "hostIP", "hostIPs", "podIP", "podIPs", "startTime", "qosClass",
    "containerStatuses", "initContainerStatuses", "observedGeneration",
)  # fmt: skip


@dataclass(slots=True)
class _Entry:
    pod: Pod
    wanted: JSON
    written: JSON
    keys: set[str] = field(default_factory=set)
    """Top-level fields this node has ever written, to be removed when they go away."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)


class StatusWriter:
    """Owns the status of this node's pods. `run` must be running for anything to be written."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._queue: WorkQueue[str] = WorkQueue(first_delay=0.05, longest_delay=5.0)
        self._entries: dict[str, _Entry] = {}
        self.written = 0
        """Writes that went through."""

    def put(self, pod: Pod, status: JSON) -> None:
        """Makes `status` the one to be written; nothing happens if it is what the API holds."""
        uid = pods.uid(pod)
        entry = self._entries.get(uid)
        if entry is None:
            held = plain(msgspec.to_builtins(pods.status(pod)))
            known = {key: value for key, value in held.items() if key in _OWN_FIELDS}
            entry = self._entries[uid] = _Entry(pod, status, known, set(known))
        entry.pod, entry.wanted = pod, status
        if plain(status) == entry.written:
            entry.settled.set()
            return
        entry.settled.clear()
        self._queue.add(uid)

    async def flush(self, uid: str) -> None:
        """Waits until the pod's status is written, or the pod is gone."""
        entry = self._entries.get(uid)
        if entry is not None:
            await entry.settled.wait()

    def forget(self, uid: str) -> None:
        entry = self._entries.pop(uid, None)
        if entry is not None:
            entry.settled.set()

    async def run(self) -> None:
        """Writes until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(_WRITERS):
                group.create_task(self._work(), name=f"status writer {number}")

    async def _work(self) -> None:
        while True:
            uid = await self._queue.get()
            try:
                await self._write(uid)
            finally:
                self._queue.done(uid)

    async def _write(self, uid: str) -> None:
        entry = self._entries.get(uid)
        if entry is None:
            return
        pod, wanted = entry.pod, entry.wanted
        gone: JSON = {key: None for key in entry.keys if key not in wanted}
        patch: JSON = {"metadata": {"uid": uid}, "status": gone | wanted}
        try:
            await self._client.patch(Pod, pods.name(pod), patch, pods.namespace(pod), subresource="status")
        except (NotFound, Invalid) as error:
            # Gone, or another pod of this name: then there is nothing left to say. Else the status itself is wrong.
            log.warning("status of pod %s was refused: %s", pods.key(pod), error)
            entry.settled.set()
            return
        except ApiError as error:
            log.info("status of pod %s will be written again: %s", pods.key(pod), error)
            self._queue.add_rate_limited(uid)
            return
        self._queue.forget(uid)
        self.written += 1
        entry.written = plain(wanted)
        entry.keys |= set(wanted)
        if entry.wanted is wanted:
            entry.settled.set()


def plain(value: Any) -> Any:
    """Without nulls and empty objects, so that what the API returns compares equal to what was written."""
    if isinstance(value, dict):
        cleaned = {key: plain(item) for key, item in value.items()}
        return {key: item for key, item in cleaned.items() if item is not None and item != {}}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value
