"""A routes server on a loopback port, and nodes that follow it, at a real API server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import grpc.aio
from lightkube.models.coordination_v1 import Lease, LeaseSpec
from lightkube.models.core_v1 import Node, NodeCondition, NodeStatus, ObjectReference, Pod, Service, ServiceSpec
from lightkube.models.core_v1 import ServicePort as ModelPort
from lightkube.models.discovery_v1 import Endpoint, EndpointConditions, EndpointPort, EndpointSlice
from lightkube.models.meta_v1 import ObjectMeta
from support.apiserver import ApiServer, free_ports
from support.waiting import eventually

from kernelet.agents.routefeed import RouteFeedClient
from kernelet.core.api.errors import AlreadyExists, ApiError, NotFound
from kernelet.core.client.client import Client
from kernelet.core.client.config import ClientConfig
from kernelet.core.routes.main import RoutesConfig, run_routes
from kernelet.core.security.pki import Pki
from kernelet.dataplane.proxy.engine import EngineError
from kernelet.dataplane.routes import Delta, RouteTable
from kernelet.proto import routes_pb2 as pb
from kernelet.proto.routes_pb2_grpc import RoutesStub


class Sink:
    """Takes versions as a node's kernel would; `broken` makes it refuse, `open` cleared makes it take its time."""

    def __init__(self) -> None:
        self.deltas: list[Delta] = []
        self.broken = False
        self.open = asyncio.Event()
        self.open.set()
        self.asked = 0

    async def apply(self, delta: Delta, table: RouteTable) -> None:
        self.asked += 1
        await self.open.wait()
        if self.broken:
            raise EngineError("the kernel is full")
        self.deltas.append(delta)

    @property
    def snapshots(self) -> int:
        return sum(delta.snapshot for delta in self.deltas)


