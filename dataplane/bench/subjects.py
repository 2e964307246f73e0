"""What is put into a world to be measured: nothing, an engine, haproxy, or any other proxy.

A foreign proxy needs one class with a `start(world)` that makes `world.service()` answer on
`world.service_addresses`, and one line in `SUBJECTS`.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Protocol as Interface

from ..proxy import EngineError, create_engine
from .topology import BULK_PORT, HTTP_PORT, SERVICE_PORT, BenchError, Namespace, World
from .tracking import forget, tracking

READY_SECONDS = 10.0
_HAPROXY_PORT, _HAPROXY_BULK_PORT = 10080, 15201


class Proxy(Interface):
    """What makes service addresses answer."""

    def start(self, world: World) -> None:
        """Everything it starts or makes goes with the world. Raises BenchError."""
        ...


class Nothing:
    """No proxy: the kernel of the node as it is."""

    def start(self, world: World) -> None:
        pass


@dataclass(frozen=True, slots=True)
class EngineProxy:
    """One of Kernelet's own."""

    name: str

    def start(self, world: World) -> None:
        engine = create_engine(self.name, world.config)

        def program() -> None:
            engine.start()
            engine.apply(world.routes())

        world.callback(lambda: engine.close(keep=False))
        try:
            world.node.inside(program)
        except EngineError as error:
            raise BenchError(f"engine {self.name} cannot be measured: {error}") from error


class Haproxy:
    """Debian's haproxy in TCP mode on the node, reached by the same redirection as the userspace engine."""

    def start(self, world: World) -> None:
        folder = world.folder / "haproxy"
        folder.mkdir()
        servers = "".join(
            f"  server web{index} {address}:{HTTP_PORT}\n" for index, address in enumerate(world.backend_addresses)
        )
        bulk = f"  server web0 {world.backend_addresses[0]}:{BULK_PORT}\n"
        (folder / "haproxy.cfg").write_text(
            "global\n  nbthread 2\n  maxconn 8000\n"
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n"
            f"listen http\n  bind :{_HAPROXY_PORT} backlog 4096\n  balance roundrobin\n{servers}"
            f"listen bulk\n  bind :{_HAPROXY_BULK_PORT}\n{bulk}"
        )
        world.node.start("haproxy", "-db", "-f", str(folder / "haproxy.cfg"), log=folder / "log")
        services = ", ".join(world.service_addresses)
        world.node.run(
            "nft",
            "-f",
            "-",
            text=f"table ip haproxy {{ chain prerouting {{ type nat hook prerouting priority dstnat;\n"
            f"ip daddr {{ {services} }} tcp dport {SERVICE_PORT} redirect to :{_HAPROXY_PORT}\n"
            f"ip daddr {{ {services} }} tcp dport {BULK_PORT} redirect to :{_HAPROXY_BULK_PORT}\n}}\n}}\n",
        )


@dataclass(frozen=True, slots=True)
class Subject:
    name: str
    proxy: Proxy
    service: bool
    """Clients use service addresses; else the pods' own."""
    references: tuple[str, ...] = ("bare",)
    """What its new connections are compared with; everything else is compared with `bare` alone."""
    udp: bool = True
    userspace: bool = False
    cgroup: bool = False
    """It serves the sockets of a cgroup, so the client is in one."""
    tracked: bool | None = None
    """Whether the node must track its connections for it to be what it is called; None: either will do."""

    def targets(self, world: World, port: int = HTTP_PORT) -> list[str]:
        """`address:port`, one for each client address; a port of the pods that services have as well."""
        if self.service:
            return [f"{a}:{SERVICE_PORT if port == HTTP_PORT else port}" for a in world.service_addresses]
        return [f"{address}:{port}" for address in world.backend_addresses]


_NFTABLES, _EBPF = EngineProxy("nftables"), EngineProxy("ebpf")
_BOTH = ("bare", "direct")
SUBJECTS = (
    Subject("bare", Nothing(), service=False, references=(), tracked=False),
    Subject("direct", _NFTABLES, service=False, tracked=True),
    Subject("direct-ebpf", _EBPF, service=False, references=_BOTH, cgroup=True),
    Subject("ebpf", _EBPF, service=True, references=(*_BOTH, "direct-ebpf"), cgroup=True),
    Subject("nftables", _NFTABLES, service=True, references=_BOTH, tracked=True),
    Subject("haproxy", Haproxy(), service=True, references=_BOTH, udp=False, userspace=True),
    Subject("userspace", EngineProxy("userspace"), service=True, references=_BOTH, userspace=True),
)
BY_NAME = {subject.name: subject for subject in SUBJECTS}


def available() -> list[str]:
    """What can be compared here besides the references."""
    return [subject.name for subject in SUBJECTS if subject.service]


def choose(names: list[str]) -> list[Subject]:
    """The subjects called so and what they are compared with. Raises BenchError for an unknown one."""
    for name in names:
        if name not in available():
            raise BenchError(f"nothing to compare is called {name!r}; there are {', '.join(available())}")
    wanted = {*names, *(reference for name in names for reference in BY_NAME[name].references)}
    return [subject for subject in SUBJECTS if subject.name in wanted]


def wait_ready(subject: Subject, world: World) -> None:
    """Returns once every target takes connections, and has verified that they are tracked, or not, as the subject's
    name has it. Raises BenchError."""
    wait_answering(world, world.node, backends(world))
    wait_answering(world, world.client, subject.targets(world))
    if subject.tracked is not None:
        _verify_tracked(subject, world)


def wait_answering(world: World, namespace: Namespace, targets: list[str]) -> None:
    """Returns once every target takes connections from there. Raises BenchError."""
    deadline = time.monotonic() + READY_SECONDS
    while (silent := _first_silent(namespace, targets)) and time.monotonic() < deadline:
        time.sleep(0.05)
    if silent:
        raise BenchError(f"{world.subject}: {silent} does not answer; {world.logs()}")


def backends(world: World) -> list[str]:
    return [f"{address}:{HTTP_PORT}" for address in world.backend_addresses]


def _verify_tracked(subject: Subject, world: World) -> None:
    """With one connection a target: a comparison must not quietly cease to be what it is called."""
    forget(world)
    targets = subject.targets(world)
    wait_answering(world, world.client, targets)
    entries = tracking(world).entries
    if bool(subject.tracked) != (entries >= len(targets)) or (entries and not subject.tracked):
        wanted = "each is to be" if subject.tracked else "none is to be"
        raise BenchError(
            f"{subject.name}: of {len(targets)} connections the node tracks {entries}, while {wanted} tracked for the "
            f"figures to mean what the name says: look at what `nft list ruleset` has in the node's namespace"
        )


def check_alive(subject: Subject, world: World) -> None:
    """Raises BenchError where a target or a backend has stopped to take connections."""
    # Processes of their own, since an engine may serve only those of the client's cgroup. The node asks the backends:
    # the client's addresses are not to reach them in two ways.
    silent = _first_silent(world.client, subject.targets(world)) or _first_silent(world.node, backends(world))
    if silent:
        raise BenchError(f"{subject.name}: {silent} does not answer any more; {world.logs()}")


def _first_silent(namespace: Namespace, targets: list[str]) -> str:
    """The first target that takes no connection; "" where all do."""
    return namespace.run(sys.executable, "-c", _PROBE, *targets).strip()


_PROBE = """
import socket, sys
for target in sys.argv[1:]:
    address, port = target.split(":")
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex((address, int(port))):
            print(target)
            break
"""
