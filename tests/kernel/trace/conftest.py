"""The topology of the engines' tests, with a tracer that knows its node."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from support.netns import Namespace

from kernelet.agents.trace.collect import Collector
from kernelet.agents.trace.subject import Endpoint, Place, Subject
from kernelet.agents.trace.tracer import DroppedPacket, Record, Tracer
from kernelet.dataplane.routes import ServiceRoute

from ..ebpf.conftest import engine, node
from ..proxy.topology import CONFIG, NODE_ADDRESS, Topology

__all__ = ["engine", "node"]


def endpoint(address: str, port: int, protocol: int = 6) -> Endpoint:
    return Endpoint(ip_address(address).packed, port, protocol)


def subject(route: ServiceRoute) -> Subject:
    """What the API would tell of a route's service."""
    [address] = route.cluster_ips
    [port] = route.ports
    frontend = Endpoint(address, port.port, port.protocol)
    backends = {Endpoint(one.address, one.port, port.protocol): frontend for one in port.backends}
    return Subject(route.id, backends, frozenset((frontend,)))


class Watcher:
    """A tracer, and what it has told so far of some namespaces: others on the machine may have the same addresses."""

    def __init__(self, tracer: Tracer, namespaces: Iterable[Namespace]) -> None:
        self.tracer = tracer
        self.records: list[Record] = []
        self._inodes = {Path("/run/netns", namespace.name).stat().st_ino for namespace in namespaces}

    def follow(self, route: ServiceRoute) -> None:
        self.tracer.follow(subject(route))

    def until(self, enough: Callable[[list[Record]], object]) -> list[Record]:
        """Takes events until they are what is waited for, or ten seconds are over."""
        deadline = time.monotonic() + 10
        while not enough(self.records) and time.monotonic() < deadline:
            self.records += filter(self._is_ours, self.tracer.records(0.1))
        assert enough(self.records), self.records
        return self.records

    def _is_ours(self, record: Record) -> bool:
        return (record.drop if isinstance(record, DroppedPacket) else record).netns in self._inodes


@contextmanager
def watching(topology: Topology, *, redirects: bool) -> Iterator[Watcher]:
    networks = (ip_network(NODE_ADDRESS), *CONFIG.pod_cidrs)
    place = Place("here", Path("/run/netns", topology.node.name), networks, redirects)
    with ExitStack() as stack:
        collector = stack.enter_context(Collector())
        pods = (topology.client, topology.web1, topology.web2, topology.far)
        namespaces = (topology.node, *(pod.namespace for pod in pods))
        yield Watcher(stack.enter_context(Tracer(collector, [place])), namespaces)


@pytest.fixture
def watcher(topology: Topology) -> Iterator[Watcher]:
    with watching(topology, redirects=True) as made:
        yield made
