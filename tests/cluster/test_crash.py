"""Whatever is killed, pods, connections and routes go on, and all comes back by itself."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from typing import Any

import pytest
from lightkube.models.core_v1 import Node
from lightkube.models.discovery_v1 import EndpointSlice
from support.cluster import Cluster, Space, address_of, all_nodes_ready, make_space, restarts
from support.manifests import apart, deployment, load_pod, service
from support.traffic import Load, Report

from kernelet.agents.cluster import machine
from kernelet.agents.cluster.supervisor import ask, spawn_detached
from kernelet.core.client.informer import Change, Informer

SERVER_NODE, CLIENT_NODE = "node-1", "node-2"
CONTROL_PLANE = ("apiserver", "controllers")
GRACE_AND_MORE = 7.0
"""Seconds after which a node would have been given up, had its silence been held against it."""


class Scene:
    """Servers on two nodes, a client on one of them that sends to their service, a deployment to be scaled."""

    def __init__(self, space: Space, load: Load, replicas: int) -> None:
        self.space = space
        self.load = load
        self.cluster = space.cluster
        self.replicas = replicas
        self.containers = self._containers()
        self.silent: list[str] = []
        self.lost_nodes: list[str] = []
        self.lost_endpoints: list[str] = []
        self.lost_routes: list[str] = []

    async def watch_routes(self, addresses: set[str]) -> None:
        """Looks into the client's kernel again and again, until cancelled."""
        while True:
            missing = addresses - await asyncio.to_thread(self.cluster.routed, CLIENT_NODE)
            if missing:
                self.lost_routes.append(f"{', '.join(sorted(missing))} at {(await self.load.report()).seconds} s")
            await asyncio.sleep(0.02)

    def node_changed(self, change: Change[Node]) -> None:
        node = change.object
        said = [(c.status, c.message) for c in node.status.conditions or [] if c.type == "Ready"]
        if any(status == "Unknown" for status, _ in said):
            self.silent.append(node.metadata.name)
        elif change.new is None or not machine.is_ready(node):
            self.lost_nodes.append(f"{node.metadata.name}: {said}")

    def slice_changed(self, change: Change[EndpointSlice]) -> None:
        ready = [one for one in (change.new.endpoints if change.new else None) or [] if one.conditions.ready]
        if len(ready) < 2:
            self.lost_endpoints.append(f"slice {change.object.metadata.name}: {len(ready)} ready endpoints")

    def _containers(self) -> dict[str, str]:
        """Container ids and when docker started them, of all but the deployment that is scaled."""
        found = self.cluster.containers(f"io.kernelet.pod.namespace={self.space.name}")
        kept = [one for one in found if not one["Labels"]["io.kernelet.pod.name"].startswith("scaled-")]
        return {one["Id"]: self.cluster.inspect(one["Id"])["State"]["StartedAt"] for one in kept}

    async def pods(self) -> dict[str, tuple[str, str, int]]:
        """Uid, address and restarts by name."""
        found = [pod for pod in await self.space.list("pods") if not pod["metadata"]["name"].startswith("scaled-")]
        return {p["metadata"]["name"]: (p["metadata"]["uid"], address_of(p), restarts(p)) for p in found}

    async def converges(self) -> None:
        """A change goes all the way from the API to every node's kernel."""
        self.replicas = 3 - self.replicas
        await self.space.scale("scaled", self.replicas)
        pods = await self.space.pods_ready("app=scaled", self.replicas, 60)
        await self.space.routed({address_of(pod) for pod in pods}, self.cluster.nodes)

    async def nothing_happened(self, before: dict[str, tuple[str, str, int]], *, on_purpose: bool = False) -> None:
        """No pod was replaced or restarted, no container started again, no endpoint left.

        `on_purpose`: nodes were meant to fall silent.
        """
        assert await self.pods() == before
        assert self._containers() == self.containers
        assert not self.lost_nodes, self.lost_nodes
        if self.silent and not on_purpose:
            # Its agents took longer than a node's grace to come back, so that it was given up with good reason.
            warnings.warn(f"this machine is too busy: nodes fell silent: {self.silent}", stacklevel=2)
            return
        assert not self.lost_endpoints, self.lost_endpoints
        assert not self.lost_routes, self.lost_routes


@pytest.fixture(scope="module")
def stage(cluster: Cluster) -> str:
    """The namespace in which it all is, once the client sends."""

    async def build() -> str:
        async with cluster.client() as client:
            space = await make_space(cluster, client, "crash")
            await space.create(
                service("web"),
                service("scaled"),
                deployment("web", 2, affinity=apart("web") | not_on("node-3")),
                deployment("scaled", 1),
            )
            await space.pods_ready("app=web", 2)
            await space.pods_ready("app=scaled", 1)
            target = await space.get("services", "web")
            await space.create(load_pod("client", target["spec"]["clusterIP"], node=CLIENT_NODE))
            await space.pods_ready("app=client", 1)
        return space.name

    return asyncio.run(build())


