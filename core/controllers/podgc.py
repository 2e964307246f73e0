"""Pod garbage collection: pods nobody will ever finish.

Removed by force: pods of a node that no longer exists (after a quarantine, in which it may come back), pods that were
deleted before they were bound, and the oldest finished pods beyond a threshold.
"""

from __future__ import annotations

import asyncio
import logging
import time

from lightkube.models.core_v1 import Node, Pod, PodCondition

from kernelet.core.api.errors import NotFound
from kernelet.core.client.client import STRATEGIC_PATCH
from kernelet.core.client.informer import Change
from kernelet.core.controllers.access import Key, created, deleting, key_of, name_of, namespace_of, now, to_json, uid_of
from kernelet.core.controllers.informers import Informers
from kernelet.core.controllers.pods import finished, node_name
from kernelet.core.controllers.runtime import Controller

log = logging.getLogger(__name__)

TERMINATED = 12_500
QUARANTINE = 10.0
PERIOD = 20.0


class PodGCController:
    """`threshold`: finished pods kept (0: all); `quarantine`: seconds a node must have been missing."""

    def __init__(self, informers: Informers, threshold: int = TERMINATED, quarantine: float = QUARANTINE) -> None:
        self._client = informers.client
        self._nodes = informers.of(Node)
        self._pods = informers.of(Pod)
        self._threshold = threshold
        self._quarantine = quarantine
        self._missing: dict[str, float] = {}
        self._surplus: set[str] = set()
        self.controller = Controller("podgc", self.reconcile, 4)
        self._pods.subscribe(self._pod_changed)
        self._nodes.subscribe(self._node_changed)

    async def run(self) -> None:
        """Works until cancelled; the threshold is looked at each 20 seconds."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.controller.run(), name="podgc")
            group.create_task(self._collect_finished(), name="podgc-finished")

    def _pod_changed(self, change: Change[Pod]) -> None:
        pod = change.new
        if pod is None:
            return
        node = node_name(pod)
        if (deleting(pod) and not node) or (node and self._nodes.get("", node) is None):
            self.controller.enqueue(key_of(pod))

    def _node_changed(self, change: Change[Node]) -> None:
        name = name_of(change.object)
        if change.new is not None:
            self._missing.pop(name, None)
            return
        for pod in self._pods.by_index("node", name):
            self.controller.enqueue(key_of(pod))

    async def reconcile(self, key: Key) -> None:
        """One pod that may be an orphan or one too many."""
        pod = self._pods.get(*key)
        if pod is None:
            return
        if uid_of(pod) in self._surplus:
            await self._remove(pod, f"more than {self._threshold} finished pods", fail=False)
            return
        node = node_name(pod)
        if not node:
            if deleting(pod):
                await self._remove(pod, "deleted before it was bound to a node", fail=False)
            return
        if not self._nodes.has_synced or self._nodes.get("", node) is not None:
            return
        since = self._missing.setdefault(node, time.monotonic())
        left = self._quarantine - (time.monotonic() - since)
        if left > 0:
            self.controller.enqueue_after(key, left)
            return
        try:
            await self._client.get(Node, node)
        except NotFound:
            await self._remove(pod, f'its node "{node}" does not exist any more', fail=not finished(pod))

    async def _remove(self, pod: Pod, why: str, *, fail: bool) -> None:
        name, namespace = name_of(pod), namespace_of(pod)
        log.info("pod removed by force pod=%s/%s cause=%s", namespace, name, why)
        try:
            if fail:
                reason = PodCondition(
                    type="DisruptionTarget",
                    status="True",
                    reason="DeletionByPodGC",
                    message=f"PodGC: {why}",
                    lastTransitionTime=now(),
                )
                patch = {"status": {"phase": "Failed", "conditions": [to_json(reason)]}}
                await self._client.patch(Pod, name, patch, namespace, subresource="status", media_type=STRATEGIC_PATCH)
            await self._client.delete(Pod, name, namespace, grace_period=0, uid=uid_of(pod))
        except NotFound:
            log.debug("pod is gone already pod=%s/%s", namespace, name)

    async def _collect_finished(self) -> None:
        while self._threshold:
            done = sorted((pod for pod in self._pods.items() if finished(pod) and not deleting(pod)), key=created)
            surplus = done[: max(len(done) - self._threshold, 0)]
            self._surplus = {uid_of(pod) for pod in surplus}
            for pod in surplus:
                self.controller.enqueue(key_of(pod))
            await asyncio.sleep(PERIOD)
