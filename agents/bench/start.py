"""Cold start of a control plane with one node, and of pods on it, by phase.

dockerd runs before the clock starts, and the pods' image is present: neither is what Kernelet adds.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from importlib import metadata

from lightkube.models.core_v1 import Container, Node, Pod, PodSpec
from lightkube.models.meta_v1 import ObjectMeta

from kernelet.agents.cluster import machine
from kernelet.agents.cluster.paths import DOCKER_DATA, ClusterPaths
from kernelet.agents.kubelet.dockerd import ensure_dockerd
from kernelet.agents.kubelet.images import PAUSE_IMAGE
from kernelet.core.client.client import Client
from kernelet.core.client.informer import Informer
from kernelet.core.security.kubeconfig import load_kubeconfig
from kernelet.dataplane.bench import Report, Result

CLUSTER = "bench"
DEADLINE = 60.0
Samples = dict[str, list[float]]


async def bench_start(rounds: int, pods: int, say: Callable[[str], None]) -> Report:
    """Raises ClusterError; whatever happens, the cluster is removed."""
    cluster: Samples = defaultdict(list)
    pod: Samples = defaultdict(list)
    try:
        await machine.delete(CLUSTER, lambda _: None)
        await ensure_dockerd(DOCKER_DATA)
        for number in range(1, rounds + 1):
            await _round(cluster, pod, pods)
            ready, running = cluster["node Ready"][-1], max(pod["Running"][-pods:])
            say(f"round {number} of {rounds}: Ready after {ready:.2f} s, slowest pod {running:.2f} s")
            await _delete_keeping_dockerd()
    finally:
        await machine.delete(CLUSTER, lambda _: None)
    report = Report("start", metadata.version("kernelet"))
    report.results += [Result.of("cluster, since the command", name, times, "s") for name, times in cluster.items()]
    report.results += [Result.of("pod, since its creation", name, times, "s") for name, times in pod.items()]
    return report


async def _delete_keeping_dockerd() -> None:
    await machine.delete(CLUSTER, lambda _: None, keep_dockerd=True)


async def _round(cluster: Samples, pod: Samples, pods: int) -> None:
    began = time.monotonic()

    def passed() -> float:
        return time.monotonic() - began

    creating = asyncio.create_task(machine.create(CLUSTER, 1, lambda _: None))
    try:
        paths = ClusterPaths(CLUSTER)
        async with asyncio.timeout(DEADLINE):
            await machine.file_appears(paths.supervisor_socket)
            cluster["processes started"].append(passed())
            await machine.file_appears(paths.registry_socket)
        async with Client(load_kubeconfig(paths.admin_kubeconfig)) as client:
            await _watch_node(client, cluster, passed)
            await creating
            await _start_pods(client, pod, pods)
    finally:
        creating.cancel()
        await asyncio.gather(creating, return_exceptions=True)


async def _watch_node(client: Client, samples: Samples, passed: Callable[[], float]) -> None:
    seen: dict[str, float] = {}
    ready = asyncio.Event()

    def look(node: Node | None) -> None:
        if node is None:
            return
        seen.setdefault("node registered", passed())
        if node.spec and node.spec.podCIDR:
            seen.setdefault("pod subnet assigned", passed())
        if machine.is_ready(node):
            seen.setdefault("node Ready", passed())
            ready.set()

    informer = Informer(client, Node)
    informer.subscribe(lambda change: look(change.new))
    following = asyncio.create_task(informer.run())
    try:
        async with asyncio.timeout(DEADLINE):
            await informer.synced()
            samples["API server answers"].append(passed())
            await ready.wait()
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    for name, when in seen.items():
        samples[name].append(when)


async def _start_pods(client: Client, samples: Samples, count: int) -> None:
    """One after the other, so that the phases of one pod are not the waiting for others."""
    informer = Informer(client, Pod, namespace="default")
    following = asyncio.create_task(informer.run())
    try:
        await informer.synced()
        for number in range(count):
            await _start_pod(client, informer, samples, f"pod-{number}")
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def _start_pod(client: Client, informer: Informer[Pod], samples: Samples, name: str) -> None:
    began = time.monotonic()
    seen: dict[str, float] = {}
    running = asyncio.Event()

    def look(pod: Pod | None) -> None:
        if pod is None or pod.metadata is None or pod.metadata.name != name:
            return
        for phase, reached in _phases(pod).items():
            if reached:
                seen.setdefault(phase, time.monotonic() - began)
        if "Running" in seen:
            running.set()

    informer.subscribe(lambda change: look(change.new))
    spec = PodSpec(containers=[Container(name="main", image=PAUSE_IMAGE)], terminationGracePeriodSeconds=0)
    await client.create(Pod(metadata=ObjectMeta(name=name, namespace="default"), spec=spec))
    samples["created"].append(time.monotonic() - began)
    async with asyncio.timeout(DEADLINE):
        await running.wait()
    for phase, when in seen.items():
        samples[phase].append(when)


def _phases(pod: Pod) -> dict[str, bool]:
    """In order: what a watcher can see of a pod on its way."""
    status = pod.status
    return {
        "bound to a node": bool(pod.spec and pod.spec.nodeName),
        "has its address": bool(status and status.podIP),
        "Running": bool(status and status.phase == "Running"),
    }
