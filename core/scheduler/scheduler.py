"""The loop: informers fill cache and queue, one decision after the other, bindings beside.

Decisions never wait and see each other's outcome through assumed pods; bindings, status patches and events run in
tasks of their own. All state is made anew for each leadership.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from lightkube.models.core_v1 import Namespace, Node, Pod, Service

from kernelet.core.api.errors import ApiError, Conflict, NotFound
from kernelet.core.api.times import now_rfc3339
from kernelet.core.client.client import STRATEGIC_PATCH, Client
from kernelet.core.client.events import NORMAL, WARNING, EventRecorder
from kernelet.core.client.informer import Change, Informer
from kernelet.core.scheduler.algorithm import FrameworkAlgorithm
from kernelet.core.scheduler.cache import NodeInfo
from kernelet.core.scheduler.config import SchedulerConfig
from kernelet.core.scheduler.framework import (
    Framework,
    Handle,
    Helps,
    ScheduleAlgorithm,
    Unschedulable,
    load_algorithm,
    load_plugins,
)
from kernelet.core.scheduler.plugins import built_in
from kernelet.core.scheduler.plugins.binder import DefaultBinder
from kernelet.core.scheduler.podinfo import DEFAULT_SCHEDULER, PodInfo
from kernelet.core.scheduler.queue import QueuedPod, SchedulingQueue

WRITES = 64
"""Bindings and status patches under way at once."""

log = logging.getLogger(__name__)


class Scheduler:
    """One scheduler, for one leadership. `algorithm` replaces the configured one."""

    def __init__(
        self,
        client: Client,
        pods: Informer[Pod],
        nodes: Informer[Node],
        services: Informer[Service],
        namespaces: Informer[Namespace],
        *,
        config: SchedulerConfig | None = None,
        algorithm: ScheduleAlgorithm | None = None,
    ) -> None:
        self.config = config or SchedulerConfig()
        self.queue = SchedulingQueue()
        self.handle = Handle(
            client,
            services=lambda namespace: services.by_index("namespace", namespace),
            namespace_labels=lambda namespace: _labels(namespaces.get("", namespace)),
        )
        self.cache = self.handle.cache
        self._client = client
        self._informers = (pods, nodes, services, namespaces)
        self._framework = framework_of(self.handle, self.config)
        self._algorithm = algorithm or _algorithm(self.handle, self.config, self._framework)
        self._events = EventRecorder(client, self.config.name)
        self._writes = asyncio.Semaphore(WRITES)

    async def run(self) -> None:
        """Schedules until cancelled. The informers run elsewhere."""
        pods, nodes, *_ = self._informers
        for informer in self._informers:
            await informer.synced()
        # Pods first, so that a node is full from the moment it is known.
        pods.subscribe(self._on_pod)
        nodes.subscribe(self._on_node)
        try:
            async with self._events, asyncio.TaskGroup() as group:
                while True:
                    queued = await self.queue.pop()
                    self._attempt(queued, group)
                    await asyncio.sleep(0)  # The informers and bindings get their turn.
        finally:
            pods.unsubscribe(self._on_pod)
            nodes.unsubscribe(self._on_node)
            self.queue.close()

    def _on_pod(self, change: Change[Pod]) -> None:
        pod = PodInfo(change.object)
        if change.new is None or pod.finished:
            self.queue.remove(pod.key)
            was_there = self.cache.holds(pod.key)
            self.cache.remove(pod.key)
            if was_there:
                self.queue.helped(Helps.POD_REMOVED)
        elif pod.node_name:
            self.queue.remove(pod.key)
            self.cache.set_pod(pod)
            if change.old is None or not _bound(change.old) or _labels(change.old) != pod.labels:
                self.queue.helped(Helps.POD_ADDED)
        elif self._is_ours(pod):
            # An assumed pod's update is from before its binding.
            if not self.cache.is_assumed(pod.key):
                self.queue.put(pod)
        else:
            self.queue.remove(pod.key)

    def _is_ours(self, pod: PodInfo) -> bool:
        """Whether the pod, which has no node, is waiting for this scheduler. Gated pods (KEP-3521) wait for others."""
        ours = (pod.spec.schedulerName or DEFAULT_SCHEDULER) == self.config.name
        return ours and not pod.terminating and not pod.spec.schedulingGates

    def _on_node(self, change: Change[Node]) -> None:
        node = change.object
        name = (node.metadata and node.metadata.name) or ""
        if change.new is None:
            self.cache.remove_node(name)
            return
        before = self.cache.node(name)
        known = before is not None and before.node is not None
        old = _what_counts(before) if before else None
        self.cache.set_node(name, node)
        after = self.cache.node(name)
        if not known:
            self.queue.helped(Helps.NODE_ADDED)
        elif after is not None and _what_counts(after) != old:
            self.queue.helped(Helps.NODE_CHANGED)

    def _attempt(self, queued: QueuedPod, group: asyncio.TaskGroup) -> None:
        """One decision, and what follows from it."""
        pod = queued.pod
        try:
            node = self._decide(pod)
        except Unschedulable as verdict:
            log.debug("unschedulable: %s", verdict, extra={"pod": pod.shown})
            self.queue.refuse(queued, verdict.helps)
            self._tell(queued, "Unschedulable", str(verdict), group)
            return
        except Exception as error:
            # A plug-in's defect must not keep the other pods from being scheduled; the stack says where it is.
            log.exception("scheduling failed", extra={"pod": pod.shown})
            self.queue.fail(queued)
            self._tell(queued, "SchedulerError", f"scheduling failed: {error!r}", group)
            return
        self.cache.assume(pod, node.name)
        group.create_task(self._bind(queued, node.name, group), name=f"bind {pod.shown}")

    def _decide(self, pod: PodInfo) -> NodeInfo:
        """Raises Unschedulable."""
        nodes = self.cache.nodes()
        if not nodes:
            raise Unschedulable(0, {}, helps=Helps.NODE_ADDED)
        node = self._algorithm.schedule(pod, nodes)
        if self.cache.node(node.name) is not node:
            raise LookupError(f"the schedule algorithm chose {node.name}, which is none of the nodes it was given")
        status = self._framework.reserve(pod, node)
        if not status.ok:
            raise Unschedulable(len(nodes), dict.fromkeys(status.reasons, 1))
        return node

    async def _bind(self, queued: QueuedPod, node: str, group: asyncio.TaskGroup) -> None:
        pod = queued.pod
        try:
            async with self._writes:
                await self._framework.bind(pod, node)
        except ApiError as error:
            self._framework.unreserve(pod, node)
            self.cache.forget(pod)
            self._bind_failed(queued, error, group)
            self.queue.helped(Helps.POD_REMOVED)
        else:
            log.info("bound", extra={"pod": pod.shown, "node": node})
            self._events.event(pod.pod, NORMAL, "Scheduled", f"Successfully assigned {pod.shown} to {node}")

    def _bind_failed(self, queued: QueuedPod, error: ApiError, group: asyncio.TaskGroup) -> None:
        """The pod is tried again, as it is now; unless it is gone, bound, or no longer ours."""
        current = self._informers[0].get(*queued.pod.key)
        pod = PodInfo(current) if current else None
        if pod is None or pod.uid != queued.pod.uid or pod.node_name or pod.finished or not self._is_ours(pod):
            return
        queued.pod = pod
        self.queue.fail(queued)
        if isinstance(error, Conflict | NotFound):
            # The informer is about to show what happened to the pod.
            log.info("binding refused: %s", error, extra={"pod": pod.shown})
            return
        self._tell(queued, "SchedulerError", f"binding rejected: {error}", group)

    def _tell(self, queued: QueuedPod, reason: str, message: str, group: asyncio.TaskGroup) -> None:
        """An event each time, the condition when it says something new."""
        self._events.event(queued.pod.pod, WARNING, "FailedScheduling", message)
        if message == queued.message:
            return
        queued.message = message
        if _condition_message(queued.pod.pod) != message:
            group.create_task(self._patch_condition(queued, reason, message), name=f"status {queued.pod.shown}")

    async def _patch_condition(self, queued: QueuedPod, reason: str, message: str) -> None:
        pod = queued.pod
        condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
        if not _has_condition(pod.pod):
            condition["lastTransitionTime"] = now_rfc3339()
        patch = {"metadata": {"uid": pod.uid}, "status": {"conditions": [condition]}}
        namespace, name = pod.key
        try:
            async with self._writes:
                await self._client.patch(Pod, name, patch, namespace, subresource="status", media_type=STRATEGIC_PATCH)
        except (NotFound, Conflict):
            log.debug("the pod is gone", extra={"pod": pod.shown})
        except ApiError as error:
            queued.message = ""  # Told anew at the next attempt.
            log.warning("condition PodScheduled of pod %s not written: %s", pod.shown, error)


def informers(client: Client) -> tuple[Informer[Pod], Informer[Node], Informer[Service], Informer[Namespace]]:
    """What a scheduler looks at, for those who have no informers to share."""
    services = Informer(client, Service, indexes={"namespace": _namespace})
    return Informer(client, Pod), Informer(client, Node), services, Informer(client, Namespace)


def _namespace(service: Service) -> Iterable[str]:
    return [(service.metadata and service.metadata.namespace) or ""]


def framework_of(handle: Handle, config: SchedulerConfig) -> Framework:
    """Plug-ins of others go after the built-in ones, but a binder of theirs before the default one.

    Raises ValueError for a disabled plug-in there is none of.
    """
    found = sorted([*built_in(handle), *load_plugins(handle)], key=lambda plugin: plugin.name == DefaultBinder.name)
    unknown = set(config.disabled) - {plugin.name for plugin in found}
    if unknown:
        known = ", ".join(plugin.name for plugin in found)
        raise ValueError(f"no scheduler plug-in {', '.join(sorted(unknown))} to disable; there are: {known}")
    return Framework(plugin for plugin in found if plugin.name not in config.disabled)


def _algorithm(handle: Handle, config: SchedulerConfig, framework: Framework) -> ScheduleAlgorithm:
    return load_algorithm(config.algorithm, handle) if config.algorithm else FrameworkAlgorithm(framework)


def _what_counts(info: NodeInfo) -> tuple[Any, ...]:
    """What of a node decides whether pods fit."""
    return info.labels, info.taints, info.unschedulable, info.allocatable


def _bound(pod: Pod) -> bool:
    return bool(pod.spec and pod.spec.nodeName)


def _labels(obj: Pod | Namespace | None) -> dict[str, str]:
    return (obj and obj.metadata and obj.metadata.labels) or {}


def _condition(pod: Pod) -> Any:
    conditions = (pod.status and pod.status.conditions) or []
    return next((each for each in conditions if each.type == "PodScheduled"), None)


def _condition_message(pod: Pod) -> str:
    condition = _condition(pod)
    return (condition.message or "") if condition else ""


def _has_condition(pod: Pod) -> bool:
    return _condition(pod) is not None
