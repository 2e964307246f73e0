"""A real cluster for tests, looked at from outside: its processes, its kernels, its containers, its command lines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import docker
import pytest

from kernelet.agents.cluster import machine, preflight, topology
from kernelet.agents.cluster.build import kernelet_command
from kernelet.agents.cluster.paths import ClusterPaths
from kernelet.agents.cluster.processes import ProcessId, wait_end
from kernelet.agents.cluster.spec import ClusterSpec
from kernelet.core.api.errors import Expired, NotFound, ServiceUnavailable
from kernelet.core.api.kinds import KINDS
from kernelet.core.client.client import Client
from kernelet.core.security.kubeconfig import load_kubeconfig
from kernelet.dataplane.proxy import EngineConfig, EngineError, create_engine, programmed
from kernelet.dataplane.proxy.ebpf.kernel import PINS, pin_name
from kernelet.ext import netns

JSON = dict[str, Any]
POLL_SECONDS = 0.05
"""Between two looks at what cannot be awaited: the kernel, dockerd and pid files tell nobody when they change."""


PROGRAMS = {"kubectl": "kubernetes-client", "busybox": "busybox-static"}


def require_machine() -> None:
    """Skips, naming what is missing, where no cluster can run."""
    lacking = [finding for finding in preflight.look() if finding.fatal and not finding.ok]
    if lacking:
        pytest.skip("; ".join(f"needs {finding.what}: {finding.detail}" for finding in lacking))
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            pytest.skip(f"needs the program {program}; apt-get install {package}")


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that has ended."""

    code: int
    out: str
    err: str


async def run(*argv: str, stdin: str = "", seconds: float = 60.0, env: dict[str, str] | None = None) -> Ran:
    """Runs a command to its end. Raises TimeoutError, and then it is killed."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | (env or {}),
    )
    try:
        async with asyncio.timeout(seconds):
            out, err = await process.communicate(stdin.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Ran(process.returncode or 0, out.decode(), err.decode())


async def eventually(look: Callable[[], bool], seconds: float, what: str) -> None:
    """Waits for what can only be looked at. Raises AssertionError saying `what` did not come."""
    try:
        async with asyncio.timeout(seconds):
            while True:
                if await asyncio.to_thread(look):
                    return
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise AssertionError(f"not within {seconds:.0f} s: {what}") from None


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster whose nodes are network namespaces of this machine."""

    name: str
    spec: ClusterSpec
    paths: ClusterPaths = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "paths", ClusterPaths(self.name))

    @property
    def nodes(self) -> list[str]:
        return [node.name for node in self.spec.nodes]

    @property
    def kubeconfig(self) -> str:
        return str(self.paths.admin_kubeconfig)

    def client(self) -> Client:
        return Client(load_kubeconfig(self.kubeconfig))

    async def kernelet(self, *words: str, ok: bool = True, stdin: str = "", seconds: float = 60.0) -> Ran:
        """Runs the command line, as a person would; with `ok` its failure fails the test."""
        done = await run(*kernelet_command(), "--kubeconfig", self.kubeconfig, *words, stdin=stdin, seconds=seconds)
        assert not ok or done.code == 0, f"kernelet {' '.join(words)}: {done}"
        return done

    async def kubectl(self, *words: str, ok: bool = True, stdin: str = "", seconds: float = 60.0) -> Ran:
        done = await run("kubectl", "--kubeconfig", self.kubeconfig, *words, stdin=stdin, seconds=seconds)
        assert not ok or done.code == 0, f"kubectl {' '.join(words)}: {done}"
        return done

    # Network namespaces

    def node_netns(self, node: str) -> str:
        return topology.netns_path(topology.node_netns(self.name, node))

    def outside_netns(self) -> str:
        """The one that holds the bridge between the nodes: no node, no pod."""
        return topology.netns_path(topology.control_netns(self.name))

    def node_address(self, node: str) -> str:
        return next(known.address for known in self.spec.nodes if known.name == node)

    def pod_netns(self, uid: str) -> str:
        """Of a running pod, by its pause container."""
        for one in self.containers(f"io.kernelet.pod.uid={uid}", "io.kernelet.kind=sandbox", running=True):
            return f"/proc/{self.inspect(one['Id'])['State']['Pid']}/ns/net"
        raise AssertionError(f"pod {uid} has no pause container")

    def routed(self, node: str) -> set[str]:
        """The pod addresses that a node's kernel sends new connections of services to; none without routes."""
        config = EngineConfig(node, (), (), (IPv4Network("10.96.0.0/16"),), pins=PINS / pin_name(self.name, node))

        def read() -> set[str]:
            engine = create_engine(programmed(config), config)
            try:
                return {str(IPv4Address(backend)) for _, _, _, backend, _ in engine.restore() if len(backend) == 4}
            except EngineError:
                return set()
            finally:
                engine.close()

        return inside(self.node_netns(node), read)

    # Processes

    def process(self, unit: str) -> ProcessId | None:
        """What runs as this unit now."""
        return ProcessId.read(self.paths.pid_file(unit))

    def kill(self, *units: str) -> list[ProcessId]:
        """SIGKILL for all of them at once; what was killed, which is dead when this returns."""
        found = [process for unit in units if (process := self.process(unit))]
        assert len(found) == len(units), f"not all of {units} run: {found}"
        for process in found:
            process.send(signal.SIGKILL)
        for process in found:
            assert wait_end(process, 10), f"process {process.pid} survives SIGKILL"
        return found

    async def back(self, *units: str, without: Sequence[ProcessId], seconds: float = 20.0) -> None:
        """Waits until each unit runs in a process that is none of `without`."""

        def look() -> bool:
            now = [self.process(unit) for unit in units]
            return all(process is not None and process not in without for process in now)

        await eventually(look, seconds, f"{', '.join(units)} running again")

    # Containers

    def containers(self, *labels: str, running: bool = False) -> list[JSON]:
        """Docker's entries of the cluster's containers, with these labels besides."""
        wanted = [f"io.kernelet.cluster={self.name}", *labels]
        with contextlib.closing(self._docker()) as api:
            return list(api.containers(all=not running, filters={"label": wanted}))

    def inspect(self, container: str) -> JSON:
        with contextlib.closing(self._docker()) as api:
            return dict(api.inspect_container(container))

    def _docker(self) -> docker.APIClient:
        return docker.APIClient(base_url=f"unix://{self.spec.docker_socket}", timeout=60)

    def kill_container(self, container: str) -> None:
        with contextlib.closing(self._docker()) as api:
            api.kill(container)

    def logs(self, unit: str, lines: int = 40) -> str:
        """The end of a unit's log, for messages of failed tests."""
        return "\n".join(self.paths.log_file(unit).read_text(errors="replace").splitlines()[-lines:])


