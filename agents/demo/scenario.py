"""The steps of the demo, each ending in checks that were measured."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from importlib import resources
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from lightkube.models.core_v1 import Pod, Service

from kernelet.agents.cluster import containers, machine, topology
from kernelet.agents.cluster.build import kernelet_command
from kernelet.agents.cluster.paths import ClusterPaths
from kernelet.core.client.client import Client
from kernelet.core.client.informer import Informer
from kernelet.dataplane.proxy import EngineConfig, create_engine, programmed
from kernelet.dataplane.proxy.ebpf.kernel import PINS, pin_name
from kernelet.ext import netns

from .checks import Checks
from .traffic import NAMESPACE, Load, get_from_netns, get_from_pod, in_pod, steady_load

TIERS = {"web": 3, "app": 3, "redis": 1}
NODE_PORT = 30080
LEAVES_ROUTES_WITHIN = 5.0
"""Seconds from power-off until no kernel routes to the node's pods; Kubernetes takes about 40."""


class Scenario:
    """One run on a cluster that is up. `pods` follows all pods of the shop."""

    def __init__(self, cluster: str, client: Client, pods: Informer[Pod], checks: Checks) -> None:
        self._cluster = cluster
        self._client = client
        self._pods = pods
        self._checks = checks
        self._nodes = [node.name for node in machine.load(cluster)[1].nodes]

    async def run(self) -> None:
        """All steps, in order."""
        await self.install()
        await self.reachability()
        await self.power_off()
        await self.rolling_update()
        await self.exec_and_logs()
        await self.uninstall()

    async def install(self) -> None:
        self._checks.chapter("1. An application in three tiers, found by DNS name and by environment variable")
        self._checks.say("kernelet apply -f shop.yaml")
        await self._kernelet("apply", "-f", _manifest())
        began = self._checks.elapsed()
        await self._until(lambda: self._ready_counts() == TIERS and self._is_ready("client"), 90)
        used = {pod.spec.nodeName for pod in self._pods.items() if pod.spec}
        self._checks.add(
            "pods run on all nodes",
            used == set(self._nodes),
            f"{len(self._pods.items())} pods on {', '.join(sorted(name or '?' for name in used))}, "
            f"ready {self._checks.elapsed() - began:.1f} s after apply",
        )

    async def reachability(self) -> None:
        answer = await get_from_pod(self._client, "http://web.shop.svc.cluster.local/")
        self._checks.add(
            "found by DNS name", answer.get("status") == 200, f"web.shop.svc.cluster.local: {_words(answer)}"
        )
        first = await get_from_pod(self._client, "http://web/visits")
        second = await get_from_pod(self._client, "http://web/visits")
        counted = (first.get("visits") or 0) + 1 == second.get("visits")
        shown = f"the app reached redis by REDIS_SERVICE_HOST: visits {first.get('visits')}, {second.get('visits')}"
        self._checks.add("found by environment variable", counted, shown)
        service = await self._client.get(Service, "web", NAMESPACE)
        address = service.spec.clusterIP if service.spec else None
        await self._from_another_node(f"http://{address}/")
        node = self._nodes[0]
        where = topology.netns_path(topology.node_netns(self._cluster, node))
        answer = await get_from_netns(where, f"http://{address}/")
        self._checks.add("ClusterIP from a node", answer.get("status") == 200, f"{node} -> {address}: {_words(answer)}")
        outside = topology.netns_path(topology.control_netns(self._cluster))
        for number, name in enumerate(self._nodes, 1):
            url = f"http://{topology.node_address(number)}:{NODE_PORT}/"
            answer = await get_from_netns(outside, url)
            self._checks.add(
                f"NodePort of {name} from outside", answer.get("status") == 200, f"{url}: {_words(answer)}"
            )

    async def _from_another_node(self, url: str) -> None:
        client_node = self._node_of("client")
        for _ in range(30):
            answer = await get_from_pod(self._client, url)
            served_by = self._node_of(str(answer.get("pod")))
            if served_by not in ("", client_node):
                break
        shown = f"client on {client_node}, answered by {answer.get('pod')} on {served_by or 'no node'}"
        ok = answer.get("status") == 200 and served_by not in ("", client_node)
        self._checks.add("ClusterIP from a pod on another node", ok, shown)

    async def power_off(self) -> None:
        victim = self._victim()
        self._checks.chapter(f"2. {victim} loses its power while a client keeps sending")
        lost = [pod for pod in self._pods.items() if pod.spec and pod.spec.nodeName == victim]
        addresses = {pod.status.podIP for pod in lost if pod.status and pod.status.podIP}
        others = [name for name in self._nodes if name != victim]
        routed = await asyncio.to_thread(kernel_backends, self._cluster, others[0])
        self._checks.add(
            f"kernels route to {victim} before",
            bool(addresses) and addresses <= routed,
            f"{len(addresses & routed)} of its addresses are in the kernel of {others[0]}",
        )
        async with steady_load(self._client, "web", 80) as load:
            await asyncio.sleep(2)  # what is measured needs a steady state before it
            began = self._checks.elapsed()
            await machine.stop_node(self._cluster, victim)
            await self._until_kernels_forget(others, addresses)
            left_after = self._checks.elapsed() - began
            self._checks.add(
                f"its endpoints left the routes within {LEAVES_ROUTES_WITHIN:.0f} s",
                left_after <= LEAVES_ROUTES_WITHIN,
                f"{len(addresses)} addresses gone from the kernels of {' and '.join(others)} after {left_after:.1f} s",
            )
            uids = {pod.metadata.uid for pod in lost if pod.metadata}
            await self._until(lambda: self._ready_counts(without=uids) == TIERS, 60)
            back_after = self._checks.elapsed() - began
            await asyncio.sleep(2)
        self._checks.add(
            "lost instances run elsewhere",
            self._ready_counts(without=uids) == TIERS,
            f"{len(lost)} pods were lost, all tiers complete again after {back_after:.1f} s",
        )
        self._checks.add("the service stayed up", load.sent > load.failed, _told(load))
        self._checks.say(f"{victim} gets its power back")
        await machine.start_node(self._cluster, victim)

    def _victim(self) -> str:
        """A node that serves the web tier, but neither sends the requests nor, if possible, holds redis."""
        candidates = [name for name in self._nodes if name != self._node_of("client")]
        redis = {pod.spec.nodeName for pod in self._tier("redis") if pod.spec}
        web = {pod.spec.nodeName for pod in self._tier("web") if pod.spec}
        return min(candidates, key=lambda name: (name in redis, name not in web))

    async def _until_kernels_forget(self, nodes: list[str], addresses: set[str]) -> None:
        async with asyncio.timeout(60):
            for node in nodes:
                while True:
                    if not addresses & await asyncio.to_thread(kernel_backends, self._cluster, node):
                        break
                    await asyncio.sleep(0.05)  # the kernel is asked as a bystander would: there is nothing to await

    async def rolling_update(self) -> None:
        self._checks.chapter("3. A rolling update of the web tier while a client keeps sending")
        await self._until(lambda: self._ready_counts() == TIERS and len(self._tier("web")) == TIERS["web"], 60)
        before = {pod.metadata.uid for pod in self._tier("web") if pod.metadata}
        async with steady_load(self._client, "web", 80) as load:
            await asyncio.sleep(1)
            self._checks.say("kernelet rollout restart deployment/web")
            await self._kernelet("rollout", "restart", "deployment/web", "-n", NAMESPACE)
            await self._kernelet("rollout", "status", "deployment/web", "-n", NAMESPACE)
            # Until the last of the old pods has ended: that is where requests would be lost.
            await self._until(lambda: len(self._tier("web")) == TIERS["web"] and not before & self._uids("web"), 60)
            await asyncio.sleep(1)
        replaced = not before & self._uids("web")
        self._checks.add("every web pod was replaced", replaced, f"{len(before)} old pods, none of them is left")
        self._checks.add("no request failed during the rolling update", load.failed == 0 and load.sent > 0, _told(load))

    async def exec_and_logs(self) -> None:
        self._checks.chapter("4. exec, logs, and an end that leaves nothing")
        code, output = await in_pod(self._client, ["/usr/bin/python3.11", "-c", "import sys; print('hi'); sys.exit(7)"])
        self._checks.add("exec works", (code, output) == (7, "hi\n"), f"output {output.strip()!r}, exit status {code}")
        name = sorted(pod.metadata.name or "" for pod in self._tier("web") if pod.metadata)[0]
        text = await self._kernelet("logs", name, "-n", NAMESPACE, "--tail", "5")
        last = text.strip().rpartition("\n")[2]
        self._checks.add("logs work", "GET / HTTP/1.1" in text, f"{name}: {last}")

    async def uninstall(self) -> None:
        self._checks.say("kernelet delete -f shop.yaml")
        await self._kernelet("delete", "-f", _manifest())
        await self._until(lambda: not self._pods.items(), 60)
        socket = machine.load(self._cluster)[1].docker_socket
        left = await asyncio.to_thread(containers.count, socket, self._cluster)
        links = sum([await _pod_links(self._cluster, node) for node in self._nodes])
        shown = f"{left} containers and {links} pod links are left on {len(self._nodes)} nodes"
        self._checks.add("the deleted application is gone", left == 0 and links == 0, shown)

    # What is known of the pods

    def _tier(self, tier: str) -> list[Pod]:
        return [p for p in self._pods.items() if p.metadata and (p.metadata.labels or {}).get("tier") == tier]

    def _uids(self, tier: str) -> set[str | None]:
        return {pod.metadata.uid for pod in self._tier(tier) if pod.metadata}

    def _ready_counts(self, without: set[Any] | None = None) -> dict[str, int]:
        skipped = without or set()
        return {
            tier: sum(1 for pod in self._tier(tier) if pod.metadata and pod.metadata.uid not in skipped and _ready(pod))
            for tier in TIERS
        }

    def _is_ready(self, name: str) -> bool:
        pod = self._pods.get(NAMESPACE, name)
        return pod is not None and _ready(pod)

    def _node_of(self, name: str) -> str:
        pod = self._pods.get(NAMESPACE, name)
        return (pod.spec.nodeName or "") if pod is not None and pod.spec else ""

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Waits for a condition on the pods, looked at whenever one changes. Raises TimeoutError."""
        changed = asyncio.Event()
        self._pods.subscribe(lambda _: changed.set())
        async with asyncio.timeout(seconds):
            while not condition():
                changed.clear()
                await changed.wait()

    async def _kernelet(self, *words: str) -> str:
        """Runs the command line against the demo's cluster, as a person would. Raises RuntimeError."""
        kubeconfig = str(ClusterPaths(self._cluster).admin_kubeconfig)
        process = await asyncio.create_subprocess_exec(
            *kernelet_command(), "--kubeconfig", kubeconfig, *words,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, errors = await asyncio.wait_for(process.communicate(), 120)
        if process.returncode:
            raise RuntimeError(f"kernelet {' '.join(words)}: {errors.decode().strip()}")
        return output.decode()


def _ready(pod: Pod) -> bool:
    if pod.metadata is None or pod.metadata.deletionTimestamp is not None or pod.status is None:
        return False
    return any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or [])


