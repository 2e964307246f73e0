"""The way from the API server to a kubelet: logs and other documents over HTTPS, exec over WebSocket.

Both faces use it: the REST face passes a client's WebSocket frames through unchanged, the gRPC face translates them.
Frames are those of subprotocol v5.channel.k8s.io (KEP-4006): first byte the channel (0 stdin, 1 stdout, 2 stderr,
3 error Status, 4 resize), and [255, n] closes channel n.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

SUBPROTOCOL = "v5.channel.k8s.io"
STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255


@dataclass(frozen=True)
class NodeTarget:
    """A node's kubelet."""

    node: str
    host: str
    port: int


@dataclass(frozen=True)
class ContainerTarget(NodeTarget):
    """A container and the kubelet that runs it."""

    namespace: str
    pod: str
    container: str


@dataclass(frozen=True)
class Document:
    """What a kubelet answered."""

    body: bytes
    content_type: str


@dataclass(frozen=True)
class LogQuery:
    """None or False: parameter not given."""

    follow: bool = False
    previous: bool = False
    timestamps: bool = False
    tail_lines: int | None = None
    since_seconds: int | None = None
    limit_bytes: int | None = None


@dataclass(frozen=True)
class ExecQuery:
    command: tuple[str, ...]
    stdin: bool = False
    stdout: bool = True
    stderr: bool = True
    tty: bool = False
    attach: bool = False
    """Attach to the container's own process in place of running `command`."""


class ExecSession(Protocol):
    """An open exec: raw frames both ways. Iteration ends when the kubelet closes."""

    async def send(self, frame: bytes) -> None: ...

    def __aiter__(self) -> AsyncIterator[bytes]: ...


class NodeProxy(Protocol):
    """Reaches kubelets. Raises ServiceUnavailable naming node and address when one cannot be reached."""

    async def read(self, target: NodeTarget, path: str, query: str = "") -> Document:
        """GET of a path of the kubelet's endpoint, whole; the kubelet's own errors are raised as ApiError."""
        ...

    def logs(self, target: ContainerTarget, query: LogQuery) -> AsyncGenerator[bytes, None]:
        """Chunks of the container's log; the kubelet's own errors (404, 400) are raised as ApiError."""
        ...

    def exec(self, target: ContainerTarget, query: ExecQuery) -> AbstractAsyncContextManager[ExecSession]: ...
