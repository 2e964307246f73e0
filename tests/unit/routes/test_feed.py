"""The route feed from API server to node: snapshots, deltas, acknowledgements and the waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator

import grpc.aio
import pytest
from lightkube.models.core_v1 import Node
from support.apiserver import ApiServer
from support.proxy import FaultyProxy
from support.waiting import eventually

from kernelet.proto import routes_pb2 as pb

from .feed_world import Sink, World, end, pod


@pytest.fixture(scope="module")
def routes_api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """One whose nodes are those of these tests alone: every live node is waited for."""
    with ApiServer(tmp_path_factory.mktemp("routes")) as server:
        yield server


@pytest.fixture
async def world(routes_api_server: ApiServer) -> AsyncIterator[World]:
    async with routes_api_server.client() as client, contextlib.AsyncExitStack() as stack:
        made = World(routes_api_server, client, stack)
        await made.clear()
        yield made


def has(sink: Sink, service: str) -> bool:
    return any(route.id == f"default/{service}" for delta in sink.deltas for route in delta.services)


async def test_a_node_gets_a_snapshot_and_then_only_what_changed(world: World) -> None:
    await world.service("one", "pod-1")
    await world.node("n1")
    await world.lead()
    sink = Sink()
    node, _ = world.follow("n1", sink)
    await eventually(lambda: has(sink, "one"))
    assert sink.deltas[0].snapshot
    await world.service("two", "pod-2")
    await eventually(lambda: bool(node.table.services.get("default/two") and sink.deltas[-1].services[0].ports))
    later = sink.deltas[1:]
    assert later
    assert not any(delta.snapshot for delta in later)
    assert {route.id for delta in later for route in delta.services} == {"default/two"}
    assert [delta.base_version for delta in later] == [delta.version for delta in sink.deltas[:-1]]
    await world.acknowledged("n1", node)


async def test_a_broken_stream_is_resumed_without_a_snapshot(world: World) -> None:
    await world.node("n1")
    await world.lead()
    sink = Sink()
    async with FaultyProxy(world.port) as proxy:
        await world.publish(proxy.port)
        node, _ = world.follow("n1", sink)
        await eventually(lambda: len(sink.deltas) == 1)
    await world.service("one", "pod-1")  # While the node is cut off.
    again = FaultyProxy(world.port)
    again.port = proxy.port
    async with again:
        await eventually(lambda: has(sink, "one"))
        await world.acknowledged("n1", node)
    assert sink.snapshots == 1


async def test_another_leader_is_followed_at_once_and_means_a_new_generation(world: World) -> None:
    await world.node("n1")
    first = await world.lead()
    sink = Sink()
    node, _ = world.follow("n1", sink)
    await eventually(lambda: len(sink.deltas) == 1)
    generation = node.table.generation
    await world.lead()  # The old one still serves: it is the lease that tells.
    await eventually(lambda: node.table.generation != generation)
    assert sink.deltas[-1].snapshot
    await world.acknowledged("n1", node)
    await end(first)
    await world.service("one", "pod-1")
    await eventually(lambda: has(sink, "one"))


async def test_a_version_the_kernel_refused_is_not_acknowledged_and_a_snapshot_follows(world: World) -> None:
    await world.node("n1")
    await world.lead()
    sink = Sink()
    node, _ = world.follow("n1", sink)
    await eventually(lambda: len(sink.deltas) == 1)
    await world.acknowledged("n1", node)
    sink.broken = True
    await world.service("one", "pod-1")
    found = await world.status_once(lambda status: bool(status.nodes[0].error))
    assert "the kernel is full" in found.nodes[0].error
    assert found.nodes[0].acked_version == 0
    sink.broken = False
    await eventually(lambda: sink.snapshots == 2)
    await world.acknowledged("n1", node)
    assert (await world.status()).nodes[0].error == ""


async def test_a_move_in_the_midst_of_applying_is_not_taken_for_applied(world: World) -> None:
    await world.node("n1")
    await world.lead()
    sink = Sink()
    node, _ = world.follow("n1", sink)
    await eventually(lambda: len(sink.deltas) == 1)
    sink.open.clear()
    await world.service("one", "pod-1")
    await eventually(lambda: sink.asked == 2)
    await world.publish(world.port)  # A new holder, the same server.
    await eventually(lambda: sink.asked == 3)
    sink.open.set()
    await eventually(lambda: sink.snapshots == 2)
    await world.acknowledged("n1", node)


async def test_withdrawn_means_acknowledged_by_every_live_node(world: World) -> None:
    await world.service("one", "pod-1")
    for name in ("n1", "n2"):
        await world.node(name)
    await world.lead()
    sinks = {name: Sink() for name in ("n1", "n2")}
    nodes = {name: world.follow(name, sink)[0] for name, sink in sinks.items()}
    for name, node in nodes.items():
        await eventually(lambda sink=sinks[name]: has(sink, "one"))
        await world.acknowledged(name, node)
    sinks["n2"].open.clear()
    waiting = world.run(nodes["n1"].wait_withdrawn(pod("pod-1"), 20))
    await world.service("one")
    await eventually(lambda: sinks["n2"].asked > len(sinks["n2"].deltas))
    await world.acknowledged("n1", nodes["n1"])
    assert not waiting.done()
    sinks["n2"].open.set()
    await asyncio.wait_for(waiting, 5)


async def test_routed_means_acknowledged_by_every_live_node(world: World) -> None:
    await world.node("n1")
    await world.lead()
    sink = Sink()
    node, _ = world.follow("n1", sink)
    await eventually(lambda: len(sink.deltas) == 1)
    async with world.stub("system:node:n1") as stub:
        sink.open.clear()
        waiting = asyncio.ensure_future(stub.WaitRouted(pb.WaitRequest(uid="pod-1", deadline_ms=20_000)))
        await world.service("one", "pod-1")
        await eventually(lambda: sink.asked > len(sink.deltas))
        assert not waiting.done()
        sink.open.set()
        answer = await asyncio.wait_for(waiting, 5)
        assert answer.done
        assert answer.version <= node.table.version


async def test_a_node_that_is_not_ready_is_not_waited_for(world: World) -> None:
    await world.service("one", "pod-1")
    await world.node("n1")
    await world.node("silent")
    await world.lead()
    sink = Sink()
    node, _ = world.follow("n1", sink)
    await eventually(lambda: has(sink, "one"))
    waiting = world.run(node.wait_withdrawn(pod("pod-1"), 20))
    await world.service("one")
    await world.acknowledged("n1", node)
    done, _ = await asyncio.wait([waiting], timeout=0.2)
    assert not done
    await world.node("silent", ready=False)
    await asyncio.wait_for(waiting, 5)


async def test_a_live_node_that_is_not_connected_is_waited_for_until_the_deadline(world: World) -> None:
    await world.node("n1")
    await world.node("away")
    await world.lead()
    node, _ = world.follow("n1", Sink())
    await eventually(lambda: node.table.version > 0)
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="by away"):
        await node.wait_withdrawn(pod("nobody"), 0.5)
    assert 0.3 < time.monotonic() - started < 2


async def test_a_wait_survives_a_change_of_the_leader(world: World) -> None:
    await world.service("one", "pod-1")
    await world.node("n1")
    first = await world.lead()
    sink = Sink()
    node, _ = world.follow("n1", sink)
    await eventually(lambda: has(sink, "one"))
    waiting = world.run(node.wait_withdrawn(pod("pod-1"), 20))
    await world.lead()
    await eventually(lambda: sink.snapshots == 2)
    assert not waiting.done()
    third = await world.lead()
    await end(first)
    await eventually(lambda: sink.snapshots == 3)
    await end(third)
    await world.lead()
    await eventually(lambda: sink.snapshots == 4)
    assert not waiting.done()
    await world.service("one")
    await asyncio.wait_for(waiting, 10)


async def test_without_a_routes_server_the_wait_names_the_node_itself(world: World) -> None:
    node, _ = world.follow("n1", Sink())
    with pytest.raises(TimeoutError, match="by n1"):
        await node.wait_withdrawn(pod("pod-1"), 0.1)


async def test_a_node_may_subscribe_for_itself_only(world: World) -> None:
    await world.lead()
    async with world.stub("system:node:n1") as stub:
        stream = stub.Subscribe(iter_once(pb.NodeMessage(node="n2", component="node")))
        with pytest.raises(grpc.aio.AioRpcError, match="system:node:n1 may not subscribe as node 'n2'") as caught:
            await anext(aiter(stream))
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_node_that_hangs_up_or_says_nothing_leaves_nothing_behind(world: World) -> None:
    await world.node("n1")
    await world.lead()
    async with world.stub("system:node:n1") as stub:
        assert [message async for message in stub.Subscribe(iter_once())] == []
        first = [message async for message in stub.Subscribe(iter_once(pb.NodeMessage(node="n1", component="node")))]
        assert len(first) <= 1
    found = (await world.status()).nodes
    assert [(entry.node, entry.connected) for entry in found] == [("n1", False)]


async def test_status_tells_who_holds_what_and_forgets_nodes_that_are_gone(world: World) -> None:
    await world.node("n1")
    await world.lead()
    sink = Sink()
    node, task = world.follow("n1", sink)
    await eventually(lambda: node.table.version > 0)
    await world.acknowledged("n1", node)
    found = await world.status()
    assert (found.generation, found.version) == (node.table.generation, node.table.version)
    assert [(e.node, e.connected, e.live, e.lag_seconds) for e in found.nodes] == [("n1", True, True, 0.0)]
    sink.open.clear()
    await world.service("one", "pod-1")
    await eventually(lambda: sink.asked > len(sink.deltas))
    assert (await world.status()).nodes[0].lag_seconds > 0
    await world.client.delete(Node, "n1")
    await end(task)
    await world.status_once(lambda status: not status.nodes)


async def iter_once(*messages: pb.NodeMessage) -> AsyncIterator[pb.NodeMessage]:
    for message in messages:
        yield message
