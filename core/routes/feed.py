"""The route feed's server: one stream a node, and the waits of kubelets.

One task compiles: inputs mark what is dirty, and all that came in one turn of the event loop becomes one version. Each
stream sends what its node lacks, and learns from the node's messages what its kernel holds. The bytes of a version are
made once and sent to all: Subscribe is therefore registered with a serializer that lets ready-made bytes through.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
from lightkube.models.core_v1 import Node, Service
from lightkube.models.discovery_v1 import EndpointSlice

from kernelet.core.client.client import Client
from kernelet.core.client.informer import Change, Informer
from kernelet.proto import routes_pb2 as pb

from .acks import AckTable, Signal
from .compiler import SERVICE_NAME_LABEL, Compiler, service_key

log = logging.getLogger(__name__)

PROGRAMS_SERVICES = ("proxy", "node")
LONGEST_WAIT_MS = 60_000


SERVICE = "kernelet.routes.v1.Routes"


class RouteFeed:
    """One generation of the route table, served until cancelled. `run` owns every task of its own."""

    def __init__(self, client: Client, generation: str) -> None:
        self._compiler = Compiler(generation)
        self._acks = AckTable()
        self._dirty = asyncio.Event()
        self._new_version = Signal()
        self._ready = asyncio.Event()
        self._services = Informer(client, Service)
        self._slices = Informer(client, EndpointSlice)
        self._nodes = Informer(client, Node)

    async def run(self) -> None:
        """Follows the API server and compiles, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for informer in (self._services, self._slices, self._nodes):
                informer.start(tasks)
            # Nothing is compiled before everything is known: a partial table would withdraw what is only not read yet.
            for informer in (self._services, self._slices, self._nodes):
                await informer.synced()
            self._nodes.subscribe(self._on_node)
            self._services.subscribe(self._on_service)
            self._slices.subscribe(self._on_slice)
            self._dirty.set()
            while True:
                await self._dirty.wait()
                self._dirty.clear()
                await self._compile()

    async def _compile(self) -> None:
        delta = self._compiler.flush()
        # Also without a new version: whether a pod is routed, or a node live, may have changed.
        self._acks.note_version(self._compiler.version)
        if delta is not None:
            log.debug("new route version=%d services=%d", delta.version, len(delta.services))
            self._new_version.notify()
        self._ready.set()

    def _on_service(self, change: Change[Service]) -> None:
        current = change.new or change.old
        if current is not None and current.metadata is not None:
            key = service_key(current.metadata.namespace, current.metadata.name)
            self._compiler.set_service(key, change.new)
            self._dirty.set()

    def _on_slice(self, change: Change[EndpointSlice]) -> None:
        for known, now in ((change.old, None), (change.new, change.new)):
            if known is None or known.metadata is None:
                continue
            owner = (known.metadata.labels or {}).get(SERVICE_NAME_LABEL)
            if owner:
                key = service_key(known.metadata.namespace, owner)
                self._compiler.set_slice(key, known.metadata.name or "", now)
                self._dirty.set()

    def _on_node(self, change: Change[Node]) -> None:
        current = change.new or change.old
        if current is not None and current.metadata is not None and current.metadata.name:
            self._compiler.set_node(current.metadata.name, change.new)
            if change.new is None:
                self._acks.forget(current.metadata.name)
            self._dirty.set()

    # The service

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """To be added to a server."""
        waits = {"request_deserializer": pb.WaitRequest.FromString}
        methods = {
            "Subscribe": grpc.stream_stream_rpc_method_handler(
                self.Subscribe, request_deserializer=pb.NodeMessage.FromString, response_serializer=bytes
            ),
            "WaitRouted": _unary(self.WaitRouted, pb.WaitResponse.SerializeToString, **waits),
            "WaitWithdrawn": _unary(self.WaitWithdrawn, pb.WaitResponse.SerializeToString, **waits),
            "Status": _unary(
                self.Status, pb.StatusResponse.SerializeToString, request_deserializer=pb.StatusRequest.FromString
            ),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def Subscribe(
        self, request_iterator: AsyncIterator[pb.NodeMessage], context: grpc.aio.ServicerContext[object, object]
    ) -> AsyncIterator[bytes]:
        """See routes.proto. A node may subscribe for itself only. Gives encoded FeedMessages."""
        hello = await anext(aiter(request_iterator), None)
        if hello is None:
            return
        await _check_node(context, hello.node)
        await self._ready.wait()
        stream = self._acks.connect(hello.node) if hello.component in PROGRAMS_SERVICES else 0
        log.info("node subscribed node=%s component=%s holds=%d", hello.node, hello.component, hello.applied_version)
        reader = asyncio.create_task(self._read_acks(hello, request_iterator, stream), name=f"acks of {hello.node}")
        # A node that stops talking is gone: nothing more is to be sent then.
        reader.add_done_callback(lambda _: self._new_version.notify())
        try:
            async for data in self._messages(hello, reader):
                yield data
        finally:
            reader.cancel()
            await asyncio.wait([reader])
            if not reader.cancelled() and reader.exception() is not None:
                log.info("stream broke node=%s: %r", hello.node, reader.exception())
            self._acks.disconnect(hello.node, stream)
            if not self._compiler.is_member(hello.node):
                self._acks.forget(hello.node)
            log.info("node left node=%s component=%s", hello.node, hello.component)

    async def _messages(self, hello: pb.NodeMessage, reader: asyncio.Task[None]) -> AsyncIterator[bytes]:
        generation, version = hello.generation, hello.applied_version
        while not reader.done():
            for message in self._compiler.since(generation, version):
                yield message.data
                generation, version = message.generation, message.version
            await self._new_version.wait_for(functools.partial(self._is_news, version, reader))

    def _is_news(self, held: int, reader: asyncio.Task[None]) -> bool:
        return self._compiler.version > held or reader.done()

    async def _read_acks(self, hello: pb.NodeMessage, messages: AsyncIterator[pb.NodeMessage], stream: int) -> None:
        self._take_ack(hello.node, hello, stream)
        async for message in messages:
            self._take_ack(hello.node, message, stream)

    def _take_ack(self, node: str, message: pb.NodeMessage, stream: int) -> None:
        if message.error:
            log.warning("node did not apply a version node=%s: %s", node, message.error)
            self._acks.fail(node, stream, message.error)
        elif message.generation == self._compiler.generation and message.applied_version <= self._compiler.version:
            self._acks.ack(node, stream, message.applied_version)

    async def WaitRouted(
        self, request: pb.WaitRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.WaitResponse:
        """See routes.proto."""
        return await self._wait(request, routed=True)

    async def WaitWithdrawn(
        self, request: pb.WaitRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.WaitResponse:
        """See routes.proto."""
        return await self._wait(request, routed=False)

    async def _wait(self, request: pb.WaitRequest, *, routed: bool) -> pb.WaitResponse:
        version = 0
        try:
            async with asyncio.timeout(min(request.deadline_ms or 5000, LONGEST_WAIT_MS) / 1000):
                await self._ready.wait()
                await self._acks.changed.wait_for(lambda: bool(self._compiler.ready_services(request.uid)) == routed)
                version = self._compiler.version
                await self._acks.changed.wait_for(lambda: not self._lagging(version))
        except TimeoutError:
            return pb.WaitResponse(done=False, lagging_nodes=self._lagging(version), version=version)
        return pb.WaitResponse(done=True, version=version)

    def _lagging(self, version: int) -> list[str]:
        return self._acks.lagging(version, self._compiler.live_nodes())

    async def Status(
        self, request: pb.StatusRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.StatusResponse:
        """See routes.proto."""
        live = set(self._compiler.live_nodes())
        nodes = [
            pb.NodeStatus(
                node=name,
                acked_version=entry.acked,
                connected=entry.connected,
                live=name in live,
                error=entry.error,
                lag_seconds=self._acks.lag_seconds(name),
            )
            for name, entry in sorted(self._acks.nodes.items())
        ]
        return pb.StatusResponse(generation=self._compiler.generation, version=self._compiler.version, nodes=nodes)


def _unary(
    behaviour: Callable[..., Any], serializer: Callable[[Any], bytes], **options: Any
) -> grpc.RpcMethodHandler[Any, Any]:
    return grpc.unary_unary_rpc_method_handler(behaviour, response_serializer=serializer, **options)


async def _check_node(context: grpc.aio.ServicerContext[object, object], node: str) -> None:
    names = [name.decode() for name in context.auth_context().get("x509_common_name", [])]
    if f"system:node:{node}" not in names and "system:kernelet-control-plane" not in names:
        who = names[0] if names else "unknown"
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{who} may not subscribe as node {node!r}")
