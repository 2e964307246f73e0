"""Deployments and what they are made of: scaling, updates without a lost request, and an end that leaves nothing."""

from __future__ import annotations

from typing import Any

from support.cluster import Cluster, Space, address_of, eventually, is_ready, new_space
from support.manifests import PORT, deployment, load_pod, pod_spec, service
from support.traffic import Load, get

JSON = dict[str, Any]
NO_LOSS = {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


async def test_a_deployment_is_scaled_up_and_down_and_every_kernel_follows(space: Space) -> None:
    await space.create(service("web"), deployment("web", 1))
    await space.pods_ready("app=web", 1)
    await space.scale("web", 4)
    four = {address_of(pod) for pod in await space.pods_ready("app=web", 4)}
    await space.routed(four, space.cluster.nodes)
    await space.scale("web", 1)
    one = {address_of(pod) for pod in await space.pods_ready("app=web", 1)}
    assert one < four
    for node in space.cluster.nodes:
        assert space.cluster.routed(node) & four == one, f"{node}: routes to pods that have ended"
    status = (await space.get("deployments", "web"))["status"]
    assert (status["replicas"], status["readyReplicas"]) == (1, 1)


async def test_a_rolling_update_loses_no_request(space: Space) -> None:
    await space.create(service("web"), deployment("web", 3, strategy=NO_LOSS))
    old = {pod["metadata"]["name"] for pod in await space.pods_ready("app=web", 3)}
    target = (await space.get("services", "web"))["spec"]["clusterIP"]
    await space.create(load_pod("client", target))
    [client] = await space.pods_ready("app=client", 1)
    load = Load(space, client)
    await load.more(50)
    assert set((await load.reset()).answers) <= old
    template = {"spec": pod_spec(container={"env": [{"name": "VERSION", "value": "2"}]})}
    await space.patch("deployments", "web", {"spec": {"template": template}})
    await space.until(
        "pods",
        lambda pods: len(pods) == 3 and all(is_ready(pod) and pod["metadata"]["name"] not in old for pod in pods),
        90,
        labels="app=web",
        what="three new pods and no old one",
    )
    report = await load.more(50)
    assert report.failed == 0, report
    assert set(report.answers) - old, "the new pods were never asked"
    await load.reset()
    assert not set((await load.more(50)).answers) & old, "an old pod answered after its end"


async def test_killed_servers_do_lose_requests(space: Space) -> None:
    """The control case of the test above: pods that end without being withdrawn first."""
    await space.create(service("web"), deployment("web", 2))
    await space.pods_ready("app=web", 2)
    target = (await space.get("services", "web"))["spec"]["clusterIP"]
    await space.create(load_pod("client", target))
    [client] = await space.pods_ready("app=client", 1)
    load = Load(space, client)
    await load.reset()
    for one in space.cluster.containers(
        f"io.kernelet.pod.namespace={space.name}", "io.kernelet.kind=container", running=True
    ):
        if one["Labels"]["io.kernelet.pod.name"].startswith("web-"):
            space.cluster.kill_container(one["Id"])
    assert (await load.more(30)).failed > 0


async def test_a_rollout_is_undone(space: Space) -> None:
    cluster, name = space.cluster, space.name
    await space.create(deployment("web", 1))
    [first] = await space.pods_ready("app=web", 1)
    template = {"spec": pod_spec(container={"env": [{"name": "VERSION", "value": "2"}]})}
    await space.patch("deployments", "web", {"spec": {"template": template}})
    await cluster.kernelet("rollout", "status", "deployment/web", "-n", name)
    history = (await cluster.kernelet("rollout", "history", "deployment/web", "-n", name)).out
    assert [line.split()[0] for line in history.splitlines() if line[:1].isdigit()] == ["1", "2"]
    await cluster.kernelet("rollout", "undo", "deployment/web", "-n", name)
    await cluster.kernelet("rollout", "status", "deployment/web", "-n", name)
    [last] = await space.pods_ready("app=web", 1)
    label = "pod-template-hash"
    assert last["metadata"]["labels"][label] == first["metadata"]["labels"][label]
    assert last["metadata"]["uid"] != first["metadata"]["uid"]


async def test_a_replication_controller_keeps_its_pods(space: Space) -> None:
    labels = {"app": "rc"}
    spec = {"replicas": 2, "selector": labels, "template": {"metadata": {"labels": labels}, "spec": pod_spec()}}
    await space.create({"apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": "rc"}, "spec": spec})
    pods = await space.pods_ready("app=rc", 2)
    victim = pods[0]["metadata"]["name"]
    await space.delete("pods", victim, grace_period=0)
    pods = await space.until(
        "pods",
        lambda found: len(found) == 2 and all(is_ready(pod) and pod["metadata"]["name"] != victim for pod in found),
        60,
        labels="app=rc",
    )
    assert {pod["metadata"]["ownerReferences"][0]["kind"] for pod in pods} == {"ReplicationController"}


async def test_what_a_deployment_owns_goes_with_it_or_stays_as_an_orphan(space: Space) -> None:
    await space.create(deployment("going", 1), deployment("staying", 1))
    await space.pods_ready("app=going", 1)
    await space.pods_ready("app=staying", 1)
    await space.delete("deployments", "going")
    await space.delete("deployments", "staying", propagation="Orphan")
    await space.until("pods", lambda pods: not pods, 30, labels="app=going")
    sets = await space.until("replicasets", lambda found: len(found) == 1, 30)
    assert sets[0]["metadata"]["name"].startswith("staying-")
    assert not sets[0]["metadata"].get("ownerReferences")
    await space.pods_ready("app=staying", 1)


async def test_a_deleted_namespace_leaves_nothing(cluster: Cluster) -> None:
    async with new_space(cluster) as space:
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"a": "b"}}
        await space.create(service("web"), deployment("web", 3), secret)
        addresses = {address_of(pod) for pod in await space.pods_ready("app=web", 3)}
        await space.routed(addresses, cluster.nodes)
        label = f"io.kernelet.pod.namespace={space.name}"
        assert len(cluster.containers(label)) == 6
        await cluster.kernelet("delete", "namespace", space.name)
        for kind in ("pods", "services", "secrets", "deployments", "replicasets", "endpointslices", "configmaps"):
            assert not await space.list(kind), kind
        await eventually(lambda: not cluster.containers(label), 10, "no container of the namespace")
        for node in cluster.nodes:
            assert not cluster.routed(node) & addresses


async def test_a_pod_that_is_not_ready_gets_no_traffic(space: Space) -> None:
    await space.create(service("web"), deployment("web", 2))
    pods = await space.pods_ready("app=web", 2)
    closed, open_ = (address_of(pod) for pod in pods)
    node = space.cluster.nodes[0]
    await space.routed({closed, open_}, [node])
    where = space.cluster.node_netns(pods[0]["spec"]["nodeName"])
    await get(where, closed, PORT, "/set?ready=0")
    await eventually(lambda: closed not in space.cluster.routed(node), 15, "the routes without the closed pod")
    target = (await space.get("services", "web"))["spec"]["clusterIP"]
    answers = {(await get(where, target)).body["pod"] for _ in range(20)}
    assert answers == {pods[1]["metadata"]["name"]}
    await get(where, closed, PORT, "/set?ready=1")
    await space.routed({closed, open_}, [node])
