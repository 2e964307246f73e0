"""A topology with serving pods for a module's tests; a fresh engine, cgroup and client process for each test."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from support.netns import Lab, Namespace

from kernelet.dataplane.proxy import EngineConfig, create_engine
from kernelet.dataplane.proxy.ebpf import EbpfEngine
from kernelet.dataplane.proxy.ebpf_kernel import BPFFS, cgroup_root
from kernelet.ext.libbpf import mount_bpffs

from ..proxy.topology import CONFIG, Feed, Topology


class Client:
    """A process in a cgroup and a namespace; `client.tcp(...)` calls the function of that name in client.py."""

    def __init__(self, namespace: Namespace, cgroup: Path | None) -> None:
        with namespace.entered():
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(Path(__file__).with_name("client.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        if cgroup is not None:
            (cgroup / "cgroup.procs").write_text(str(self._process.pid))

    @property
    def pid(self) -> int:
        return self._process.pid

    def __getattr__(self, function: str) -> Callable[..., Any]:
        def call(*arguments: object) -> Any:
            assert self._process.stdin and self._process.stdout
            self._process.stdin.write(json.dumps([function, *arguments]) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

        return call

    def names(self, address: str, port: int = 80, times: int = 1) -> list[str]:
        return [answer.get("name", answer.get("error")) for answer in self.tcp(address, port, times)]

    def close(self) -> None:
        with self._process:
            self._process.kill()


@dataclass
class Node:
    """What one engine works with, and helpers around it."""

    topology: Topology
    config: EngineConfig
    stack: contextlib.ExitStack

    @property
    def cgroup(self) -> Path:
        return self.config.cgroups[0]

    @property
    def pins(self) -> Path:
        assert self.config.pins
        return self.config.pins

    def engine(self, **changes: Any) -> EbpfEngine:
        """A started engine; several may follow each other on the same pins."""
        with self.topology.node.entered():
            made = create_engine("ebpf", replace(self.config, **changes))
            assert isinstance(made, EbpfEngine)
            made.start()
        return made

    def another(self, namespace: Namespace) -> EbpfEngine:
        """The started engine of another node of this host, whose namespace that is; it goes with this node."""
        assert self.config.pins
        name = f"{self.config.pins.name}-other"
        cgroup = cgroup_root() / name
        self.stack.callback(_remove_cgroup, cgroup)
        with namespace.entered():
            made = EbpfEngine(replace(self.config, cgroups=(cgroup,), pins=self.config.pins.with_name(name)))
            self.stack.callback(_remove_engine, namespace, made)
            made.start()
        return made

    def client(self, namespace: Namespace | None = None, *, served: bool = True) -> Client:
        """In the client pod, or elsewhere; its cgroup is hooked unless `served` is false."""
        made = Client(namespace or self.topology.client.namespace, self.cgroup if served else None)
        self.stack.callback(made.close)
        return made


@pytest.fixture(scope="module")
def topology(lab: Lab) -> Topology:
    """Pods that serve TCP and UDP on 8080, IPv4 and IPv6, and answer with their IPv4 address."""
    made = Topology(lab)
    for pod in (made.web1, made.web2, made.far):
        made.servers[pod.address] = pod.serve()
        pod.serve_udp()
        pod.namespace.serve("::", 8081, pod.address)
        pod.namespace.serve("::", 8082, pod.address, socket.SOCK_DGRAM)
    return made


@pytest.fixture(scope="session")
def bpffs() -> Iterator[None]:
    """Mounted; unmounted afterwards if it was not there before."""
    mounted = mount_bpffs(BPFFS)
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", str(BPFFS)], check=True, timeout=60)


@pytest.fixture
def node(topology: Topology, bpffs: None) -> Iterator[Node]:
    name = f"kl-test-{secrets.token_hex(4)}"
    cgroup = cgroup_root() / name
    config = replace(CONFIG, cgroups=(cgroup,), host_cgroup=cgroup_root(), pins=BPFFS / "kernelet" / name)
    with contextlib.ExitStack() as stack:
        cgroup.mkdir()
        stack.callback(_remove_cgroup, cgroup)
        with topology.node.entered():
            remover = EbpfEngine(config)
        stack.callback(_remove_engine, topology.node, remover)
        yield Node(topology, config, stack)


def _remove_cgroup(cgroup: Path) -> None:
    if cgroup.exists():
        cgroup.rmdir()


def _remove_engine(namespace: Namespace, engine: EbpfEngine) -> None:
    with namespace.entered():
        engine.close(keep=False)


@pytest.fixture
def engine(node: Node) -> Iterator[EbpfEngine]:
    made = node.engine()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def feed() -> Feed:
    return Feed()
