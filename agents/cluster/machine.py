"""Clusters on one machine: every node a network namespace, one dockerd for all of them."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lightkube.models.core_v1 import Node

from kernelet.agents.kubelet.dockerd import ensure_dockerd, mounts_below, stop_dockerd
from kernelet.agents.kubelet.volumes import memory_root
from kernelet.core.client.client import Client
from kernelet.core.client.informer import Informer
from kernelet.core.security.kubeconfig import load_kubeconfig

from . import build, containers, topology
from .paths import DOCKER_DATA, RUN_ROOT, ClusterPaths, existing_clusters
from .processes import ProcessId, stop
from .spec import ClusterSpec, NodeSpec
from .supervisor import ask, spawn_detached

log = logging.getLogger(__name__)

FIRST_API_PORT = 6443
Say = Callable[[str], None]


class ClusterError(Exception):
    """The message names the cluster, the cause and the fix."""


async def create(name: str, nodes: int, say: Say, *, store: str = "", toleration_seconds: int = 30) -> ClusterSpec:
    """Makes a cluster and returns once all its nodes are Ready. Raises ClusterError when it exists."""
    paths = ClusterPaths(name)
    if paths.spec.exists():
        raise ClusterError(
            f"cluster {name} exists; delete it with `kernelet cluster delete {name}` or take another name"
        )
    if store == "etcd" and shutil.which("etcd") is None:
        raise ClusterError("--store etcd: the program etcd is missing; apt-get install etcd-server")
    say("starting dockerd")
    docker_socket = (await ensure_dockerd(DOCKER_DATA)).socket
    port = _free_port()
    plane = build.ControlPlane(
        paths, topology.GATEWAY, f"https://127.0.0.1:{port}", store, toleration_seconds=toleration_seconds
    )
    say("making certificates")
    pki = build.prepare_control_plane(plane)
    node_specs = tuple(NodeSpec(f"node-{n}", topology.node_address(n)) for n in range(1, nodes + 1))
    control = topology.netns_path(topology.control_netns(name))
    units = build.control_plane_units(plane, control, f"127.0.0.1:{port}")
    for node in node_specs:
        identity = build.NodeIdentity(paths, node.name, node.address, docker_socket)
        build.prepare_node(pki, identity, topology.GATEWAY)
        units.append(build.node_unit(identity, topology.netns_path(topology.node_netns(name, node.name))))
    spec = ClusterSpec(name, "namespaces", port, docker_socket, tuple(units), node_specs)
    spec.save(paths.spec)
    say(f"making {nodes} nodes, each a network namespace")
    topology.create_control(name)
    for node in node_specs:
        topology.create_node(name, node.name, node.address)
    spawn_detached(paths)
    say("waiting for the nodes to be Ready")
    await wait_nodes_ready(paths, {node.name for node in node_specs})
    return spec


async def wait_nodes_ready(paths: ClusterPaths, names: set[str], deadline: float = 60.0) -> None:
    """Returns once all of these nodes are Ready. Raises ClusterError naming those that are not, and where to look."""
    config = load_kubeconfig(paths.admin_kubeconfig)
    missing = set(names)
    done = asyncio.Event()

    def note(node: Node | None) -> None:
        if node is not None and node.metadata is not None and is_ready(node):
            missing.discard(node.metadata.name or "")
            if not missing:
                done.set()

    try:
        async with asyncio.timeout(deadline), Client(config) as client:
            # Sooner than a client that tries again and again with growing pauses.
            await file_appears(paths.registry_socket)
            informer = Informer(client, Node)
            informer.subscribe(lambda change: note(change.new))
            task = asyncio.create_task(informer.run())
            try:
                await done.wait()
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
    except TimeoutError:
        raise ClusterError(
            f"cluster {paths.name}: not Ready after {deadline:.0f} s: {', '.join(sorted(missing))}; see {paths.logs}"
        ) from None


async def file_appears(path: Path) -> None:
    """Returns once another process has made the file; bound it by asyncio.timeout."""
    while True:
        if path.exists():
            return
        await asyncio.sleep(0.005)


def is_ready(node: Node) -> bool:
    conditions = (node.status.conditions if node.status else None) or []
    return any(c.type == "Ready" and c.status == "True" for c in conditions)


def load(name: str) -> tuple[ClusterPaths, ClusterSpec]:
    """Raises ClusterError naming the clusters that exist."""
    paths = ClusterPaths(name)
    try:
        return paths, ClusterSpec.load(paths.spec)
    except FileNotFoundError:
        others = ", ".join(existing_clusters()) or "none"
        raise ClusterError(f"there is no cluster {name!r} on this machine (there are: {others})") from None


def _node_of(spec: ClusterSpec, node: str) -> NodeSpec:
    for known in spec.nodes:
        if known.name == node:
            return known
    names = ", ".join(known.name for known in spec.nodes)
    raise ClusterError(f"cluster {spec.name} has no node {node!r}; it has {names}")


async def stop_node(name: str, node: str) -> None:
    """Powers a node off: its link goes first, then its process and containers, then its kernel state."""
    paths, spec = load(name)
    _node_of(spec, node)
    topology.delete_node(name, node)
    await ask(paths, {"op": "stop", "unit": node, "signal": "SIGKILL"})
    await asyncio.to_thread(containers.kill_node, spec.docker_socket, name, node)


async def start_node(name: str, node: str) -> None:
    """Powers a node on again."""
    paths, spec = load(name)
    found = _node_of(spec, node)
    topology.create_node(name, node, found.address)
    await ask(paths, {"op": "start", "unit": node})
    await wait_nodes_ready(paths, {node})


async def delete(name: str, say: Say, *, keep_dockerd: bool = False) -> None:
    """Removes everything of a cluster, running or not; with the last one goes the dockerd started for it."""
    paths = ClusterPaths(name)
    say("stopping its processes")
    await stop_processes(paths)
    say("removing its containers")
    for docker_socket in containers.sockets():
        await asyncio.to_thread(containers.remove_cluster, docker_socket, name)
    say("removing its network namespaces")
    topology.delete_all(name)
    unmount(paths.state)
    for folder in (paths.run, paths.state, memory_root(name)):
        if folder.exists():
            shutil.rmtree(folder)
    remove_cgroups(f"{name}.")
    if not existing_clusters() and not keep_dockerd:
        say("stopping dockerd")
        await stop_dockerd(DOCKER_DATA)
        for folder in (RUN_ROOT, memory_root("")):
            with suppress(OSError):
                folder.rmdir()


async def stop_processes(paths: ClusterPaths) -> None:
    """The supervisor stops its units; whatever is left, because it was dead or stuck, is stopped by pid file."""
    supervisor = ProcessId.read(paths.pid_file("supervisor"))
    if supervisor is not None:
        await asyncio.to_thread(stop, supervisor, 45.0)
    left = [process for file in paths.run.glob("*.pid") if (process := ProcessId.read(file)) is not None]
    await asyncio.gather(*(asyncio.to_thread(stop, process, 5.0) for process in left))


def unmount(*folders: Path) -> None:
    """Volumes in memory of pods whose kubelet is gone."""
    for mount in sorted(mounts_below(*folders), reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=True, timeout=30)


def remove_cgroups(prefix: str) -> None:
    """The empty cgroups below `kernelet/` of every hierarchy, whose names begin with `prefix`."""
    for root in [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*")]:
        for group in (root / "kernelet").glob(f"{prefix}*"):
            for folder in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
                folder.rmdir()
            group.rmdir()
        with suppress(OSError):  # another cluster's groups are still in it
            (root / "kernelet").rmdir()


def _free_port() -> int:
    """6443 on loopback, or any other where that is taken."""
    for port in (FIRST_API_PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ClusterError("no free port on 127.0.0.1")