def _words(answer: dict[str, Any]) -> str:
    if "error" in answer:
        return f"no answer ({answer['error']})"
    return f"{answer.get('pod')} answered {answer.get('status')}"


def _told(load: Load) -> str:
    text = f"{load.failed} of {load.sent} requests failed, the longest gap was {load.longest_gap:.2f} s"
    return f"{text} ({load.failures[0]})" if load.failures else text


def _manifest() -> str:
    return str(Path(str(resources.files("kernelet.agents.demo").joinpath("app", "shop.yaml"))))


async def _output(*argv: str) -> str:
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    return output.decode()


def kernel_backends(cluster: str, node: str) -> set[str]:
    """The addresses that a node's kernel sends new connections to, read back from it."""
    config = EngineConfig(node, (), (), (IPv4Network("10.96.0.0/16"),), pins=PINS / pin_name(cluster, node))

    def read() -> set[str]:
        engine = create_engine(programmed(config), config)
        try:
            return {str(IPv4Address(backend)) for _, _, _, backend, _ in engine.restore() if len(backend) == 4}
        finally:
            engine.close()

    fd = os.open(topology.netns_path(topology.node_netns(cluster, node)), os.O_RDONLY)
    try:
        return netns.run_in(fd, read)
    finally:
        os.close(fd)


async def _pod_links(cluster: str, node: str) -> int:
    text = await _output("ip", "-n", topology.node_netns(cluster, node), "-o", "link", "show", "type", "veth")
    return sum(1 for line in text.splitlines() if ": kl" in line)
