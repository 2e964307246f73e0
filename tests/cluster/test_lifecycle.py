"""How clusters come and go: beside each other, on etcd, on hosts that join, and without a trace."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cluster import (
    Cluster,
    Space,
    address_of,
    all_nodes_ready,
    is_ready,
    new_cluster,
    new_space,
    require_machine,
)
from support.hosts import Host, new_hosts
from support.images import ensure_tools_image
from support.manifests import apart, deployment, pod, service
from support.traffic import get, resolve

from kernelet.agents.cluster.build import kernelet_command
from kernelet.dataplane.proxy.ebpf.kernel import PINS, pin_name

JSON = dict[str, Any]
KERNELET = kernelet_command()
ADMIN = "/var/lib/kernelet/default/admin.kubeconfig"


@pytest.fixture(scope="module")
def single(cluster_dockerd: str) -> Iterator[Cluster]:
    with new_cluster(1) as made:
        yield made


async def serve(cluster: Cluster, version: str) -> str:
    """A server behind the service `web` of namespace `default`; the service's address."""
    async with cluster.client() as client:
        space = Space(cluster, client, "default")
        env = [{"name": "VERSION", "value": version}]
        await space.create(service("web"), pod("web", container={"env": env}))
        [server] = await space.pods_ready("app=web", 1)
        await space.routed({address_of(server)}, cluster.nodes)
        return str((await space.get("services", "web"))["spec"]["clusterIP"])


async def test_nodes_run_the_engine_that_is_asked_for_and_say_why(cluster_dockerd: str) -> None:
    manager = new_cluster(2, engine="nftables")
    cluster = await asyncio.to_thread(manager.__enter__)
    try:
        address = await serve(cluster, "first")
        for node in cluster.nodes:
            report = json.loads((await cluster.kernelet("routes", node, "-o", "json")).out)
            assert (report["engine"], report["engineReason"]) == ("nftables", "it was asked for")
            assert (report["missing"], report["extra"]) == ([], [])
            assert (await get(cluster.node_netns(node), address)).body["version"] == "first"
        assert not list(PINS.glob(f"{cluster.name}_*"))
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)


async def test_two_clusters_with_the_same_names_do_not_meet(single: Cluster) -> None:
    first = await serve(single, "first")
    manager = new_cluster(1)
    other = await asyncio.to_thread(manager.__enter__)
    try:
        second = await serve(other, "second")
        for cluster, address, version in ((single, first, "first"), (other, second, "second")):
            where = cluster.node_netns("node-1")
            assert (await get(where, address)).body["version"] == version
            answer = await resolve(where, "10.96.0.10", "web.default.svc.cluster.local")
            assert [str(row.rdata) for row in answer.rr] == [address]
            pods = json.loads((await cluster.kernelet("get", "pods", "-o", "json")).out)["items"]
            assert [one["spec"]["containers"][0]["env"][-1]["value"] for one in pods] == [version]
        shown = (await single.kernelet("cluster", "list")).out
        assert {single.name, other.name} <= {line.split()[0] for line in shown.splitlines()}
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)
    assert (await get(single.node_netns("node-1"), first)).body["version"] == "first"
    shown = (await single.kernelet("cluster", "list")).out
    assert other.name not in shown
    assert not list(Path("/run/netns").glob(f"kl-{other.name}*"))
    assert not list(PINS.glob(f"{other.name}_*"))
    assert list(PINS.glob(f"{single.name}_*")) == [PINS / pin_name(single.name, "node-1")]


async def test_a_name_that_is_taken_is_refused_and_the_cluster_stays(single: Cluster) -> None:
    done = await single.kernelet("cluster", "create", "--nodes", "1", "--name", single.name, ok=False)
    assert done.code == 1
    assert f"cluster {single.name} exists" in done.err
    async with new_space(single) as space:
        await all_nodes_ready(space)
    done = await single.kernelet("cluster", "stop-node", "node-7", "--name", single.name, ok=False)
    assert (done.code, "no node 'node-7'" in done.err) == (1, True), done


async def test_a_cluster_on_etcd_keeps_what_it_acknowledged_through_kills(cluster_dockerd: str) -> None:
    manager = new_cluster(1, store="etcd")
    cluster = await asyncio.to_thread(manager.__enter__)
    try:
        async with new_space(cluster) as space:
            await space.create(service("web"), deployment("web", 1))
            for number in range(20):
                await space.create(config_map(f"before-{number}"))
            killed = cluster.kill("apiserver", "etcd")
            await cluster.back("apiserver", "etcd", without=killed)
            await space.until("configmaps", lambda found: len(before(found)) == 20, 30, what="20 ConfigMaps")
            await space.pods_ready("app=web", 1)
            await space.scale("web", 2)
            await space.pods_ready("app=web", 2)
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)


