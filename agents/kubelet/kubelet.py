"""The kubelet of one node: one worker a pod bound to it, the node's own status and the HTTPS endpoint.

A pod's worker starts when the pod appears and ends when nothing of it is left. After a restart the containers found by
label are handed to the workers of their pods before anything is done; containers of pods that the API no longer has are
torn down only after the first full list of pods, so an API server that is away costs no pod its life.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any

from lightkube.models.core_v1 import Pod, Service

from kernelet.core.client.client import Client
from kernelet.core.client.informer import Change, Informer

from . import pods
from .containers import LABEL_GRACE, LABEL_POD_UID, NodeIdentity, is_sandbox
from .fields import NodeFacts
from .images import PAUSE_IMAGE, ImageImporter, ImagePuller, ensure_pause_image
from .kit import Kit, KubeletConfig, Recorder
from .machine import cpu_count, memory_bytes
from .metrics import Metrics
from .nodestatus import NodeAgent
from .objects import ObjectCache
from .plugins import ContainerState, ContainerStatus, NoRoutes, PodNetwork, RouteWaiter, Runtime, RuntimeFailure
from .podworker import PodWorker
from .probing import Prober
from .server import KubeletServer, RoutesReport
from .statuswriter import StatusWriter
from .stopping import remove_pod
from .volumes import VolumeRoots, Volumes, memory_root

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 5.0


NetworkFactory = Callable[[str], Awaitable[PodNetwork]]
"""Makes and starts the pod network of a node from its pod subnet."""


class Kubelet:
    """Runs pods until cancelled; containers then run on and are adopted by the next kubelet of this node."""

    def __init__(
        self,
        config: KubeletConfig,
        client: Client,
        runtime: Runtime,
        network: PodNetwork | NetworkFactory,
        route_waiter: RouteWaiter | None = None,
        recorder: Recorder | None = None,
        routes: RoutesReport | None = None,
        *,
        listener: socket.socket | None = None,
    ) -> None:
        """`network` is started by its owner, or made from the node's pod subnet once that is known.

        `routes` is what the endpoint tells of the node's routes; None: nothing.
        `listener`: a bound socket for the HTTPS endpoint, in place of the configured address and port.
        """
        self._config = config
        self._client = client
        self._runtime = runtime
        self._network_source = network
        self._routes = route_waiter or NoRoutes()
        self._recorder = recorder or _NoEvents()
        self._listener = listener
        self._report = routes
        self._identity = NodeIdentity(config.cluster, config.node)
        self._workers: dict[str, PodWorker] = {}
        self._finished: set[str] = set()
        self._found: dict[str, list[ContainerStatus]] = {}
        self._pods = Informer(client, Pod, fields=f"spec.nodeName={config.node}")
        self._services = Informer(client, Service)
        self._node = NodeAgent(config, self._identity, client)
        self._metrics = Metrics()
        self._writer = StatusWriter(client)
        self._prober = Prober(runtime)
        self._problem = "the container runtime has not answered yet"
        self._serving = asyncio.Event()
        self.port = config.port

    async def wait_pod_cidr(self) -> str:
        """The node's pod subnet, once the controllers gave it one. Needs `run` to be running."""
        return await self._node.wait_pod_cidr()

    async def serving(self) -> None:
        """Waits until pods are taken and the endpoint is up."""
        await self._serving.wait()

    async def run(self) -> None:
        """Registers the node, keeps its lease and runs its pods, until cancelled."""
        self._config.state.mkdir(parents=True, exist_ok=True)
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            stack.push_async_callback(self._prober.close)
            group.create_task(self._node.run(), name="node")
            version = await self._first_contact()
            network = await self._make_network()
            kit = self._kit(group, network)
            self._set_health("", version)
            self._pods.start(group)
            self._services.start(group)
            group.create_task(self._writer.run(), name="status writer")
            await asyncio.gather(self._pods.synced(), self._services.synced())
            await self._adopt(kit, network, group)
            self._pods.subscribe(lambda change: self._pod_changed(change, kit, group))
            if self._config.port or self._listener:
                server = KubeletServer(self._config, self._runtime, self, self._metrics, self._listener, self._report)
                self.port = (await stack.enter_async_context(server)).port
            group.create_task(self._watch_containers(), name="container events")
            group.create_task(self._relist(), name="container relist")
            self._serving.set()

    async def _make_network(self) -> PodNetwork:
        source = self._network_source
        if not callable(source):
            return source
        self._node.set_starting("the node has no pod subnet yet; the controllers give it one")
        return await source(await self._node.wait_pod_cidr())

    def _kit(self, group: asyncio.TaskGroup, network: PodNetwork) -> Kit:
        config = self._config
        name = f"{config.cluster}/{config.node}"
        roots = VolumeRoots(config.state, config.memory or memory_root(name))
        facts = NodeFacts(config.node, config.address, cpu_count() * 1000, memory_bytes())
        return Kit(
            config=config,
            identity=self._identity,
            facts=facts,
            client=self._client,
            runtime=self._runtime,
            network=network,
            routes=self._routes,
            recorder=self._recorder,
            images=ImagePuller(self._runtime, group),
            volumes=Volumes(roots, config.dns),
            objects=ObjectCache(self._client, group),
            prober=self._prober,
            writer=self._writer,
            metrics=self._metrics,
            services=self._services.items,
            ensure_pause=self._ensure_pause,
        )

    async def _ensure_pause(self) -> str:
        """Makes the pause image where the runtime can; else it must be there or be pulled."""
        if isinstance(self._runtime, ImageImporter):
            return await ensure_pause_image(self._runtime)
        if not await self._runtime.has_image(PAUSE_IMAGE):
            await self._runtime.pull(PAUSE_IMAGE)
        return PAUSE_IMAGE

    async def _first_contact(self) -> str:
        """Waits for the runtime; meanwhile the node is NotReady and says why. The runtime's version."""
        pause = _FIRST_PAUSE
        while True:
            try:
                version = await self._runtime.version()
                await self._ensure_pause()
                found = await self._runtime.list(self._identity.labels())
            except RuntimeFailure as error:
                self._set_health(str(error))
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
                continue
            by_pod: dict[str, list[ContainerStatus]] = defaultdict(list)
            for one in found:
                by_pod[one.labels.get(LABEL_POD_UID, "")].append(one)
            self._found = dict(by_pod)
            return version

    def _set_health(self, problem: str, version: str = "") -> None:
        if problem != self._problem:
            log.log(logging.WARNING if problem else logging.INFO, "runtime: %s", problem or "works")
        self._problem = problem
        self._node.set_health(problem, version)

    async def _adopt(self, kit: Kit, network: PodNetwork, group: asyncio.TaskGroup) -> None:
        """After the first list: releases what belongs to pods that are gone; the rest waits for its workers."""
        known = {pods.uid(pod) for pod in self._pods.items()}
        orphans = (set(self._found) | kit.volumes.known_pods()) - known
        for uid in orphans:
            group.create_task(self._tear_down(kit, uid, self._found.pop(uid, [])), name=f"orphan {uid}")
        # An orphan keeps its address until its containers are gone: its own tear-down detaches it.
        await network.reconcile(frozenset(known | orphans))
        if self._found:
            log.info("adopting the containers of %d pods", len(self._found))

    async def _tear_down(self, kit: Kit, uid: str, found: Sequence[ContainerStatus]) -> None:
        """Ends the containers of a pod that the API no longer has, as gently as the pod had asked for."""
        log.info("pod uid=%s is gone from the API; removing its %d containers", uid, len(found))
        running = [one for one in found if not is_sandbox(one) and one.state is ContainerState.RUNNING]
        while True:
            try:
                stops = (self._runtime.stop(one.id, float(one.labels.get(LABEL_GRACE, "0"))) for one in running)
                await asyncio.gather(*stops)
                await remove_pod(kit, uid)
                return
            except Exception:  # one pod's remains must not stop the kubelet
                log.exception("what is left of pod uid=%s cannot be removed yet", uid)
            await asyncio.sleep(_LONGEST_PAUSE)

    def _pod_changed(self, change: Change[Pod], kit: Kit, group: asyncio.TaskGroup) -> None:
        uid = pods.uid(change.object)
        worker = self._workers.get(uid)
        if change.new is None:
            self._finished.discard(uid)
            if worker is not None:
                worker.removed()
        elif worker is not None:
            worker.update(change.new)
        elif uid not in self._finished:
            worker = PodWorker(kit, change.new, self._found.pop(uid, []))
            self._workers[uid] = worker
            self._metrics.pods.set(len(self._workers))
            group.create_task(self._run_worker(worker), name=f"pod {pods.key(change.new)}")

    async def _run_worker(self, worker: PodWorker) -> None:
        await worker.run()
        del self._workers[worker.uid]
        self._metrics.pods.set(len(self._workers))
        held = self._pods.get(pods.namespace(worker.pod), pods.name(worker.pod))
        if held is not None and pods.uid(held) == worker.uid:
            # Its object lingers, until its deletion arrives or because of a finalizer: it must not start again.
            self._finished.add(worker.uid)

    async def _watch_containers(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            started = time.monotonic()
            try:
                async with aclosing(self._runtime.events(self._identity.labels())) as events:
                    async for container_id in events:
                        self._container_changed(container_id)
            except RuntimeFailure as error:
                self._set_health(str(error))
            pause = _FIRST_PAUSE if time.monotonic() - started > _LONGEST_PAUSE else min(pause * 2, _LONGEST_PAUSE)
            await asyncio.sleep(pause)
            await self._compare()

    def _container_changed(self, container_id: str) -> None:
        for worker in self._workers.values():
            if worker.owns(container_id):
                worker.container_changed(container_id)

    async def _relist(self) -> None:
        """The safety net below the events, and the runtime's health check."""
        while True:
            await asyncio.sleep(self._config.relist_seconds)
            await self._compare()

    async def _compare(self) -> None:
        """Tells workers of containers whose state is not what they believe."""
        try:
            found = {one.id: one for one in await self._runtime.list(self._identity.labels())}
        except RuntimeFailure as error:
            self._set_health(str(error))
            return
        self._set_health("")
        for worker in self._workers.values():
            for container_id, believed in worker.running().items():
                one = found.get(container_id)
                runs = one is not None and one.state is ContainerState.RUNNING
                if runs is not believed:
                    worker.container_changed(container_id)

    def pods(self) -> list[tuple[Pod, dict[str, Any]]]:
        return [(worker.pod, worker.status) for worker in self._workers.values()]

    def container(self, namespace: str, pod: str, container: str, *, previous: bool) -> ContainerStatus | None:
        worker = self._worker(namespace, pod)
        return worker.container(container, previous=previous) if worker else None

    def pod_of(self, namespace: str, name: str) -> Pod | None:
        worker = self._worker(namespace, name)
        return worker.pod if worker else None

    def _worker(self, namespace: str, name: str) -> PodWorker | None:
        """The worker of the newest pod of this name: an older one may still be ending."""
        matching = [
            one for one in self._workers.values() if (pods.namespace(one.pod), pods.name(one.pod)) == (namespace, name)
        ]
        return max(matching, key=lambda one: one.begun, default=None)

    def health(self) -> str:
        return self._problem


class _NoEvents:
    """A recorder for a kubelet without one: events go to the log."""

    def event(self, obj: Any, type: str, reason: str, message: str) -> None:
        log.debug("event %s %s: %s", type, reason, message)
