"""`kernelet routes` and `kernelet trace` on a cluster whose nodes are namespaces."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import Any

import pytest
from support.cluster import Ran, Space, address_of, run
from support.manifests import PORT, SLEEP, deployment, pod, service, spread
from support.traffic import get

from kernelet.agents.cluster import machine
from kernelet.agents.cluster.build import kernelet_command

JSON = dict[str, Any]
LOST = "node-3"


@pytest.fixture
async def addresses(space: Space) -> set[str]:
    """Of the pods behind service `web`, once every node routes to them."""
    await space.create(service("web"), deployment("web", 2, affinity=spread("web")))
    found = {address_of(one) for one in await space.pods_ready("app=web", 2)}
    await space.routed(found, space.cluster.nodes)
    return found


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


async def test_every_nodes_kernel_holds_its_table(space: Space, addresses: set[str]) -> None:
    header, *lines = rows((await space.cluster.kernelet("routes")).out)
    assert header == ["NODE", "VERSION", "SERVICES", "BACKENDS", "KERNEL", "ENGINE"]
    assert [line[0] for line in lines] == space.cluster.nodes
    assert {line[4] for line in lines} == {"equal"}
    assert len({tuple(line[1:4]) for line in lines}) == 1, "nodes at rest hold the same version"


async def test_a_service_is_shown_with_its_backends_in_the_kernel(space: Space, addresses: set[str]) -> None:
    name = f"{space.name}/web"
    target = (await space.get("services", "web"))["spec"]["clusterIP"]
    text = (await space.cluster.kernelet("routes", "node-1", "--service", name)).out
    assert "kernel: equal" in text
    assert sorted(rows(text)[3:]) == sorted(
        [name, f"{target}:80/{protocol}", f"{address}:{PORT}", "yes"]
        for protocol in ("TCP", "UDP")
        for address in addresses
    )
    report = json.loads((await space.cluster.kernelet("routes", "node-2", "-o", "json")).out)
    assert (report["node"], report["missing"], report["extra"]) == ("node-2", [], [])
    assert addresses <= {row["backend"] for row in report["kernel"]}
    failed = await space.cluster.kernelet("routes", "node-1", "--service", "none/none", ok=False)
    assert (failed.code, "holds no service none/none" in failed.err) == (1, True)


async def test_a_kernel_can_be_read_without_any_daemon(space: Space, addresses: set[str]) -> None:
    inside = ["nsenter", f"--net={space.cluster.node_netns('node-1')}"]
    ran: Ran = await run(*inside, *kernelet_command(), "routes", "--local", "-o", "json", env={"KUBECONFIG": "/none"})
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    assert addresses <= {row["backend"] for row in found["kernel"]}


async def test_a_trace_shows_a_pods_connection_and_its_backend(space: Space, addresses: set[str]) -> None:
    await space.create(pod("client", *SLEEP, node="node-1"))
    [client] = await space.pods_ready("app=client", 1)
    target = (await space.get("services", "web"))["spec"]["clusterIP"]
    options = ["--kubeconfig", space.cluster.kubeconfig, "-n", space.name, "--cluster", space.cluster.name, "--json"]
    tracer = await asyncio.create_subprocess_exec(
        *kernelet_command(), "trace", "web", *options, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert tracer.stdout and tracer.stderr
    async with asyncio.timeout(60):
        assert b"tracing service" in await tracer.stderr.readline()
        await get(space.cluster.pod_netns(client["metadata"]["uid"]), target)
        event: JSON = {}
        while event.get("client", "").split(":")[0] != address_of(client):
            event = json.loads(await tracer.stdout.readline())
        tracer.send_signal(signal.SIGINT)
        _, err = await tracer.communicate()
    assert tracer.returncode == 0, err
    assert (event["type"], event["service"], event["node"]) == ("connection", f"{target}:80", "node-1")
    assert event["backend"].split(":")[0] in addresses


async def test_a_node_that_is_down_is_named(space: Space, addresses: set[str]) -> None:
    await machine.stop_node(space.cluster.name, LOST)
    try:
        one = await space.cluster.kernelet("routes", LOST, ok=False)
        every = await space.cluster.kernelet("routes", ok=False)
    finally:
        await machine.start_node(space.cluster.name, LOST)
    assert one.code == 1
    assert f"the kubelet of node {LOST}" in one.err
    assert "cannot be reached" in one.err
    lines = {line[0]: line[4] for line in rows(every.out)}
    assert (lines["node-1"], lines["node-2"], lines[LOST]) == ("equal", "equal", "unknown:")
    assert every.code == 1
