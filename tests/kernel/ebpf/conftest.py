"""A topology with serving pods for a module's tests; a fresh engine, cgroup and client process for each test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from support.clients import Client
from support.netns import Namespace

from kernelet.dataplane.proxy import EngineConfig, create_engine
from kernelet.dataplane.proxy.ebpf.engine import EbpfEngine
from kernelet.dataplane.proxy.ebpf.kernel import cgroup_root

from ..proxy.topology import Topology, own_cgroup


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


@pytest.fixture
def node(topology: Topology, bpffs: None) -> Iterator[Node]:
    with own_cgroup() as config, contextlib.ExitStack() as stack:
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
