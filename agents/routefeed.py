"""A node's end of the route feed: follows the leader, applies versions in order, acknowledges what the kernel holds.

One stream at a time, to the address on the leader's lease. Whatever ends it, the next one begins with what this node
holds, so that it gets only what it lacks. When the kernel did not take a version, nobody knows what it holds: the node
says so with its next subscription and holds nothing, and gets a snapshot, which is compared with the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple, Protocol

import grpc
import grpc.aio
from lightkube.models.coordination_v1 import Lease
from lightkube.models.core_v1 import Pod

from kernelet.core.client.client import Client
from kernelet.core.client.config import ClientConfig
from kernelet.core.client.election import ADDRESS
from kernelet.core.client.informer import Informer
from kernelet.dataplane.overlay import OverlayError
from kernelet.dataplane.proxy.engine import EngineError
from kernelet.dataplane.routes import Backend, BackendFlag, Delta, Peer, RouteTable, ServicePort, ServiceRoute
from kernelet.dataplane.routes import Protocol as IpProtocol
from kernelet.proto import routes_pb2 as pb
from kernelet.proto.routes_pb2_grpc import RoutesStub

log = logging.getLogger(__name__)

LEASE_NAMESPACE, LEASE_NAME = "kube-system", "kernelet-routes"
SERVER_NAME = "kernelet-routes"
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0


class Sink(Protocol):
    """What takes versions: the service proxy, the overlay."""

    async def apply(self, delta: Delta, table: RouteTable) -> None:
        """Brings the kernel to `table`, of which `delta` is what changed. Raises when the kernel does not hold it."""
        ...


class ApplyError(Exception):
    """A sink refused a version; the message is what the routes server is told."""


class RouteFeedClient:
    """One subscription. Run `run` in a task; the waits may be called while it runs."""

    def __init__(self, client: Client, config: ClientConfig, node: str, component: str, sinks: Sequence[Sink]) -> None:
        self._config = config
        self._node = node
        self._component = component
        self._sinks = sinks
        self._leases = Informer(client, Lease, namespace=LEASE_NAMESPACE, fields=f"metadata.name={LEASE_NAME}")
        self._address_changed = asyncio.Event()
        self._address = ""
        self._leader = ("", "")
        self._error = ""
        self._progress = False
        self._stub: Any = None
        self._connected = asyncio.Event()
        self.table = RouteTable()

    async def run(self) -> None:
        """Follows the leader until cancelled; connects again, with a growing pause, whatever ends a stream."""
        self._leases.subscribe(lambda change: self._on_lease(change.new))
        async with asyncio.TaskGroup() as tasks:
            self._leases.start(tasks)
            pause = FIRST_PAUSE
            while True:
                await self._address_known()
                self._address_changed.clear()
                self._progress = False
                try:
                    await self._follow(self._address)
                except (grpc.aio.AioRpcError, ApplyError) as error:
                    cause = error.details() if isinstance(error, grpc.aio.AioRpcError) else error
                    log.warning("the route feed at %s ended: %s", self._address, cause)
                if self._progress:
                    pause = FIRST_PAUSE
                await self._pause(pause)
                pause = min(pause * 2, LONGEST_PAUSE)

    def _on_lease(self, lease: Lease | None) -> None:
        """A new leader is followed at once, also where it serves at its predecessor's address."""
        annotations = (lease.metadata.annotations if lease and lease.metadata else None) or {}
        address = annotations.get(ADDRESS, "")
        holder = (lease.spec.holderIdentity if lease and lease.spec else "") or ""
        if address and holder and (address, holder) != self._leader:
            self._leader, self._address = (address, holder), address
            self._address_changed.set()

    async def _address_known(self) -> None:
        while not self._address:
            await self._address_changed.wait()

    async def _pause(self, seconds: float) -> None:
        """Waits before the next attempt; a new leader's address ends the wait."""
        try:
            async with asyncio.timeout(seconds):
                await self._address_changed.wait()
        except TimeoutError:
            return

    async def _follow(self, address: str) -> None:
        async with self._channel(address) as channel:
            self._stub = RoutesStub(channel)
            acks: asyncio.Queue[pb.NodeMessage] = asyncio.Queue()
            acks.put_nowait(self._hello())
            moved = asyncio.create_task(self._address_changed.wait())
            stream = asyncio.create_task(self._take(self._stub.Subscribe(_drain(acks)), acks))
            self._connected.set()
            try:
                await asyncio.wait((moved, stream), return_when=asyncio.FIRST_COMPLETED)
                if stream.done():
                    await stream
            finally:
                self._connected.clear()
                for task in (moved, stream):
                    task.cancel()
                await asyncio.gather(moved, stream, return_exceptions=True)

    def _hello(self) -> pb.NodeMessage:
        return pb.NodeMessage(
            node=self._node,
            component=self._component,
            applied_version=self.table.version,
            generation=self.table.generation,
            error=self._error,
        )

    def _channel(self, address: str) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(
            self._config.ca_pem, self._config.key_pem or None, self._config.cert_pem or None
        )
        options = [
            ("grpc.ssl_target_name_override", SERVER_NAME),
            ("grpc.max_receive_message_length", -1),
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 5_000),
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        return grpc.aio.secure_channel(address, credentials, options=options)

    async def _take(self, messages: AsyncIterator[pb.FeedMessage], acks: asyncio.Queue[pb.NodeMessage]) -> None:
        async for message in messages:
            delta = decode(message)
            try:
                await self._apply(delta)
            except BaseException as error:
                # Also when cancelled in the midst of it.
                self.table, self._error = RouteTable(), str(error) if isinstance(error, ApplyError) else ""
                raise
            self._error, self._progress = "", True
            acks.put_nowait(pb.NodeMessage(applied_version=delta.version, generation=delta.generation))

    async def _apply(self, delta: Delta) -> None:
        try:
            self.table.apply(delta)
            for sink in self._sinks:
                await sink.apply(delta, self.table)
        except (ValueError, OSError, EngineError, OverlayError) as error:
            raise ApplyError(str(error)) from error

    async def wait_withdrawn(self, pod: Pod, deadline: float) -> None:
        """Returns once no live node routes to the pod.

        Raises TimeoutError after `deadline` seconds, naming the nodes that had not acknowledged by then, or this one
        where no routes server answered.
        """
        metadata, status = pod.metadata, pod.status
        request = pb.WaitRequest(
            namespace=(metadata and metadata.namespace) or "",
            name=(metadata and metadata.name) or "",
            uid=(metadata and metadata.uid) or "",
            addresses=[entry.ip for entry in (status.podIPs if status else None) or [] if entry.ip],
        )
        lagging = [self._node]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline):
                lagging = await self._wait_withdrawn(request, asyncio.get_running_loop().time() + deadline)
        if lagging:
            raise TimeoutError(f"not acknowledged within {deadline:.1f} s by {', '.join(lagging)}")

    async def _wait_withdrawn(self, request: pb.WaitRequest, end: float) -> list[str]:
        pause = FIRST_PAUSE
        while True:
            await self._connected.wait()
            request.deadline_ms = max(1, int((end - asyncio.get_running_loop().time() - 0.1) * 1000))
            try:
                answer = await self._stub.WaitWithdrawn(request)
                return [] if answer.done else list(answer.lagging_nodes)
            except grpc.aio.AioRpcError as error:
                log.info("asking again whether the pod is withdrawn: %s", error.details())
            except asyncio.CancelledError:
                # Closing the channel cancels its calls; that is not meant for the task that waits.
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                log.info("asking again whether the pod is withdrawn: the route feed moved")
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)