@pytest.fixture
async def scene(cluster: Cluster, stage: str) -> AsyncIterator[Scene]:
    """The stage, with the API watched for anything that would take endpoints away."""
    async with cluster.client() as client:
        space = Space(cluster, client, stage)
        scaled = await space.get("deployments", "scaled")
        load = Load(space, await space.get("pods", "client"))
        nodes = Informer(client, Node)
        slices = Informer(client, EndpointSlice, namespace=stage, labels="kubernetes.io/service-name=web")
        made = Scene(space, load, scaled["spec"]["replicas"])
        servers = {address_of(pod) for pod in await space.list("pods", "app=web")}
        following = [asyncio.create_task(work) for work in (nodes.run(), slices.run(), made.watch_routes(servers))]
        try:
            await asyncio.gather(nodes.synced(), slices.synced())
            nodes.subscribe(made.node_changed)
            slices.subscribe(made.slice_changed)
            yield made
        finally:
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)


def not_on(node: str) -> dict[str, object]:
    expression = {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": [node]}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}


def assert_no_request_failed(report: Report) -> None:
    assert report.sent > 100
    assert report.kept_sent > 10
    assert (report.failed, report.kept_failed) == (0, 0), report
    assert report.reconnects == 1, report


async def survives(scene: Scene, *units: str) -> None:
    """Kills the units at once, waits until they are back and the cluster works, and looks at what the client saw."""
    before = await scene.pods()
    restarted = {name: state["restarts"] for name, state in (await ask(scene.cluster.paths, {"op": "status"})).items()}
    await scene.load.reset()
    killed = scene.cluster.kill(*units)
    await scene.cluster.back(*units, without=killed)
    await all_nodes_ready(scene.space)
    await scene.converges()
    assert_no_request_failed(await scene.load.lasts(GRACE_AND_MORE))
    await scene.nothing_happened(before)
    status = await ask(scene.cluster.paths, {"op": "status"})
    assert {name: status[name]["restarts"] - restarted[name] for name in status} == {
        name: int(name in units) for name in status
    }


async def test_the_api_server_is_killed(scene: Scene) -> None:
    await survives(scene, "apiserver")


async def test_the_controllers_are_killed(scene: Scene) -> None:
    await survives(scene, "controllers")


async def test_the_agents_of_the_servers_node_are_killed(scene: Scene) -> None:
    await survives(scene, SERVER_NODE)


async def test_the_agents_of_the_clients_node_are_killed(scene: Scene) -> None:
    await survives(scene, CLIENT_NODE)


async def test_the_agents_of_all_nodes_are_killed(scene: Scene) -> None:
    await survives(scene, *scene.cluster.nodes)


async def test_the_supervisor_is_killed_and_the_next_one_adopts_what_runs(scene: Scene) -> None:
    before = await scene.pods()
    units = [*CONTROL_PLANE, *scene.cluster.nodes]
    processes = {unit: scene.cluster.process(unit) for unit in units}
    await scene.load.reset()
    killed = scene.cluster.kill("supervisor")
    await scene.converges()
    spawn_detached(scene.cluster.paths)
    await scene.cluster.back("supervisor", without=killed)
    assert {unit: scene.cluster.process(unit) for unit in units} == processes, "it started what ran already"
    assert_no_request_failed(await scene.load.more(100))
    # Adopted processes are no children of the new supervisor, and yet it notices their end.
    killed = scene.cluster.kill("controllers")
    await scene.cluster.back("controllers", without=killed)
    await scene.converges()
    assert_no_request_failed(await scene.load.report())
    await scene.nothing_happened(before)


async def test_everything_is_killed_at_once(scene: Scene) -> None:
    before = await scene.pods()
    units = [*CONTROL_PLANE, *scene.cluster.nodes]
    await scene.load.reset()
    killed = scene.cluster.kill("supervisor", *units)
    # The kernels work on without a single process of ours.
    assert_no_request_failed(await scene.load.more(300))
    spawn_detached(scene.cluster.paths)
    await scene.cluster.back(*units, without=killed)
    await all_nodes_ready(scene.space)
    await scene.converges()
    assert_no_request_failed(await scene.load.lasts(GRACE_AND_MORE))
    await scene.nothing_happened(before)


async def test_the_agents_of_all_nodes_stay_away_for_longer_than_their_grace(scene: Scene) -> None:
    before = await scene.pods()
    nodes = scene.cluster.nodes
    await scene.load.reset()
    killed = scene.cluster.kill("supervisor", *nodes)

    def all_silent(found: list[dict[str, Any]]) -> bool:
        return all(c["status"] == "Unknown" for n in found for c in n["status"]["conditions"] if c["type"] == "Ready")

    await scene.space.until("nodes", all_silent, 20, what="all nodes silent")
    assert_no_request_failed(await scene.load.more(100))
    spawn_detached(scene.cluster.paths)
    await scene.cluster.back(*nodes, without=killed)
    await all_nodes_ready(scene.space)
    await scene.converges()
    assert_no_request_failed(await scene.load.more(200))
    await scene.nothing_happened(before, on_purpose=True)


async def test_the_client_notices_when_its_servers_go(scene: Scene) -> None:
    await scene.load.reset()
    for pod in await scene.space.list("pods", "app=web"):
        await scene.space.delete("pods", pod["metadata"]["name"], grace_period=0)
    report = await scene.load.more(50)
    assert report.failed or report.kept_failed, report
    pods = await scene.space.pods_ready("app=web", 2)
    await scene.space.routed({address_of(pod) for pod in pods}, scene.cluster.nodes)