def config_map(name: str) -> JSON:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}}


def before(found: list[JSON]) -> list[JSON]:
    return [one for one in found if one["metadata"]["name"].startswith("before-")]


# Hosts


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    require_machine()
    with new_hosts(2) as made:
        yield made


TRACES = {
    "processes": "ps -eo args= | grep -E 'kernelet|dockerd|containerd|pause' | grep -v -e grep -e host.sh || true",
    "network namespaces": "ip netns list",
    "links": "ip -o link show | cut -d: -f2",
    "addresses": "ip -o -4 addr show | awk '{print $2, $4}'",
    "routes": "ip route show table all type unicast",
    "nftables": "nft list tables",
    # /run/netns itself is iproute2's.
    "mounts": "grep -E ' [^ ]*(kernelet|docker|netns/)' /proc/self/mounts || true",
    "cgroups": "find /sys/fs/cgroup -depth -type d -name '*kernelet*'",
    "socket programs": "find /sys/fs/bpf -path '*kernelet*'",
    "state": "find /var/lib/kernelet /run/kernelet /dev/shm -mindepth 1 2>/dev/null || true",
}
KILL_ALL = "for file in /run/kernelet/*/*.pid; do read pid rest < $file; kill -9 $pid; done"


async def traces(host: Host) -> dict[str, str]:
    """What Kernelet could leave on a host."""
    found = {}
    for what, script in TRACES.items():
        found[what] = (await host.run("sh", "-c", script)).out
    return found


async def kubectl(host: Host, *words: str, ok: bool = True) -> str:
    return (await host.run("kubectl", "--kubeconfig", ADMIN, *words, ok=ok)).out


async def nodes_ready(host: Host, count: int) -> None:
    async with asyncio.timeout(60):
        while True:
            nodes = json.loads(await kubectl(host, "get", "nodes", "-o", "json", ok=False) or "{}").get("items", [])
            if len(nodes) == count and all(is_ready(node) for node in nodes):
                return
            await asyncio.sleep(0.2)


async def test_hosts_make_a_cluster_by_up_and_join_and_reset_leaves_no_trace(hosts: list[Host], tmp_path: Path) -> None:
    first, second = hosts
    clean = [await traces(host) for host in hosts]
    async with first.running(*KERNELET, "up", until="kernelet join") as printed:
        token = re.search(r"kernelet join (\S+) --token (\S+)", printed)
        assert token and token[1] == first.address
        await nodes_ready(first, 1)
        wrong = await second.run(*KERNELET, "join", first.address, "--token", token[2][:-4] + "0000", ok=False)
        assert wrong.code == 1
        assert "token" in wrong.err.lower(), wrong
        async with second.running(*KERNELET, "join", first.address, "--token", token[2], until="joining"):
            await nodes_ready(first, 2)
            await pods_of_both_hosts_serve(first, second, tmp_path)
            await first.run(*KERNELET, "cluster", "create", "--nodes", "1", "--name", "beside", seconds=90)
            for host in hosts:
                await host.run("sh", "-c", KILL_ALL)
    for host, before in zip(hosts, clean, strict=True):
        left = await traces(host)
        changed = ("links", "nftables", "cgroups", "socket programs", "state")
        assert all(left[what] != before[what] for what in changed), left
        for _ in range(2):
            done = await host.run(*KERNELET, "reset", "--yes", seconds=120)
            assert "nothing of Kernelet is left" in done.out
            assert await traces(host) == before


async def pods_of_both_hosts_serve(first: Host, second: Host, folder: Path) -> None:
    for host in (first, second):
        await ensure_tools_image(f"/proc/{host.pid}/root/var/lib/kernelet/docker/docker.sock")
    objects = [service("web"), deployment("web", 2, affinity=apart("web"))]
    file = folder / "web.json"
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    await kubectl(first, "apply", "-f", str(file))
    await kubectl(first, "rollout", "status", "deployment/web", "--timeout=60s")
    address = await kubectl(first, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
    fetch = f"import urllib.request as r; print([r.urlopen('http://{address}').read().decode() for _ in range(30)])"
    for host in (first, second):
        # From a process of the host: a stranger in its namespace is outside its cgroups.
        answers = (await host.run(sys.executable, "-c", fetch)).out
        assert "host-1" in answers and "host-2" in answers
