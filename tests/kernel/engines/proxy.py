"""A node with one engine and with clients in it, outside of it, and on it; the same for every engine."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from support.clients import Client
from support.netns import Namespace

from kernelet.dataplane.proxy import Engine, EngineConfig, create_engine
from kernelet.dataplane.routes import Backend, Delta, ServiceRoute

from ..proxy.topology import Feed, Pod, Topology

VIP, VIP6, OTHER_VIP = "10.96.0.1", "fd00:96::1", "10.96.0.2"
EXTERNAL, BALANCER, NODE_PORT = "198.51.100.7", "198.51.100.8", 30080
EXTERNAL6 = "2001:db8:1::7"
REFUSED, LOST = ["ECONNREFUSED"], ["timed out"]
REFUSED_UDP = ([{"error": "ECONNREFUSED"}], [{"error": "EPERM"}])
"""What a sender of datagrams meets; the latter where its own host rejects them on the way out."""
QUICKLY = 0.9
"""A client that is refused within it was answered at its first SYN: the second one comes after a second (RFC 6298)."""


@dataclass
class Site:
    """What outlives every engine: topology, client processes, and a cgroup that only the pods' are in."""

    topology: Topology
    config: EngineConfig
    pod: Client
    web1: Client
    web2: Client
    far: Client
    node: Client
    outside: Client

    @property
    def pods(self) -> tuple[Pod, Pod, Pod]:
        """Those that serve."""
        return self.topology.web1, self.topology.web2, self.topology.far

    @property
    def clients(self) -> tuple[Client, ...]:
        return self.pod, self.web1, self.web2, self.far, self.node, self.outside


@contextlib.contextmanager
def site(topology: Topology, config: EngineConfig) -> Iterator[Site]:
    pods = (topology.client, topology.web1, topology.web2, topology.far)
    with contextlib.ExitStack() as stack:

        def client(namespace: Namespace, cgroup: Path | None) -> Client:
            return stack.enter_context(contextlib.closing(Client(namespace, cgroup)))

        served = [
            client(namespace, config.cgroups[0]) for namespace in (*(pod.namespace for pod in pods), topology.node)
        ]
        yield Site(topology, config, *served, client(topology.outside, None))


@dataclass
class Proxy:
    """A started engine, and the route server's side of it."""

    name: str
    site: Site
    feed: Feed = field(default_factory=Feed)
    _engine: Engine | None = None
    _servers: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def engine(self) -> Engine:
        assert self._engine is not None
        return self._engine

    @property
    def running(self) -> bool:
        return self._engine is not None

    def start(self) -> None:
        """An engine on whatever the kernel holds."""
        with self.site.topology.node.entered():
            self._engine = create_engine(self.name, self.site.config)
            self._engine.start()

    def stop(self, *, keep: bool = True) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            with self.site.topology.node.entered():
                engine.close(keep=keep)

    def apply(self, delta: Delta) -> None:
        """As the proxy's agent does it."""
        self.engine.apply(delta)
        self.engine.tidy()

    def route(self, *services: ServiceRoute, removed: tuple[str, ...] = ()) -> None:
        self.apply(self.feed.change(*services, removed=removed))

    def dispose(self) -> None:
        """Nothing of it is left."""
        self._servers.close()
        if not self.running:
            self.start()
        self.stop(keep=False)

    def reset(self) -> None:
        """No services, no peers, no servers but the pods' own, whatever happened."""
        self._servers.close()
        if not self.running:
            self.start()
        for client in self.site.clients:
            client.drop()
        self.feed = Feed()
        self.apply(self.feed.change())

    def repair(self) -> int:
        with self.site.topology.node.entered():
            return self.engine.repair()

    def serve(self, namespace: Namespace, port: int, name: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> None:
        """A server for this test only."""
        self._servers.callback(namespace.serve("0.0.0.0", port, name, kind).close)

    def in_doomed_process(self, work: Callable[[Engine], None]) -> int:
        """The pid of a process that does the work with an engine of its own and kills itself after it."""
        child = os.fork()
        if child:
            return child
        try:
            with self.site.topology.node.entered():
                engine = create_engine(self.name, self.site.config)
                engine.start()
            work(engine)
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)


def killed(pid: int) -> None:
    """Waits for its end. Raises AssertionError where it was not SIGKILL that ended it."""
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def between(count: int, chance: float, improbable: float = 1e-7) -> range:
    """How often something of this chance may happen in so many trials: all but the improbable tails (binomial)."""
    weights = [math.comb(count, hits) * chance**hits * (1 - chance) ** (count - hits) for hits in range(count + 1)]
    low, tail = 0, weights[0]
    while tail < improbable:
        low += 1
        tail += weights[low]
    high, tail = count, weights[count]
    while tail < improbable:
        high -= 1
        tail += weights[high]
    return range(low, high + 1)


def packed(*addresses: str) -> tuple[bytes, ...]:
    return tuple(ip_address(address).packed for address in addresses)


def tally(client: Client, address: str, port: int = 80, times: int = 40) -> Tally[str]:
    return Tally(client.names(address, port, times))


def refusal(client: Client, address: str, port: int = 80) -> list[str]:
    """What one TCP connection met, told apart by time: refused by the first answer, or not yet."""
    [answer] = client.tcp(address, port, 1, False, QUICKLY)
    return [answer.get("name", answer.get("error"))]


def in_zone(backend: Backend, *zones: str) -> Backend:
    return Backend(backend.address, backend.port, backend.flags, backend.node, backend.weight, zones)
