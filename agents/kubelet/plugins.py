"""What the kubelet plugs in: a container runtime, a network, volumes. Small protocols, so that each is replaceable."""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lightkube.models.core_v1 import Pod


class RuntimeFailure(Exception):
    """The runtime refused; the message names the container or image, the cause and the fix."""


class ImagePullFailure(RuntimeFailure):
    """An image is neither present nor to be had; shown as ErrImagePull, then ImagePullBackOff."""


class RuntimeUnreachable(RuntimeFailure):
    """The runtime itself does not answer; the node turns NotReady."""


class ContainerState(enum.Enum):
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class Mount:
    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """What the kubelet asks a runtime to create."""

    name: str
    """Unique in the runtime; creating a name that exists already returns the existing container."""
    image: str
    labels: Mapping[str, str]
    command: Sequence[str] = ()
    """Replaces the image's entrypoint when not empty."""
    args: Sequence[str] = ()
    working_dir: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    mounts: Sequence[Mount] = ()
    cpu_shares: int = 2
    cpu_quota: int = 0
    """Microseconds per 100 ms period; 0: no limit."""
    memory_limit: int = 0
    """Bytes; 0: no limit."""
    sandbox: str = ""
    """Id of the pause container whose network and IPC are shared; "" for a pause container itself."""
    hostname: str = ""
    host_network: bool = False
    privileged: bool = False
    read_only_root: bool = False
    user: str = ""
    """`uid[:gid]`; "" leaves it to the image."""
    groups: Sequence[int] = ()
    """Supplementary group ids."""
    share_processes: bool = False
    """Joins the sandbox's process namespace."""
    host_pid: bool = False
    no_new_privileges: bool = False
    add_capabilities: Sequence[str] = ()
    drop_capabilities: Sequence[str] = ()
    tty: bool = False
    stdin: bool = False
    oom_score_adj: int = 0


@dataclass(frozen=True, slots=True)
class ContainerStatus:
    id: str
    name: str
    labels: Mapping[str, str]
    state: ContainerState
    pid: int
    """0 when not running."""
    image: str
    image_id: str
    created_at: str
    started_at: str
    finished_at: str
    exit_code: int
    oom_killed: bool
    error: str = ""
    """Why the container could not start; "" where it did."""


@dataclass(frozen=True, slots=True)
class ExecResult:
    exit_code: int
    output: bytes


class ExecStream(Protocol):
    """A running exec: frames out, bytes in."""

    def frames(self) -> AsyncGenerator[tuple[int, bytes], None]:
        """(1, stdout bytes) or (2, stderr bytes), until the process ends."""
        ...

    async def write(self, data: bytes) -> None: ...
    async def close_stdin(self) -> None: ...
    async def resize(self, width: int, height: int) -> None: ...
    async def wait(self) -> int:
        """The exit code."""
        ...

    async def close(self) -> None: ...


class Runtime(Protocol):
    """A container runtime. Every coroutine has a deadline of its own and raises RuntimeFailure."""

    async def version(self) -> str: ...
    async def list(self, labels: Mapping[str, str]) -> list[ContainerStatus]: ...
    async def inspect(self, container_id: str) -> ContainerStatus | None: ...
    async def create(self, spec: ContainerSpec) -> str: ...
    async def start(self, container_id: str) -> None: ...
    async def stop(self, container_id: str, grace_seconds: float) -> None:
        """SIGTERM (or the image's stop signal), then SIGKILL after the grace period; returns once it is dead."""
        ...

    async def remove(self, container_id: str) -> None: ...
    async def exec(self, container_id: str, command: Sequence[str], deadline: float) -> ExecResult: ...
    async def exec_stream(self, container_id: str, command: Sequence[str], *, stdin: bool, tty: bool) -> ExecStream: ...
    def logs(
        self, container_id: str, *, follow: bool, timestamps: bool, tail_lines: int, since_seconds: int
    ) -> AsyncGenerator[bytes, None]:
        """Standard output and error, merged. `tail_lines` < 0: all; `since_seconds` 0: from the start."""
        ...

    async def has_image(self, image: str) -> bool: ...
    async def pull(self, image: str) -> None: ...
    def events(self, labels: Mapping[str, str]) -> AsyncGenerator[str, None]:
        """Ids of containers that ended or were removed, as it happens. Ends with RuntimeFailure with the runtime."""
        ...

    async def close(self) -> None: ...


class PodAddresses(Protocol):
    """What a pod got from the network; a network may return any object of this shape."""

    @property
    def addresses(self) -> tuple[str, ...]: ...
    @property
    def gateway(self) -> str: ...


@dataclass(frozen=True, slots=True)
class PodNetworkStatus:
    """PodAddresses as plain data."""

    addresses: tuple[str, ...]
    gateway: str


class PodNetwork(Protocol):
    """Wires a pod's network namespace. Idempotent: `attach` of an attached pod returns what it has."""

    async def start(self) -> None: ...
    async def attach(self, pod_id: str, pid: int) -> PodAddresses:
        """Gives the network namespace of process `pid` an address and the way out. What it raises becomes an Event."""
        ...

    async def detach(self, pod_id: str) -> None:
        """Removes the pod's link and releases its address; no error when it is gone already."""
        ...

    async def reconcile(self, pod_ids: frozenset[str]) -> None:
        """After a restart: releases what belongs to pods that are not in `pod_ids`."""
        ...

    async def close(self, *, keep: bool = True) -> None: ...


class RouteWaiter(Protocol):
    """Says when no node sends new connections to a pod any more."""

    async def wait_withdrawn(self, pod: Pod, deadline: float) -> None:
        """Returns once every live node's routes are without the pod. Raises TimeoutError after `deadline` seconds."""
        ...


class NoRoutes:
    """A RouteWaiter for a node without a route feed: nothing to wait for."""

    async def wait_withdrawn(self, pod: Pod, deadline: float) -> None:
        return None
