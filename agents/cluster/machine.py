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

from kernelet.agents.kubelet.containers import slice_part
from kernelet.agents.kubelet.dockerd import ensure_dockerd, mounts_below, stop_dockerd
from kernelet.agents.kubelet.volumes import memory_root
from kernelet.core.client.client import Client
from kernelet.core.client.informer import Informer
from kernelet.core.security.kubeconfig import load_kubeconfig
from kernelet.dataplane.proxy.ebpf.kernel import PINS, pin_name, remove_pins

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


async def create(
    name: str, nodes: int, say: Say, *, store: str = "", toleration_seconds: int = 30, engine: str = "auto"
) -> ClusterSpec:
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
        identity = build.NodeIdentity(paths, node.name, node.address, docker_socket, engine=engine)
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
    remove_programs(pin_name(name, node))


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
    remove_programs(pin_name(name, "*"))
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
    """What is mounted below: volumes in memory, what a killed dockerd left. Raises ClusterError naming what stays.

    A mount may hide others, whose paths lead nowhere until it is gone: so again, as long as there are fewer each time.
    """
    mounts = _mounts_strictly_below(*folders)
    while mounts:
        failures = {mount: _unmount_one(mount) for mount in mounts}
        left = _mounts_strictly_below(*folders)
        if len(left) >= len(mounts):
            raise ClusterError(f"{left[0]} cannot be unmounted: {failures.get(left[0])}; end what uses it, try again")
        mounts = left


def _unmount_one(mount: str) -> str:
    """What umount(8) says of it; "" when it is gone."""
    done = subprocess.run(["umount", "--lazy", mount], capture_output=True, text=True, check=False, timeout=30)
    return done.stderr.strip()


def _mounts_strictly_below(*folders: Path) -> list[str]:
    """Innermost first. A folder that is a mount point itself is whoever's who mounted it there."""
    return [mount for mount in mounts_below(*folders) if Path(mount) not in folders]


def remove_folder(folder: Path) -> None:
    """The folder with all it holds; one that is a mount point is emptied only. Nothing where there is none."""
    if folder.is_mount():
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def remove_programs(pattern: str) -> None:
    """Detaches the socket programs of the nodes whose `pin_name` matches, with maps and pins.

    Raises ClusterError naming what stays.
    """
    for pins in PINS.glob(pattern):
        try:
            remove_pins(pins)
        except OSError as error:
            raise ClusterError(f"{pins}: {error.strerror or error}; remove it by hand, then try again") from error
    with suppress(OSError):  # Another cluster's are still in it, or there is none.
        PINS.rmdir()


def remove_cgroups(prefix: str) -> None:
    """The cgroups below `kernelet/` of every hierarchy, whose names begin with `prefix`.

    Raises ClusterError naming one in which a process still is.
    """
    slices = f"kernelet-{slice_part(prefix.partition('.')[0]) or '*'}.slice"
    for root in [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*")]:
        for parent, pattern in ((root / "kernelet", f"{prefix}*"), (root / "kernelet.slice", slices)):
            # Among them are the kernel's own files, such as cgroup.procs.
            for group in (path for path in parent.glob(pattern) if path.is_dir()):
                below = sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True)
                for folder in [*below, group]:
                    _remove_cgroup(folder)
            with suppress(OSError):  # another cluster's groups are still in it
                parent.rmdir()


def _remove_cgroup(folder: Path) -> None:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return  # whoever made it was faster
    except OSError as error:
        inside = (folder / "cgroup.procs").read_text().split()
        raise ClusterError(
            f"cgroup {folder}: {error.strerror}; end the processes in it ({', '.join(inside) or 'none now'}), try again"
        ) from error


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