class World:
    """Tasks end with the world."""

    def __init__(self, server: ApiServer, client: Client, tasks: contextlib.AsyncExitStack) -> None:
        self.client = client
        self.config = server.config()
        self._pki = Pki.ensure(server.data / "pki")
        self._stack = tasks
        self.port = 0
        self._turn = 0

    def identity(self, common_name: str) -> ClientConfig:
        """A client certificate, serving the name `kernelet-routes` as well."""
        pair = self._pki.issue(
            common_name.replace(":", "-"), common_name, ["system:nodes"], sans=["kernelet-routes"], server=True
        )
        cert, key = pair.read()
        return ClientConfig("127.0.0.1:0", self._pki.ca_pem, cert, key)

    async def lead(self) -> asyncio.Task[None]:
        """Starts a routes server, which publishes its address as the leader."""
        self.port = free_ports(1)[0]
        found = self.identity("system:kernelet-routes")
        config = RoutesConfig(f"127.0.0.1:{self.port}", found.ca_pem, found.cert_pem, found.key_pem)
        task = self.run(run_routes(self.config, config))
        await self.publish(self.port)
        return task

    def run(self, work: object) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)  # type: ignore[arg-type]  # any coroutine
        self._stack.push_async_callback(end, task)
        return task

    async def publish(self, port: int) -> None:
        """What the leader elector writes: who leads, and where."""
        self._turn += 1
        annotations = {"kernelet.dev/address": f"127.0.0.1:{port}"}
        lease = Lease(
            metadata=ObjectMeta(name="kernelet-routes", namespace="kube-system", annotations=annotations),
            spec=LeaseSpec(holderIdentity=f"leader-{self._turn}"),
        )
        try:
            await self.client.create(lease)
        except AlreadyExists:
            held = await self.client.get(Lease, "kernelet-routes", "kube-system")
            lease.metadata.resourceVersion = held.metadata.resourceVersion
            await self.client.update(lease)

    def follow(self, node: str, sink: Sink) -> tuple[RouteFeedClient, asyncio.Task[None]]:
        client = RouteFeedClient(self.client, self.identity(f"system:node:{node}"), node, "node", [sink])
        return client, self.run(client.run())

    @contextlib.asynccontextmanager
    async def stub(self, common_name: str) -> AsyncIterator[RoutesStub]:
        found = self.identity(common_name)
        credentials = grpc.ssl_channel_credentials(found.ca_pem, found.key_pem, found.cert_pem)
        options = [("grpc.ssl_target_name_override", "kernelet-routes"), ("grpc.enable_http_proxy", 0)]
        async with grpc.aio.secure_channel(f"127.0.0.1:{self.port}", credentials, options=options) as channel:
            await channel.channel_ready()
            yield RoutesStub(channel)

    async def status(self) -> pb.StatusResponse:
        async with self.stub("admin") as stub:
            return await stub.Status(pb.StatusRequest())

    async def node(self, name: str, *, ready: bool = True) -> None:
        """A node whose Ready condition is as told."""
        with contextlib.suppress(AlreadyExists):
            await self.client.create(Node(metadata=ObjectMeta(name=name)))
        held = await self.client.get(Node, name)
        held.status = NodeStatus(conditions=[NodeCondition(type="Ready", status="True" if ready else "Unknown")])
        await self.client.update_status(held)

    async def service(self, name: str, *pods: str, ready: bool = True) -> None:
        """A service with these pods as endpoints, on no node."""
        metadata = ObjectMeta(name=name, namespace="default")
        with contextlib.suppress(AlreadyExists):
            await self.client.create(Service(metadata=metadata, spec=ServiceSpec(ports=[ModelPort(port=80)])))
        endpoints = [
            Endpoint(
                addresses=[f"10.244.1.{number}"],
                conditions=EndpointConditions(ready=ready, serving=ready),
                targetRef=ObjectReference(kind="Pod", namespace="default", name=uid, uid=uid),
            )
            for number, uid in enumerate(pods, 2)
        ]
        labels = {"kubernetes.io/service-name": name}
        found = EndpointSlice(
            addressType="IPv4",
            endpoints=endpoints,
            ports=[EndpointPort(port=8080, protocol="TCP")],
            metadata=ObjectMeta(name=name, namespace="default", labels=labels),
        )
        try:
            await self.client.create(found)
        except AlreadyExists:
            held = await self.client.get(EndpointSlice, name, "default")
            found.metadata = held.metadata
            await self.client.update(found)

    async def clear(self) -> None:
        """Nodes and services of a test before are gone."""
        for model, namespace in ((Node, ""), (EndpointSlice, "default"), (Service, "default")):
            for found in (await self.client.list(model, namespace)).items:
                if found.metadata.name != "kubernetes":
                    with contextlib.suppress(NotFound):
                        await self.client.delete(model, found.metadata.name, namespace)

    async def status_once(self, condition: Callable[[pb.StatusResponse], bool]) -> pb.StatusResponse:
        """The first status for which the condition holds."""
        async with self.stub("admin") as stub, asyncio.timeout(10):
            while True:
                found = await stub.Status(pb.StatusRequest())
                if condition(found):
                    return found
                await asyncio.sleep(0.01)

    async def acknowledged(self, node: str, client: RouteFeedClient) -> None:
        """Waits until the server knows that the node holds what the node's client holds, and that is something."""

        def holds(status: pb.StatusResponse) -> bool:
            return any(found.node == node and found.acked_version == client.table.version > 0 for found in status.nodes)

        await self.status_once(holds)


def pod(uid: str) -> Pod:
    return Pod(metadata=ObjectMeta(name=uid, namespace="default", uid=uid))


async def end(task: asyncio.Task[None]) -> None:
    """Cancels a task; an error of its own is raised."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and task.exception() is not None:
        raise task.exception()  # type: ignore[misc]  # checked in the line before


__all__ = ["ApiError", "Sink", "World", "end", "eventually", "pod"]