def inside(path: str, work: Callable[[], Any]) -> Any:
    """What `work` returns in the network namespace at `path`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return netns.run_in(descriptor, work)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def new_cluster(
    nodes: int,
    *,
    store: str = "",
    toleration_seconds: int = 30,
    engine: str = "auto",
    before: Callable[[str], None] = lambda _: None,
) -> Iterator[Cluster]:
    """A cluster with a name of its own, removed at the end, also when it could not be made."""
    name = f"t-{secrets.token_hex(3)}"
    before(name)
    try:
        spec = asyncio.run(
            machine.create(
                name, nodes, lambda _: None, store=store, toleration_seconds=toleration_seconds, engine=engine
            )
        )
        yield Cluster(name, spec)
    finally:
        keep = os.environ.get("KERNELET_TEST_KEEP")
        if not keep:
            asyncio.run(machine.delete(name, lambda _: None, keep_dockerd=True))


class Space:
    """A namespace of one test, and waiting for what happens in it."""

    def __init__(self, cluster: Cluster, client: Client, name: str) -> None:
        self.cluster = cluster
        self.client = client
        self.name = name

    async def create(self, *objects: JSON) -> None:
        for obj in objects:
            kind = KINDS.by_kind(obj["apiVersion"], obj["kind"])
            await self.client.raw.create(kind, obj, self.name if kind.namespaced else "")

    async def get(self, kind: str, name: str) -> JSON:
        return await self.client.raw.get(KINDS.resolve(kind), name, self.name)

    async def list(self, kind: str, labels: str = "") -> list[JSON]:
        return (await self.client.raw.list(KINDS.resolve(kind), self.name, labels=labels)).items

    async def patch(self, kind: str, name: str, patch: JSON, subresource: str = "") -> JSON:
        return await self.client.raw.patch(KINDS.resolve(kind), name, patch, self.name, subresource=subresource)

    async def delete(self, kind: str, name: str, **options: Any) -> None:
        await self.client.raw.delete(KINDS.resolve(kind), name, self.name, **options)

    async def scale(self, name: str, replicas: int) -> None:
        await self.patch("deployments", name, {"spec": {"replicas": replicas}})

    async def until(
        self, kind: str, holds: Callable[[list[JSON]], bool], seconds: float = 30.0, *, labels: str = "", what: str = ""
    ) -> list[JSON]:
        """Waits until all objects of a kind satisfy `holds` together; them. An API server's restart is waited out."""
        held: dict[str, JSON] = {}
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        async for now in self._follow(kind, labels):
                            held = now
                            if holds(list(now.values())):
                                return list(now.values())
                    except (Expired, ServiceUnavailable):
                        await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            shown = "\n".join(f"  {name}: {_short(obj)}" for name, obj in sorted(held.items()))
            raise AssertionError(f"not within {seconds:.0f} s: {what or kind}; there are:\n{shown}") from None

    async def _follow(self, kind: str, labels: str) -> AsyncIterator[dict[str, JSON]]:
        known = KINDS.resolve(kind)
        namespace = self.name if known.namespaced else ""
        listing = await self.client.raw.list(known, namespace, labels=labels)
        held = {obj["metadata"]["name"]: obj for obj in listing.items}
        yield held
        stream = self.client.raw.watch(known, namespace, labels=labels, resource_version=str(listing.revision))
        async with contextlib.aclosing(stream) as events:
            async for event in events:
                name = event.object["metadata"]["name"]
                if event.type == "DELETED":
                    held.pop(name, None)
                elif event.type in ("ADDED", "MODIFIED"):
                    held[name] = event.object
                yield held

    async def pods_ready(self, labels: str, count: int, seconds: float = 60.0) -> list[JSON]:
        """Waits until exactly this many pods exist with the labels, and all are Ready."""
        return await self.until(
            "pods",
            lambda pods: len(pods) == count and all(is_ready(pod) for pod in pods),
            seconds,
            labels=labels,
            what=f"{count} ready pods with {labels}",
        )

    async def pod_until(self, name: str, holds: Callable[[JSON], bool], seconds: float = 30.0, what: str = "") -> JSON:
        """Waits for one pod."""

        def found(pods: list[JSON]) -> JSON | None:
            return next((pod for pod in pods if pod["metadata"]["name"] == name), None)

        def look(pods: list[JSON]) -> bool:
            pod = found(pods)
            return pod is not None and holds(pod)

        result = found(await self.until("pods", look, seconds, what=what or f"pod {name}"))
        assert result is not None
        return result

    async def gone(self, kind: str, name: str, seconds: float = 30.0) -> None:
        await self.until(
            kind, lambda all_: all(obj["metadata"]["name"] != name for obj in all_), seconds, what=f"{kind} {name} gone"
        )

    async def routed(self, addresses: set[str], nodes: Sequence[str], seconds: float = 15.0) -> None:
        """Waits until the kernels of these nodes route to all of these pods."""
        for node in nodes:
            await eventually(
                lambda node=node: addresses <= self.cluster.routed(node), seconds, f"routes of {node} to {addresses}"
            )


