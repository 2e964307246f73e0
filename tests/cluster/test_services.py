"""What kubectl asks of a Service, and what nodes, pods and outsiders then meet."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from support.cluster import Cluster, Space, address_of, new_space
from support.manifests import PORT, pod, service
from support.traffic import get

ZONE = "topology.kubernetes.io/zone"


@dataclass(frozen=True, slots=True)
class Shop:
    """Servers `web-1` and `web-2` of the app `web`, on node-1 and node-2; node-3 has none."""

    space: Space
    address: dict[str, str]

    async def kubectl(self, *words: str, stdin: str = "") -> str:
        return (await self.space.cluster.kubectl("-n", self.space.name, *words, stdin=stdin)).out

    async def json(self, *words: str) -> Any:
        return json.loads(await self.kubectl("get", "-o", "json", *words))

    async def apply(self, *objects: dict[str, Any]) -> None:
        await self.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    async def slices(self, service: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (
            await self.json("endpointslices", "-l", f"kubernetes.io/service-name={service}")
        )["items"]
        return found

    async def described(self, service: str) -> str:
        """kubectl's words with one blank between them: its columns vary."""
        return " ".join((await self.kubectl("describe", "service", service)).split())

    def node(self, name: str) -> str:
        """Its network namespace."""
        return self.space.cluster.node_netns(name)

    async def answering(self, where: str, host: str, requests: int = 24) -> set[str]:
        return {(await get(where, host)).body["pod"] for _ in range(requests)}


@pytest.fixture
async def shop(cluster: Cluster) -> AsyncIterator[Shop]:
    async with new_space(cluster, "shop") as space:
        for number in (1, 2):
            await space.create(pod(f"web-{number}", node=f"node-{number}", labels={"app": "web"}))
        pods = await space.pods_ready("app=web", 2)
        yield Shop(space, {one["metadata"]["name"]: address_of(one) for one in pods})


async def health(shop: Shop, node: str, port: int) -> tuple[int, int]:
    answer = await get(shop.space.cluster.outside_netns(), shop.space.cluster.node_address(node), port, "/healthz")
    return answer.status, answer.body["localEndpoints"]


async def test_every_node_tells_a_load_balancer_whether_it_has_an_endpoint(shop: Shop) -> None:
    await shop.apply(service("web", type="LoadBalancer", externalTrafficPolicy="Local"))
    port = (await shop.json("service", "web"))["spec"]["healthCheckNodePort"]
    assert f"HealthCheck NodePort: {port}" in await shop.described("web")

    async def told() -> dict[str, tuple[int, int]]:
        return {node: await health(shop, node, port) for node in shop.space.cluster.nodes}

    await shop.space.routed(set(shop.address.values()), shop.space.cluster.nodes)
    await until(told, {"node-1": (200, 1), "node-2": (200, 1), "node-3": (503, 0)})
    await shop.kubectl("delete", "pod", "web-2", "--wait=false")
    await until(told, {"node-1": (200, 1), "node-2": (503, 0), "node-3": (503, 0)})
    await shop.kubectl("patch", "service", "web", "-p", '{"spec": {"externalTrafficPolicy": "Cluster"}}')
    assert "healthCheckNodePort" not in (await shop.json("service", "web"))["spec"]
    for node in shop.space.cluster.nodes:
        await refused(shop, node, port)


async def until(look: Any, expected: Any, seconds: float = 15.0) -> None:
    """Waits for what processes elsewhere tell when they are asked."""
    found: Any = None
    try:
        async with asyncio.timeout(seconds):
            while found != expected:
                try:
                    found = await look()
                except ConnectionRefusedError as error:
                    found = error
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"{found!r} is not {expected!r} within {seconds:.0f} s") from None


async def refused(shop: Shop, node: str, port: int) -> None:
    async def look() -> str:
        try:
            await health(shop, node, port)
        except ConnectionRefusedError:
            return "refused"
        return "open"

    await until(look, "refused")


