"""A real API server with all controllers and the real scheduler; only the kubelets are played."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from lightkube.models.apps_v1 import Deployment, ReplicaSet
from lightkube.models.coordination_v1 import Lease
from lightkube.models.core_v1 import ConfigMap, Namespace, Node, Pod, Service, ServiceAccount
from lightkube.models.discovery_v1 import EndpointSlice

from kernelet.core.api.errors import AlreadyExists, ApiError, NotFound
from kernelet.core.api.models import to_model
from kernelet.core.client.client import STRATEGIC_PATCH, Client
from kernelet.core.client.informer import Informer
from kernelet.core.controllers.access import deleting, name_of, namespace_of
from kernelet.core.controllers.pods import node_name, ready

T = TypeVar("T")
RENEW = 0.2
MODELS = (Pod, Node, ReplicaSet, Deployment, EndpointSlice, Namespace, Service, ServiceAccount, ConfigMap)


class World:
    """Caches of what a test looks at; `until` waits for a change of any of them to make a condition true."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.informers: dict[type[Any], Informer[Any]] = {model: Informer(client, model) for model in MODELS}
        self._changed = asyncio.Event()
        self._checks: list[Callable[[], None]] = []
        for informer in self.informers.values():
            informer.subscribe(self._note)

    def _note(self, _: Any) -> None:
        self._changed.set()
        for check in self._checks:
            check()

    def always(self, check: Callable[[], None]) -> None:
        """Runs at every change from now on; an AssertionError it raises ends the test."""
        self._checks.append(check)

    def items(self, model: type[T], namespace: str | None = None) -> list[T]:
        found = self.informers[model].items()
        return [obj for obj in found if namespace is None or namespace_of(obj) == namespace]

    def get(self, model: type[T], name: str, namespace: str = "") -> T | None:
        return self.informers[model].get(namespace, name)

    async def until(self, condition: Callable[[], object], seconds: float = 15.0) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"not so within {seconds} s; pods: {self.summary()}") from None

    def summary(self) -> list[str]:
        return [f"{name_of(p)}@{node_name(p)} ready={ready(p)} deleting={deleting(p)}" for p in self.items(Pod)]


class Kubelet:
    """Plays one node: renews its lease, runs what is bound to it, lets go of what is deleted."""

    def __init__(self, world: World, name: str, number: int) -> None:
        self.world = world
        self.client = world.client
        self.name = name
        self.number = number
        self.becomes_ready: Callable[[Pod], bool] = lambda pod: True
        self._task: asyncio.Task[None] | None = None
        self._addresses = 1

    async def start(self) -> None:
        """Registers, and lives until `stop`."""
        conditions = [condition("Ready", "True")]
        amounts = {"cpu": "16", "memory": "16Gi", "pods": "110"}
        status = {"conditions": conditions, "capacity": amounts, "allocatable": amounts}
        metadata = {"name": self.name, "labels": {"kubernetes.io/hostname": self.name}}
        try:
            await self.client.create(to_model(Node, {"metadata": metadata, "status": status}))
        except AlreadyExists:
            patch = {"status": {"conditions": conditions}}
            await self.client.patch(Node, self.name, patch, subresource="status", media_type=STRATEGIC_PATCH)
        self._task = asyncio.create_task(self._live())

    async def stop(self) -> None:
        """As a power cut: nothing is told to anybody."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _live(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._heartbeat())
            group.create_task(self._sync())

    async def _heartbeat(self) -> None:
        while True:
            # As the kubelet: a beat that fails, because the server was killed meanwhile, is followed by others.
            with contextlib.suppress(ApiError):
                await self._renew()
            await asyncio.sleep(RENEW)

    async def _renew(self) -> None:
        spec = {"holderIdentity": self.name, "renewTime": datetime.now(UTC).isoformat(), "leaseDurationSeconds": 4}
        try:
            await self.client.patch(Lease, self.name, {"spec": spec}, "kube-node-lease")
        except NotFound:
            metadata = {"name": self.name, "namespace": "kube-node-lease"}
            await self.client.create(to_model(Lease, {"metadata": metadata, "spec": spec}))

    async def _sync(self) -> None:
        while True:
            for pod in self.world.items(Pod):
                if node_name(pod) == self.name:
                    await self._one(pod)
            await asyncio.sleep(0.01)

    async def _one(self, pod: Pod) -> None:
        try:
            if deleting(pod):
                await self.client.delete(Pod, name_of(pod), namespace_of(pod), grace_period=0)
            elif not ready(pod) and self.becomes_ready(pod):
                address = f"10.244.{self.number}.{self._addresses}"
                self._addresses += 1
                await set_pod(self.client, pod, "True", address)
        except ApiError:
            return  # It changed meanwhile; the next look sees it.


async def set_pod(client: Client, pod: Pod, status: str, address: str = "") -> None:
    """Writes what a kubelet says of a pod."""
    fields: dict[str, Any] = {"phase": "Running", "conditions": [condition("Ready", status)]}
    if address:
        fields |= {"podIP": address, "podIPs": [{"ip": address}]}
    await client.patch(
        Pod, name_of(pod), {"status": fields}, namespace_of(pod), subresource="status", media_type=STRATEGIC_PATCH
    )


def condition(kind: str, status: str) -> dict[str, str]:
    return {"type": kind, "status": status, "lastTransitionTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}


def template(labels: dict[str, str], image: str = "app:1", **spec: Any) -> dict[str, Any]:
    container = {"name": "main", "image": image, "ports": [{"name": "http", "containerPort": 8080}]}
    return {"metadata": {"labels": labels}, "spec": {"containers": [container], **spec}}


def deployment(name: str, namespace: str, replicas: int, **spec: Any) -> Deployment:
    labels = {"app": name}
    fields = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template(labels), **spec}
    return to_model(Deployment, {"metadata": {"name": name, "namespace": namespace}, "spec": fields})


def replica_set(name: str, namespace: str, replicas: int, **spec: Any) -> ReplicaSet:
    labels = {"app": name}
    fields = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template(labels), **spec}
    return to_model(ReplicaSet, {"metadata": {"name": name, "namespace": namespace}, "spec": fields})


def service(name: str, namespace: str, **spec: Any) -> Service:
    ports = [{"name": "web", "port": 80, "targetPort": "http"}]
    fields = {"selector": {"app": name}, "ports": ports, **spec}
    return to_model(Service, {"metadata": {"name": name, "namespace": namespace}, "spec": fields})
