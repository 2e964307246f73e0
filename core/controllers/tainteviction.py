"""Taint eviction: pods leave nodes with NoExecute taints, each after what its tolerations grant."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from lightkube.models.core_v1 import Node, Pod, PodCondition, Taint

from kernelet.core.api.errors import NotFound
from kernelet.core.client.client import STRATEGIC_PATCH
from kernelet.core.client.events import EventRecorder
from kernelet.core.client.informer import Change
from kernelet.core.controllers.access import Key, deleting, key_of, name_of, namespace_of, now, to_json, uid_of
from kernelet.core.controllers.informers import Informers
from kernelet.core.controllers.node_taints import evicted_at
from kernelet.core.controllers.pods import node_name
from kernelet.core.controllers.runtime import Controller

log = logging.getLogger(__name__)


class TaintEvictionController:
    """A pod's time is worked out anew whenever it or its node changes and when it has come: a taint that is gone by
    then cancels the eviction by itself."""

    def __init__(self, informers: Informers, recorder: EventRecorder, workers: int = 8) -> None:
        self._client = informers.client
        self._recorder = recorder
        self._nodes = informers.of(Node)
        self._pods = informers.of(Pod)
        self.controller = Controller("tainteviction", self.reconcile, workers)
        self._pods.subscribe(self._pod_changed)
        self._nodes.subscribe(self._node_changed)

    def _pod_changed(self, change: Change[Pod]) -> None:
        pod = change.new
        if pod is not None and _no_execute(self._nodes.get("", node_name(pod))):
            self.controller.enqueue(key_of(pod))

    def _node_changed(self, change: Change[Node]) -> None:
        if change.new is not None and _no_execute(change.old) != _no_execute(change.new):
            for pod in self._pods.by_index("node", name_of(change.new)):
                self.controller.enqueue(key_of(pod))

    async def reconcile(self, key: Key) -> None:
        """One pod: delete it if its time has come, look again when it will have."""
        pod = self._pods.get(*key)
        if pod is None or deleting(pod):
            return
        moment = datetime.now(UTC)
        when = evicted_at(pod, _no_execute(self._nodes.get("", node_name(pod))), moment)
        if when is None:
            return
        if when > moment:
            self.controller.enqueue_after(key, (when - moment).total_seconds())
            return
        await self._evict(pod)

    async def _evict(self, pod: Pod) -> None:
        text = "Taint manager: deleting due to NoExecute taint"
        reason = PodCondition(
            type="DisruptionTarget",
            status="True",
            reason="DeletionByTaintManager",
            message=text,
            lastTransitionTime=now(),
        )
        name, namespace = key_of(pod)[1], namespace_of(pod)
        patch = {"metadata": {"uid": uid_of(pod)}, "status": {"conditions": [to_json(reason)]}}
        self._recorder.event(pod, "Normal", "TaintManagerEviction", f"Marking for deletion Pod {namespace}/{name}")
        try:
            await self._client.patch(Pod, name, patch, namespace, subresource="status", media_type=STRATEGIC_PATCH)
            await self._client.delete(Pod, name, namespace, uid=uid_of(pod))
        except NotFound:
            log.debug("pod is gone already pod=%s/%s", namespace, name)


def _no_execute(node: Node | None) -> list[Taint]:
    taints = (node.spec.taints if node and node.spec else None) or []
    return [taint for taint in taints if taint.effect == "NoExecute"]