async def test_with_a_local_policy_outsiders_reach_only_nodes_with_endpoints_and_keep_their_address(
    shop: Shop,
) -> None:
    await shop.apply(service("web", type="NodePort", externalTrafficPolicy="Local"))
    node_port = (await shop.json("service", "web"))["spec"]["ports"][0]["nodePort"]
    await shop.space.routed(set(shop.address.values()), shop.space.cluster.nodes)
    outside = shop.space.cluster.outside_netns()
    for number in (1, 2):
        answer = await get(outside, shop.space.cluster.node_address(f"node-{number}"), node_port)
        assert answer.body["pod"] == f"web-{number}"
        assert answer.body["peer"] not in [shop.space.cluster.node_address(name) for name in shop.space.cluster.nodes]
    with pytest.raises(TimeoutError):
        await get(outside, shop.space.cluster.node_address("node-3"), node_port, seconds=1.0)


async def test_endpoints_kept_by_hand_are_mirrored_and_routed(shop: Shop) -> None:
    def by_hand(name: str) -> dict[str, Any]:
        subset = {"addresses": [{"ip": shop.address[name]}], "ports": [{"name": "http", "port": PORT}]}
        return {"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "db"}, "subsets": [subset]}

    made = service("db", ports=[{"name": "http", "port": 80}])
    del made["spec"]["selector"]
    await shop.apply(made, by_hand("web-1"))
    address = (await shop.json("service", "db"))["spec"]["clusterIP"]
    for name in ("web-1", "web-2"):
        await shop.apply(by_hand(name))
        await until(lambda: shop.answering(shop.node("node-3"), address, 6), {name})
    (mirrored,) = await shop.slices("db")
    assert mirrored["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] == (
        "endpointslicemirroring-controller.k8s.io"
    )
    assert f"Endpoints: {shop.address['web-2']}:{PORT}" in await shop.described("db")


async def test_clients_stay_in_their_zone_while_it_has_endpoints(shop: Shop) -> None:
    await shop.apply(service("web", trafficDistribution="PreferClose"))
    address = (await shop.json("service", "web"))["spec"]["clusterIP"]
    await shop.space.routed(set(shop.address.values()), shop.space.cluster.nodes)
    zones = {"node-1": "east", "node-2": "west", "node-3": "west"}
    try:
        for node, zone in zones.items():
            await shop.kubectl("label", "node", node, f"{ZONE}={zone}")
        for node, expected in (("node-1", {"web-1"}), ("node-2", {"web-2"}), ("node-3", {"web-2"})):
            await until(lambda node=node: shop.answering(shop.node(node), address), expected)
        (entry,) = await shop.slices("web")
        assert {e["nodeName"]: (e["zone"], e["hints"]) for e in entry["endpoints"]} == {
            node: (zones[node], {"forZones": [{"name": zones[node]}]}) for node in ("node-1", "node-2")
        }
        await shop.kubectl("label", "--overwrite", "node", "node-3", f"{ZONE}=north")
        await until(lambda: shop.answering(shop.node("node-3"), address), {"web-1", "web-2"})
    finally:
        for node in zones:
            await shop.kubectl("label", "node", node, f"{ZONE}-")


async def test_pods_that_call_different_numbers_by_one_name_are_all_reached(shop: Shop) -> None:
    for number, port in ((3, 8003), (4, 8004)):
        made = pod(f"other-{number}", node="node-1", labels={"app": "other"})
        container = made["spec"]["containers"][0]
        container["command"][-1] = str(port)
        container["ports"] = [{"name": "http", "containerPort": port}]
        container["readinessProbe"]["httpGet"]["port"] = "http"
        await shop.space.create(made)
    await shop.apply(service("other", ports=[{"name": "http", "port": 80, "targetPort": "http"}]))
    pods = await shop.space.pods_ready("app=other", 2)
    await shop.space.routed({address_of(one) for one in pods}, ["node-3"])
    address = (await shop.json("service", "other"))["spec"]["clusterIP"]
    assert await shop.answering(shop.node("node-3"), address) == {"other-3", "other-4"}
    assert sorted(entry["ports"][0]["port"] for entry in await shop.slices("other")) == [8003, 8004]


async def test_weights_are_shown_by_the_slices(shop: Shop) -> None:
    await shop.apply(service("web"))
    await shop.kubectl("annotate", "pod", "web-1", "kernelet.dev/weight=3")

    async def shown() -> Any:
        return [entry["metadata"].get("annotations", {}) for entry in await shop.slices("web")]

    await until(shown, [{"kernelet.dev/weights": json.dumps({shop.address["web-1"]: 3})}])
    await shop.kubectl("annotate", "--overwrite", "pod", "web-1", "kernelet.dev/weight=heavy")
    await until(shown, [{}])
    await until(lambda: reasons(shop, "web-1"), True)


async def reasons(shop: Shop, name: str) -> bool:
    events = await shop.json("events", "--field-selector", f"involvedObject.name={name}")
    return any(event["reason"] == "InvalidWeight" for event in events["items"])


async def test_a_client_stays_with_its_pod_while_session_affinity_is_set(shop: Shop) -> None:
    await shop.apply(service("web", sessionAffinity="ClientIP"))
    made = await shop.json("service", "web")
    assert made["spec"]["sessionAffinityConfig"] == {"clientIP": {"timeoutSeconds": 10800}}
    address = made["spec"]["clusterIP"]
    await shop.space.routed(set(shop.address.values()), shop.space.cluster.nodes)
    for node in shop.space.cluster.nodes:
        assert len(await shop.answering(shop.node(node), address)) == 1
    await shop.kubectl("patch", "service", "web", "-p", '{"spec": {"sessionAffinity": "None"}}')
    assert "sessionAffinityConfig" not in (await shop.json("service", "web"))["spec"]
    for node in shop.space.cluster.nodes:
        await until(lambda node=node: shop.answering(shop.node(node), address), {"web-1", "web-2"})


async def test_a_load_balancers_address_serves_its_source_ranges_alone(shop: Shop) -> None:
    await shop.space.create(pod("client", node="node-3"))
    (client,) = await shop.space.pods_ready("app=client", 1)
    (other,) = [
        one for one in (await shop.json("pods", "-l", "app=web"))["items"] if one["spec"]["nodeName"] == "node-2"
    ]
    ranges = [f"{address_of(client)}/32", "198.51.100.0/24"]
    await shop.apply(service("web", type="LoadBalancer", loadBalancerSourceRanges=ranges))
    balancer = "203.0.113.5"
    status = {"status": {"loadBalancer": {"ingress": [{"ip": balancer}]}}}
    await shop.kubectl("patch", "service", "web", "--subresource=status", "-p", json.dumps(status))
    inside, outside = (shop.space.cluster.pod_netns(one["metadata"]["uid"]) for one in (client, other))

    async def met(where: str) -> str:
        try:
            return str((await get(where, balancer, seconds=1.0)).status)
        except OSError as error:
            return type(error).__name__

    await until(lambda: met(inside), "200")
    await until(lambda: met(outside), "TimeoutError")
    await shop.kubectl("patch", "service", "web", "-p", '{"spec": {"loadBalancerSourceRanges": null}}')
    await until(lambda: met(outside), "200")
    refusal = await shop.space.cluster.kubectl(
        "-n",
        shop.space.name,
        "patch",
        "service",
        "web",
        "-p",
        '{"spec": {"loadBalancerSourceRanges": ["x"]}}',
        ok=False,
    )
    assert 'spec.loadBalancerSourceRanges[0]: Invalid value: "x": must be a valid CIDR value' in refusal.err


async def test_a_pod_gets_its_weight_of_new_connections(shop: Shop) -> None:
    await shop.apply(service("web"))
    await shop.kubectl("annotate", "pod", "web-1", "kernelet.dev/weight=9")
    address = (await shop.json("service", "web"))["spec"]["clusterIP"]

    async def most() -> bool:
        answers = [(await get(shop.node("node-3"), address)).body["pod"] for _ in range(80)]
        return answers.count("web-1") >= 66

    await until(most, True)
