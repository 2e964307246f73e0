"""The engine contract: how a node's kernel is made to route services. One contract suite runs over every engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Protocol

from ..routes import Delta


class EngineError(Exception):
    """The kernel refused a change, or lacks what an engine needs; the message names object, cause and fix."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What an engine needs to know of its node."""

    node: str
    pod_cidrs: tuple[IPv4Network | IPv6Network, ...]
    """This node's own pod subnets."""
    cluster_cidrs: tuple[IPv4Network | IPv6Network, ...]
    """All pods' addresses: what is not masqueraded among itself."""
    service_cidrs: tuple[IPv4Network | IPv6Network, ...]
    cgroups: tuple[Path, ...] = ()
    """Folders in the cgroup2 hierarchy, made where they are missing, below which the node's pods are: the ebpf engine
    serves the sockets in there that are in another network namespace than the node's."""
    host_cgroup: Path | None = None
    """The folder, the root as a rule, below which the ebpf engine serves sockets in the node's network namespace."""
    pins: Path | None = None
    """Where the ebpf engine pins maps and links; None: /sys/fs/bpf/kernelet/<node>."""
    max_map_entries: int = 1 << 22
    """No map of the ebpf engine grows beyond this."""
    max_remembered: int = 1 << 16
    """Connections whose service the ebpf engine can tell (getpeername(2)), and four times the clients whose affinity it
    remembers: the oldest go first."""

    @property
    def own_addresses(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """The node's own addresses among the pods', which are never a pod's: of each of its subnets the subnet's own
        address, where an overlay's tunnel ends, and the first, the gateway."""
        return tuple(network[index] for network in self.pod_cidrs for index in (0, 1))


@dataclass(frozen=True, slots=True)
class Counter:
    """Kernel counters of one service since it was programmed."""

    service: str
    connections: int
    packets: int
    bytes: int
    refusals: int = 0
    """Connections refused as there was no backend, where the engine counts them."""


class Engine(Protocol):
    """Methods block (a changed element takes well below a millisecond); call them from one thread."""

    name: str

    def start(self) -> None:
        """Makes the kernel ready (base ruleset) keeping the routes that it holds. Raises EngineError."""
        ...

    def apply(self, delta: Delta) -> None:
        """Brings the kernel from the delta's base to its version, all or nothing.

        A snapshot is compared with what the kernel holds, and only the difference is written. Raises EngineError and
        then holds the version it held before.
        """
        ...

    def tidy(self) -> None:
        """Does what `apply` left for after the acknowledgement: nothing that decides where a new connection goes.

        It ends connection attempts to backends that are gone and never answered, so that they start anew.
        """
        ...

    def restore(self) -> frozenset[tuple[bytes, int, int, bytes, int]]:
        """What the kernel holds, read back: (cluster IP, protocol, port, backend address, backend port)."""
        ...

    def repair(self) -> int:
        """Compares the kernel with the table last applied and mends it; returns how many elements differed."""
        ...

    async def watch_foreign_changes(self, on_change: Callable[[], None]) -> None:
        """Calls `on_change` whenever another process has changed what this engine programmed; until cancelled."""
        ...

    def counters(self) -> list[Counter]: ...

    def close(self, *, keep: bool = True) -> None:
        """Releases this process's resources; with keep=False also removes everything from the kernel."""
        ...
