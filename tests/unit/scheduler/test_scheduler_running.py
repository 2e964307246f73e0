"""The scheduler against a real API server; nodes are objects only."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from lightkube.models.core_v1 import Node, Pod
from support.apiserver import ApiServer
from support.scheduling import node, pod
from support.waiting import eventually

from kernelet.core.api.errors import ApiError
from kernelet.core.api.kinds import KINDS
from kernelet.core.client.client import Client
from kernelet.core.client.informer import Informer
from kernelet.core.scheduler.cache import NodeInfo
from kernelet.core.scheduler.config import SchedulerConfig
from kernelet.core.scheduler.framework import Unschedulable
from kernelet.core.scheduler.main import run_elected, run_scheduler
from kernelet.core.scheduler.podinfo import PodInfo
from kernelet.core.scheduler.scheduler import Scheduler, informers

EVENTS = KINDS.resolve("events")


@pytest.fixture
async def api(api_server: ApiServer) -> AsyncIterator[Client]:
    async with api_server.client() as client:
        yield client


async def make_nodes(client: Client, *names: str, **spec: Any) -> None:
    for name in names:
        wanted = node(name, **spec)
        await client.create(wanted)
        assert wanted.status
        await client.patch(Node, name, {"status": {"allocatable": wanted.status.allocatable}}, subresource="status")


async def make_pods(client: Client, *names: str, **spec: Any) -> None:
    for name in names:
        wanted = pod(name, **spec)
        assert wanted.metadata
        wanted.metadata.uid = None
        await client.create(wanted)


@asynccontextmanager
async def background(work: Any) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        if task.done():
            task.result()
        task.cancel()
        await asyncio.wait([task])


@asynccontextmanager
async def watched_pods(client: Client) -> AsyncIterator[Informer[Pod]]:
    informer = Informer(client, Pod)
    async with background(informer.run()):
        await informer.synced()
        yield informer


def placed(pods: Informer[Pod]) -> dict[str, str]:
    """Name -> node of the pods that have one."""
    return {
        each.metadata.name: each.spec.nodeName
        for each in pods.items()
        if each.metadata and each.metadata.name and each.spec and each.spec.nodeName
    }


async def test_replicas_are_bound_evenly_over_three_nodes(api: Client) -> None:
    await make_nodes(api, "n1", "n2", "n3")
    async with watched_pods(api) as pods, background(run_elected(api, SchedulerConfig())):
        await make_pods(api, *(f"web-{n}" for n in range(12)), owner="rs-1")
        await eventually(lambda: len(placed(pods)) == 12)
        assert Counter(placed(pods).values()) == {"n1": 4, "n2": 4, "n3": 4}
    events = (await api.raw.list(EVENTS, "default")).items
    messages = {event["message"] for event in events if event["reason"] == "Scheduled"}
    assert f"Successfully assigned default/web-0 to {placed(pods)['web-0']}" in messages


async def test_a_pod_that_fits_nowhere_is_told_why_and_bound_once_a_node_can_take_it(api: Client) -> None:
    taint = {"key": "dedicated", "value": "db", "effect": "NoSchedule"}
    await make_nodes(api, "small", cpu="1")
    await make_nodes(api, "tainted", taints=[taint])
    async with watched_pods(api) as pods, background(run_scheduler(api)):

        def told() -> str:
            found = pods.get("default", "big")
            conditions = (found and found.status and found.status.conditions) or []
            return next((each.message or "" for each in conditions if each.type == "PodScheduled"), "")

        await make_pods(api, "big", cpu="3")
        await eventually(lambda: bool(told()))
        why = "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {dedicated: db}."
        assert told() == why
        await api.patch(Node, "tainted", {"spec": {"taints": None}})
        await eventually(lambda: placed(pods) == {"big": "tainted"})
    events = (await api.raw.list(EVENTS, "default")).items
    assert why in {event["message"] for event in events if event["reason"] == "FailedScheduling"}


async def test_room_that_a_deleted_pod_leaves_is_used(api: Client) -> None:
    await make_nodes(api, "n1", cpu="1")
    async with watched_pods(api) as pods, background(run_scheduler(api)):
        await make_pods(api, "first", cpu="1")
        await eventually(lambda: "first" in placed(pods))
        await make_pods(api, "second", cpu="1")
        await asyncio.sleep(0.3)
        assert "second" not in placed(pods)
        await api.delete(Pod, "first", "default", grace_period=0)
        await eventually(lambda: "second" in placed(pods))


class ByName:
    """Another algorithm: the last node by name, whatever it holds."""

    def schedule(self, pod: PodInfo, nodes: Sequence[NodeInfo]) -> NodeInfo:
        if pod.labels.get("refuse"):
            raise Unschedulable(len(nodes), {"node(s) were not liked": len(nodes)})
        return max(nodes, key=lambda node: node.name)


async def test_another_scheduler_takes_the_pods_that_name_it_and_no_others(api: Client) -> None:
    await make_nodes(api, "n1", "n2", "n3")

    async def second() -> None:
        sources = informers(api)
        config = SchedulerConfig(name="by-name")
        async with asyncio.TaskGroup() as group:
            for informer in sources:
                informer.start(group)
            await Scheduler(api, *sources, config=config, algorithm=ByName()).run()

    async with watched_pods(api) as pods, background(second()):
        await make_pods(api, *(f"own-{n}" for n in range(4)), schedulerName="by-name")
        await make_pods(api, "other")
        await make_pods(api, "refused", schedulerName="by-name", labels={"refuse": "yes"})
        await eventually(lambda: len(placed(pods)) == 4)
        await asyncio.sleep(0.3)
        assert placed(pods) == {f"own-{n}": "n3" for n in range(4)}
        async with background(run_scheduler(api)):
            await eventually(lambda: "other" in placed(pods))
        assert "refused" not in placed(pods)


async def test_every_pod_is_bound_once_though_the_server_is_killed_while_they_are(
    api: Client, api_server: ApiServer
) -> None:
    await make_nodes(api, "n1", "n2", "n3")
    names = [f"web-{n}" for n in range(60)]

    async def create_all() -> None:
        for name in names:
            while True:
                try:
                    await make_pods(api, name)
                    break
                except ApiError as error:
                    if error.reason == "AlreadyExists":
                        break

    async with watched_pods(api) as pods, background(run_scheduler(api)):
        creating = asyncio.create_task(create_all())
        for target in (5, 25, 45):
            await eventually(lambda: len(placed(pods)) >= target, 30)  # noqa: B023 - awaited in the loop
            api_server.kill()
            await asyncio.to_thread(api_server.start)
        await creating
        await eventually(lambda: len(placed(pods)) == 60, 30)
        assert max(Counter(placed(pods).values()).values()) <= 30


async def test_hundreds_of_pods_are_scheduled_in_a_few_seconds(api: Client) -> None:
    await make_nodes(api, "n1", "n2", "n3", cpu="64", memory="256Gi", pods=1000)
    count = 300
    async with asyncio.TaskGroup() as group:
        for n in range(count):
            group.create_task(make_pods(api, f"web-{n}", cpu="10m", owner="rs"))
    async with watched_pods(api) as pods, background(run_scheduler(api)):
        seconds = await eventually(lambda: len(placed(pods)) == count, 30)
        print(f"{count / seconds:.0f} pods/s")
        assert Counter(placed(pods).values()) == {"n1": 100, "n2": 100, "n3": 100}
        assert seconds < 5