async def _drain(queue: asyncio.Queue[pb.NodeMessage]) -> AsyncIterator[pb.NodeMessage]:
    while True:
        yield await queue.get()


def decode(message: pb.FeedMessage) -> Delta:
    """The plain form of a feed message."""
    return Delta(
        generation=message.generation,
        version=message.version,
        base_version=message.base_version,
        services=[_service(service) for service in message.services],
        removed_services=list(message.removed_services),
        peers=[Peer(p.node, tuple(p.pod_cidrs), p.address, p.vtep_mac, p.zone) for p in message.peers],
        removed_peers=list(message.removed_peers),
    )


def _service(service: pb.Service) -> ServiceRoute:
    names = _Names(("", *service.nodes), ((), *(tuple(zones.names) for zones in service.zones)))
    return ServiceRoute(
        id=service.id,
        cluster_ips=tuple(service.cluster_ips),
        ports=tuple(_port(port, names) for port in service.ports),
        external_ips=tuple(service.external_ips),
        external_local=service.external_local,
        internal_local=service.internal_local,
        affinity_seconds=service.affinity_seconds,
        balancer_ips=tuple(service.balancer_ips),
        source_ranges=tuple((packed[:-1], packed[-1]) for packed in service.source_ranges),
        health_check_port=service.health_check_port,
        consistent=service.consistent,
    )


class _Names(NamedTuple):
    """What backends refer to by number; 0 is nothing."""

    nodes: tuple[str, ...]
    zones: tuple[tuple[str, ...], ...]


def _port(port: pb.ServicePort, names: _Names) -> ServicePort:
    backends = (*_backends(port.backends4, 4, names), *_backends(port.backends6, 16, names))
    return ServicePort(port.name, IpProtocol(port.protocol), port.port, port.node_port, backends)


_FLAGS = {number: BackendFlag(number) for number in range(8)}
_AFTER_ADDRESS = struct.Struct("!HBHBH")


def _backends(packed: bytes, size: int, names: _Names) -> list[Backend]:
    """Unpacks rows of address, port, flags, node, weight and zones; see routes.proto."""
    step = size + _AFTER_ADDRESS.size
    found = []
    for start in range(0, len(packed), step):
        port, flags, node, weight, zones = _AFTER_ADDRESS.unpack_from(packed, start + size)
        address = packed[start : start + size]
        found.append(Backend(address, port, _FLAGS[flags], names.nodes[node], weight, names.zones[zones]))
    return found
