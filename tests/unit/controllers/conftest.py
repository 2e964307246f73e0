"""An API server, controllers, scheduler and played kubelets for the tests of this folder."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest
from controllers_world import Kubelet, World
from lightkube.models.core_v1 import Namespace
from lightkube.models.meta_v1 import ObjectMeta
from support.apiserver import ApiServer

from kernelet.core.controllers.manager import ManagerConfig, run_controllers
from kernelet.core.scheduler.main import run_scheduler

GRACE = 1.0
PERIOD = 0.2
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def controlled_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with ApiServer(tmp_path_factory.mktemp("controlled"), "--default-toleration-seconds", "1") as server:
        yield server


@pytest.fixture
async def world(controlled_server: ApiServer) -> AsyncIterator[World]:
    """Everything but the nodes. What a test leaves behind, the next one finds: use `space`."""
    config = ManagerConfig(node_monitor_grace_period=GRACE, node_monitor_period=PERIOD, orphan_quarantine=0.5)
    async with controlled_server.client() as client:
        found = World(client)
        tasks = [asyncio.create_task(informer.run()) for informer in found.informers.values()]
        await asyncio.gather(*(informer.synced() for informer in found.informers.values()))
        tasks += [asyncio.create_task(run_controllers(client, config)), asyncio.create_task(run_scheduler(client))]
        yield found
        failed = [task for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in failed:
            task.result()


@pytest.fixture
async def space(world: World) -> str:
    """A namespace of the test's own."""
    name = f"space-{next(_numbers)}"
    await world.client.create(Namespace(metadata=ObjectMeta(name=name)))
    return name


@pytest.fixture
async def kubelets(world: World) -> AsyncIterator[list[Kubelet]]:
    """Two nodes, removed at the end."""
    from lightkube.models.core_v1 import Node

    first = next(_numbers) * 2
    found = [Kubelet(world, f"node-{first + offset}", first + offset) for offset in range(2)]
    for kubelet in found:
        await kubelet.start()
    yield found
    for kubelet in found:
        await kubelet.stop()
        with suppress(Exception):
            await world.client.delete(Node, kubelet.name)
