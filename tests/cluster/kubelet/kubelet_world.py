"""A kubelet in this process beside a real API server in another, on a pod network that does nothing."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightkube.models.core_v1 import Node, Pod
from support.apiserver import ApiServer, free_ports

from kernelet.agents.kubelet.containers import NodeIdentity
from kernelet.agents.kubelet.docker import DockerRuntime
from kernelet.agents.kubelet.kit import KubeletConfig
from kernelet.agents.kubelet.kubelet import Kubelet
from kernelet.agents.kubelet.plugins import NoRoutes, PodNetworkStatus, RouteWaiter
from kernelet.core.api.errors import NotFound
from kernelet.core.api.kinds import KINDS
from kernelet.core.client.client import Client
from kernelet.core.client.events import EventRecorder
from kernelet.core.security.pki import Pki

JSON = dict[str, Any]
PODS = KINDS.resolve("pods")


@dataclass
class NullNetwork:
    """Gives every pod the loopback address and remembers who is attached."""

    attached: set[str] = field(default_factory=set)

    async def start(self) -> None: ...
    async def attach(self, pod_id: str, pid: int) -> PodNetworkStatus:
        self.attached.add(pod_id)
        return PodNetworkStatus(("127.0.0.1",), "127.0.0.1")

    async def detach(self, pod_id: str) -> None:
        self.attached.discard(pod_id)

    async def reconcile(self, pod_ids: frozenset[str]) -> None: ...
    async def close(self, *, keep: bool = True) -> None: ...


class World:
    """One node. `kubelet` is running between `start` and `crash`."""

    def __init__(self, server: ApiServer, runtime: DockerRuntime, image: str, node: str, folder: Path) -> None:
        self.server, self.runtime, self.image, self.node, self.folder = server, runtime, image, node, folder
        self.client: Client = server.client()
        self.network = NullNetwork()
        self.routes: RouteWaiter = NoRoutes()
        self.pods = PODS
        self.pki = Pki.ensure(server.data / "pki")
        pair = self.pki.issue(
            f"kubelet-{node}",
            f"system:node:{node}",
            ("system:nodes",),
            sans=(node, "127.0.0.1"),
            server=True,
            client=True,
        )
        self.config = KubeletConfig(
            node=node, address="127.0.0.1", state=folder / "kubelet", memory=folder / "memory", cluster="test",
            port=free_ports(1)[0], cert=pair.cert_path, key=pair.key_path, client_ca=server.data / "pki" / "ca.crt",
            relist_seconds=5.0,
        )  # fmt: skip
        self._task: asyncio.Task[None] | None = None
        self._recorder: EventRecorder | None = None

    async def start(self) -> Kubelet:
        self._recorder = await EventRecorder(self.client, "kubelet", self.node).__aenter__()
        kubelet = Kubelet(self.config, self.client, self.runtime, self.network, self.routes, self._recorder)
        self._task = asyncio.create_task(kubelet.run())
        up = asyncio.ensure_future(kubelet.serving())
        async with asyncio.timeout(20):
            await asyncio.wait({up, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            await self._task
        return kubelet

    async def crash(self) -> None:
        """Ends the kubelet; its containers run on."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._recorder is not None:
            await self._recorder.close()

    async def close(self) -> None:
        await self.crash()
        await self.client.close()

    async def create(self, name: str, *command: str, **changes: Any) -> Pod:
        """A pod of one container, bound to this node. `spec` and `container` change the defaults."""
        container = {"name": "main", "image": self.image, "imagePullPolicy": "IfNotPresent"}
        if command:
            container["command"] = ["/bin/sh", "-c", *command]  # type: ignore[assignment]
        spec = {"containers": [container | changes.get("container", {})], "nodeName": self.node}
        spec |= {"terminationGracePeriodSeconds": 5} | changes.get("spec", {})
        metadata = {"name": name, "namespace": "default"} | changes.get("metadata", {})
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        await self.client.raw.create(PODS, body)
        return await self.client.get(Pod, name, "default")

    async def until(self, name: str, holds: Callable[[JSON], bool], seconds: float = 15.0) -> JSON:
        """Waits until the pod's status satisfies `holds`; the pod."""
        last: JSON = {}
        try:
            async with asyncio.timeout(seconds):
                stream = self.client.raw.watch(PODS, "default", fields=f"metadata.name={name}")
                async with contextlib.aclosing(stream) as events:
                    async for event in events:
                        if event.type in ("ADDED", "MODIFIED") and event.object is not None:
                            last = event.object
                            if holds(last.get("status") or {}):
                                return last
        except TimeoutError as error:
            raise AssertionError(f"pod {name} did not get there; its status is {last.get('status')}") from error
        raise AssertionError(f"the watch of pod {name} ended")

    async def gone(self, name: str, seconds: float = 15.0) -> None:
        """Waits until the pod's object is gone."""

        async def gone() -> bool:
            try:
                await self.client.get(Pod, name, "default")
            except NotFound:
                return True
            return False

        await self.eventually(gone, seconds)

    async def eventually(self, condition: Callable[[], Awaitable[bool]], seconds: float = 15.0) -> None:
        """Waits for what only asking shows."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if await condition():
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"not so within {seconds} s")

    async def has_container_of(self, name: str = "") -> bool:
        """Whether any container of the pod (of any pod) is there."""
        return any(name in ("", one.labels["io.kernelet.pod.name"]) for one in await self.containers())

    async def containers(self) -> list[Any]:
        return await self.runtime.list(NodeIdentity("test", self.node).labels())

    async def node_object(self) -> Node:
        return await self.client.get(Node, self.node)


def running(status: JSON) -> bool:
    return status.get("phase") == "Running"


def ready(status: JSON) -> bool:
    return any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions", []))


def main_state(status: JSON) -> JSON:
    found = status.get("containerStatuses") or [{}]
    return found[0].get("state") or {}


def waiting_reason(status: JSON) -> str:
    return (main_state(status).get("waiting") or {}).get("reason", "")


@contextlib.asynccontextmanager
async def world_of(
    server: ApiServer, runtime: DockerRuntime, image: str, folder: Path, node: str = ""
) -> AsyncIterator[World]:
    world = World(server, runtime, image, node or f"node-{uuid.uuid4().hex[:8]}", folder)
    try:
        yield world
    finally:
        await world.close()
