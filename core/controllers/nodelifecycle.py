"""Node lifecycle: notices nodes that have fallen silent, says so, and gives them up.

A node renews its Lease in kube-node-lease each second. After `grace` seconds of silence (see heartbeats) its
conditions become Unknown, it gets the taints `unreachable`, and its pods stop counting as ready: the taint with effect
NoExecute is what takes its endpoints out of the routes and starts its evictions. A node that says itself that it is
not ready gets the `not-ready` taints. All of it is undone as soon as the node is heard of again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from datetime import datetime
from typing import TypeVar

from lightkube.models.coordination_v1 import Lease
from lightkube.models.core_v1 import Namespace, Node, NodeCondition, NodeStatus, Pod

from kernelet.core.api.errors import ApiError, NotFound
from kernelet.core.client.client import STRATEGIC_PATCH
from kernelet.core.client.events import EventRecorder
from kernelet.core.client.informer import Change
from kernelet.core.controllers import pods as pod_facts
from kernelet.core.controllers.access import Key, clone, condition, meta, name_of, namespace_of, now, to_json
from kernelet.core.controllers.heartbeats import Heartbeats
from kernelet.core.controllers.informers import Informers
from kernelet.core.controllers.node_taints import NO_EXECUTE, UNREACHABLE, ready_status, wanted_taints
from kernelet.core.controllers.runtime import Controller, bounded

log = logging.getLogger(__name__)

T = TypeVar("T")

LEASES = "kube-node-lease"
TICK = 0.5
"""Seconds between two looks at the clocks, at most."""
STALL = 1.5
"""A longer pause between two looks means that this process stood still and heard nothing."""
PROBE_PERIOD = 0.5
PROBE_TIMEOUT = 1.0
"""Seconds after which the API server counts as away: nodes cannot renew then, and are not blamed for it."""
JUDGED = ("Ready", "MemoryPressure", "DiskPressure", "PIDPressure")


class NodeLifecycleController:
    """`grace`: seconds of silence; `period`: seconds between two renewals of a healthy node."""

    def __init__(
        self, informers: Informers, recorder: EventRecorder, grace: float = 4.0, period: float = 1.0, workers: int = 8
    ) -> None:
        self._client = informers.client
        self._recorder = recorder
        self._nodes = informers.of(Node)
        self._pods = informers.of(Pod)
        self._beats = Heartbeats(grace, period)
        self._silent: frozenset[str] = frozenset()
        self._all_silent = False
        self._was_disrupted = False
        self._blind = False
        self._wake = asyncio.Event()
        self.controller = Controller("nodelifecycle", self.reconcile, workers)
        self._nodes.subscribe(self._node_changed)
        informers.of(Lease).subscribe(self._lease_changed)

    async def run(self) -> None:
        """Watches the clocks and works until cancelled."""
        self._beats.restart(time.monotonic())
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_server(), name="nodelifecycle-probe")
            group.create_task(self._watch_clocks(), name="nodelifecycle-clocks")
            group.create_task(self.controller.run(), name="nodelifecycle")

    def _node_changed(self, change: Change[Node]) -> None:
        name = name_of(change.object)
        if change.new is None:
            self._beats.forget(name)
        else:
            self._beats.track(name, time.monotonic())
            if change.old is not None and _own_word(change.old) != (word := _own_word(change.new)) and word:
                # The node has posted its status itself: it may do so before it renews its lease.
                self._beats.spoke(name, time.monotonic())
                self._silent -= {name}
            self.controller.enqueue(("", name))
        self._wake.set()

    def _lease_changed(self, change: Change[Lease]) -> None:
        if change.new is not None and namespace_of(change.new) == LEASES:
            self._hear(change.new)

    def _hear(self, lease: Lease) -> None:
        renewal = lease.spec.renewTime if lease.spec else None
        if renewal is not None:
            self._beats.renewed(name_of(lease), renewal.isoformat(), time.monotonic())
            if name_of(lease) in self._silent:
                self._wake.set()  # Judged at once, and not at the next tick.

    async def _watch_clocks(self) -> None:
        looked = time.monotonic()
        while True:
            moment = time.monotonic()
            if moment - looked > STALL:
                log.warning("stood still, node clocks start anew seconds=%.1f", moment - looked)
                self._beats.restart(moment)
            pause = TICK
            if not self._blind:
                verdict = self._beats.judge(moment)
                if verdict.silent - self._silent and await self._listen():
                    verdict = self._beats.judge(time.monotonic())
                if not self._blind:
                    self._take(verdict.silent, verdict.disrupted)
                    pause = min(verdict.check_in, TICK)
            looked = time.monotonic()
            await self._pause(pause)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    async def _watch_server(self) -> None:
        """Asks for something small all the time, so that an outage is known before a node is suspected for it."""
        while True:
            if await self._reach(self._client.get(Namespace, LEASES)) is not None and self._blind:
                log.warning("the API server is back, node clocks start anew")
                self._beats.restart(time.monotonic())
                self._blind = False
            await asyncio.sleep(PROBE_PERIOD)

    async def _listen(self) -> bool:
        """Asks the API server itself before a node is given up: the watch may be late."""
        leases = await self._reach(self._client.list(Lease, LEASES))
        for lease in leases.items if leases else []:
            self._hear(lease)
        return leases is not None

    async def _reach(self, call: Awaitable[T]) -> T | None:
        """The answer, or None where the API server is away, which is noted."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                return await call
        except (ApiError, TimeoutError) as error:
            if not self._blind:
                log.warning("the API server is away, no node is judged cause=%s", str(error) or "timeout")
            self._blind = True
            return None

    def _take(self, silent: frozenset[str], disrupted: bool) -> None:
        changed = silent ^ self._silent
        for name in sorted(silent - self._silent):
            log.info("node fell silent node=%s all=%s", name, disrupted)
        self._silent, self._all_silent = silent, disrupted
        for name in changed:
            self.controller.enqueue(("", name))
        self._note_disruption()

    def _note_disruption(self) -> None:
        disrupted = self._disrupted()
        if disrupted != self._was_disrupted:
            self._was_disrupted = disrupted
            if disrupted and self._nodes.items():
                log.warning("no node is ready: nothing is evicted until one is")
            for node in self._nodes.items():
                self.controller.enqueue(("", name_of(node)))

    def _disrupted(self) -> bool:
        """Whether no node at all is in order: then it is not the nodes' fault, and their pods stay where they are."""
        return self._all_silent or not any(
            ready_status(node) == "True" and name_of(node) not in self._silent for node in self._nodes.items()
        )

    def _evicts(self, node: Node) -> bool:
        """Whether the node is given up."""
        name = name_of(node)
        if self._disrupted():
            return False
        if ready_status(node) == "False" or name in self._silent:
            return True
        if self._beats.alive(name):
            return False
        # Given up before our time and not heard of since: that stands.
        taints = (node.spec.taints if node.spec else None) or []
        return any((taint.key, taint.effect) == (UNREACHABLE, NO_EXECUTE) for taint in taints)

    async def reconcile(self, key: Key) -> None:
        """One node: its taints first, which take its endpoints away, then its conditions and pods."""
        node = self._nodes.get(*key)
        if node is None:
            return
        self._note_disruption()
        judged = self._judged(node, now())
        evicts = self._evicts(judged)
        taints = wanted_taints(judged, evict=evicts, now=now())
        if taints != ((node.spec.taints if node.spec else None) or []):
            patch = {
                "metadata": {"resourceVersion": meta(node).resourceVersion},
                "spec": {"taints": [to_json(taint) for taint in taints] or None},
            }
            node = await self._client.patch(Node, key[1], patch)
        if judged.status is not None and ready_status(node) != ready_status(judged):
            await self._write_conditions(node, judged.status.conditions or [])
        if evicts and ready_status(judged) in ("False", "Unknown"):
            pods = [pod for pod in self._pods.by_index("node", key[1]) if pod_facts.ready(pod)]
            await bounded(self._unready, pods)

    def _judged(self, node: Node, moment: datetime) -> Node:
        """The node as it should say of itself: all Unknown once it is silent."""
        if name_of(node) not in self._silent or ready_status(node) == "Unknown":
            return node
        result = clone(node)
        result.status = result.status or NodeStatus()
        conditions = list(result.status.conditions or [])
        for name in JUDGED:
            old = condition(conditions, name)
            entry = NodeCondition(
                type=name,
                status="Unknown",
                reason="NodeStatusUnknown" if old else "NodeStatusNeverUpdated",
                message="Kubelet stopped posting node status." if old else "Kubelet never posted node status.",
                lastHeartbeatTime=old.lastHeartbeatTime if old else None,
                lastTransitionTime=moment,
            )
            conditions = [other for other in conditions if other.type != name] + [entry]
        result.status.conditions = conditions
        return result

    async def _write_conditions(self, node: Node, conditions: list[NodeCondition]) -> None:
        """Raises Conflict where the node has spoken meanwhile."""
        unknown = [to_json(entry) for entry in conditions if entry.status == "Unknown"]
        patch = {"metadata": {"resourceVersion": meta(node).resourceVersion}, "status": {"conditions": unknown}}
        name = name_of(node)
        await self._client.patch(Node, name, patch, subresource="status", media_type=STRATEGIC_PATCH)
        self._recorder.event(node, "Normal", "NodeNotReady", f"Node {name} status is now: NodeNotReady")

    async def _unready(self, pod: Pod) -> None:
        entry = NodeCondition(type="Ready", status="False", reason="NodeNotReady", lastTransitionTime=now())
        patch = {"status": {"conditions": [to_json(entry)]}}
        try:
            await self._client.patch(
                Pod, name_of(pod), patch, namespace_of(pod), subresource="status", media_type=STRATEGIC_PATCH
            )
        except NotFound:
            log.debug("pod went away while its node was given up pod=%s/%s", namespace_of(pod), name_of(pod))
            return
        self._recorder.event(pod, "Warning", "NodeNotReady", "Node is not ready")


def _own_word(node: Node) -> tuple[str, datetime | None] | None:
    """What the node said last of itself; None where the last word is ours."""
    found = condition(node.status.conditions if node.status else None, "Ready")
    return None if found is None or found.status == "Unknown" else (found.status, found.lastHeartbeatTime)
