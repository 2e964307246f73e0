"""A node loses its power while a client sends, and gets it back."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from support.cluster import Space, address_of, all_nodes_ready, eventually, is_ready
from support.manifests import deployment, load_pod, pod, service, spread
from support.traffic import Load

from kernelet.agents.cluster import machine

JSON = dict[str, Any]
LEAVES_WITHIN = 5.0
"""Seconds from power-off until no other kernel routes to the node's pods."""
TOLERATION = 5
"""Seconds before its pods are replaced; the cluster's fixture sets it."""
LOST = "node-3"
OTHERS = ["node-1", "node-2"]


def on(pods: list[JSON], *nodes: str) -> list[JSON]:
    return [one for one in pods if one["spec"].get("nodeName") in nodes]


async def test_a_node_that_loses_its_power_is_replaced_and_comes_back(space: Space) -> None:
    cluster = space.cluster
    await space.create(service("web"), deployment("web", 3, affinity=spread("web")), pod("bare", node=LOST))
    pods = await space.pods_ready("app=web", 3)
    await space.pods_ready("app=bare", 1)
    lost = on(pods, LOST)
    assert lost, "no server runs on the node that is about to be lost"
    target = (await space.get("services", "web"))["spec"]["clusterIP"]
    await space.create(load_pod("client", target, node="node-1"))
    [client] = await space.pods_ready("app=client", 1)
    load = Load(space, client)
    addresses = {address_of(one) for one in lost}
    await space.routed({address_of(one) for one in pods}, cluster.nodes)
    await load.more(50)
    await load.reset()

    began = time.monotonic()
    await machine.stop_node(cluster.name, LOST)
    off = time.monotonic()
    for node in OTHERS:
        await eventually(lambda node=node: not addresses & cluster.routed(node), 20, f"{node} without {addresses}")
    assert time.monotonic() - off <= LEAVES_WITHIN
    pods = await space.until(
        "pods", lambda found: sum(map(is_ready, on(found, *OTHERS))) == 3, 60, labels="app=web", what="three elsewhere"
    )
    assert time.monotonic() - began >= TOLERATION, "the pods were given up before their toleration had passed"
    new = {address_of(one) for one in on(pods, *OTHERS)}
    assert len(new) == 3
    await space.routed(new, OTHERS)
    await load.reset()
    report = await load.more(100)
    assert report.failed == 0, report
    assert set(report.answers) == {one["metadata"]["name"] for one in on(pods, *OTHERS)}

    stale = {one["Id"] for one in cluster.containers(f"io.kernelet.node={LOST}")}
    assert stale, "nothing is left on the disk of the node, so nothing can be cleaned up"
    await machine.start_node(cluster.name, LOST)
    await all_nodes_ready(space)
    await eventually(
        lambda: not stale & {one["Id"] for one in cluster.containers()}, 30, "the stale containers are removed"
    )
    await space.until(
        "pods",
        lambda found: not [one for one in found if "deletionTimestamp" in one["metadata"]],
        30,
        what="no lost pod",
    )
    pods = await space.list("pods")
    assert Counter(address_of(one) for one in pods).most_common(1)[0][1] == 1, "two pods have one address"
    await space.scale("web", 5)
    pods = await space.pods_ready("app=web", 5)
    assert on(pods, LOST), "the node that is back takes no pods"
    await space.routed({address_of(one) for one in pods}, cluster.nodes)
    every = Counter(address_of(one) for one in await space.list("pods"))
    assert set(every.values()) == {1}, every
    await load.reset()
    report = await load.more(100)
    assert report.failed == 0, report
    assert set(report.answers) == {one["metadata"]["name"] for one in pods}
