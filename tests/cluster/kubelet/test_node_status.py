"""The node in the API: registration, heartbeat, conditions."""

from __future__ import annotations

import asyncio

from kubelet_world import World
from lightkube.models.coordination_v1 import Lease
from lightkube.models.core_v1 import Node

from kernelet.agents.kubelet.plugins import RuntimeUnreachable


def condition(node: Node, kind: str) -> tuple[str, str]:
    found = next(one for one in (node.status.conditions if node.status else None) or [] if one.type == kind)
    return str(found.status), str(found.reason)


async def test_the_node_registers_itself_and_reports_ready(world: World) -> None:
    async def is_ready() -> bool:
        node = await world.node_object()
        return bool(node.status and node.status.conditions) and condition(node, "Ready")[0] == "True"

    await world.eventually(is_ready)
    node = await world.node_object()
    assert (
        node.status
        and node.metadata
        and node.metadata.labels
        and node.metadata.labels["kubernetes.io/hostname"] == world.node
    )
    assert node.status.nodeInfo and node.status.nodeInfo.kubeletVersion.startswith("v1.36.0+kernelet")
    assert node.status.daemonEndpoints and node.status.daemonEndpoints.kubeletEndpoint
    assert node.status.daemonEndpoints.kubeletEndpoint.Port == world.config.port
    assert {one.type: one.address for one in node.status.addresses or []} == {
        "InternalIP": "127.0.0.1",
        "Hostname": world.node,
    }
    assert int(str((node.status.allocatable or {})["pods"])) == 110
    assert condition(node, "MemoryPressure")[0] == "False"


async def test_the_lease_is_renewed_each_second_even_while_the_runtime_hangs(world: World) -> None:
    async def never(labels: object) -> list[object]:
        await asyncio.Event().wait()
        return []

    world.runtime.list = never  # type: ignore[method-assign,assignment]
    first = await world.client.get(Lease, world.node, "kube-node-lease")
    await asyncio.sleep(3.2)
    second = await world.client.get(Lease, world.node, "kube-node-lease")
    del world.runtime.list
    assert first.spec and second.spec and first.spec.renewTime and second.spec.renewTime
    assert 2 <= (second.spec.renewTime - first.spec.renewTime).total_seconds() <= 4.2
    assert second.spec.holderIdentity == world.node


async def test_a_node_whose_runtime_is_away_is_not_ready_and_says_why(world: World) -> None:
    async def away(labels: object) -> list[object]:
        raise RuntimeUnreachable("dockerd at /x does not answer: gone; check that it runs")

    async def not_ready() -> bool:
        return condition(await world.node_object(), "Ready") == ("False", "KubeletNotReady")

    async def is_ready() -> bool:
        return condition(await world.node_object(), "Ready")[0] == "True"

    world.runtime.list = away  # type: ignore[method-assign,assignment]
    try:
        await world.eventually(not_ready)
    finally:
        del world.runtime.list
    await world.eventually(is_ready)