def is_ready(obj: JSON) -> bool:
    conditions = (obj.get("status") or {}).get("conditions") or []
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    return ready and "deletionTimestamp" not in obj["metadata"]


def address_of(pod: JSON) -> str:
    return str(pod["status"]["podIP"])


def restarts(pod: JSON) -> int:
    return sum(one["restartCount"] for one in pod["status"].get("containerStatuses") or [])


def _short(obj: JSON) -> str:
    status = obj.get("status") or {}
    words = [str(status.get("phase", "")), (obj.get("spec") or {}).get("nodeName", "")]
    words += [f"{c['type']}={c['status']}" for c in status.get("conditions") or []]
    words += [str(c.get("state")) for c in status.get("containerStatuses") or []]
    words += ["deleting"] if "deletionTimestamp" in obj["metadata"] else []
    return " ".join(word for word in words if word)


async def make_space(cluster: Cluster, client: Client, prefix: str = "t") -> Space:
    """A new namespace."""
    name = f"{prefix}-{secrets.token_hex(3)}"
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    await client.raw.create(KINDS.resolve("namespaces"), namespace)
    return Space(cluster, client, name)


@contextlib.asynccontextmanager
async def new_space(cluster: Cluster, prefix: str = "t") -> AsyncIterator[Space]:
    """A namespace that is deleted at the end; its deletion is not waited for."""
    async with cluster.client() as client:
        space = await make_space(cluster, client, prefix)
        try:
            yield space
        finally:
            with contextlib.suppress(NotFound):
                await client.raw.delete(KINDS.resolve("namespaces"), space.name)


async def all_nodes_ready(space: Space, seconds: float = 20.0) -> None:
    """Waits until every node of the cluster is Ready."""
    await machine.wait_nodes_ready(space.cluster.paths, set(space.cluster.nodes), seconds)
