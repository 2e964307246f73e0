"""The client on plain JSON objects: any kind, nothing lost, no models. For the command line and generic controllers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from kernelet.core.api import codec
from kernelet.core.api.errors import JSON, from_status
from kernelet.core.api.kinds import Kind
from kernelet.core.client.calls import MERGE_PATCH, Calls, Options, Page, delete_options
from kernelet.core.client.transport import Transport
from kernelet.proto import registry_pb2 as pb

Patch = JSON | list[JSON]
"""A merge or strategic merge patch, or the operations of a JSON patch."""

NO_OPTIONS = Options()


@dataclass(frozen=True, slots=True)
class RawListing:
    items: list[JSON]
    revision: int
    continue_: str = ""
    """Asks for the next page; "" after the last."""
    remaining: int = 0


@dataclass(frozen=True, slots=True)
class RawEvent:
    type: str
    """ADDED, MODIFIED, DELETED or BOOKMARK."""
    object: JSON
    revision: int


@dataclass(frozen=True, slots=True)
class LogOptions:
    """Which part of a log: `tail_lines` -1 is all; zero seconds or bytes is no limit."""

    container: str = ""
    follow: bool = False
    previous: bool = False
    timestamps: bool = False
    tail_lines: int = -1
    since_seconds: int = 0
    limit_bytes: int = 0


@dataclass(frozen=True, slots=True)
class TerminalSize:
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class ExecOutput:
    """A piece of a command's output, or, at the end, its exit code."""

    stdout: bytes = b""
    stderr: bytes = b""
    exit_code: int | None = None


class RawClient:
    """One method a verb; every one raises the exceptions of core.api.errors. `namespace` is "" for all namespaces."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._calls = Calls(transport)

    async def get(self, kind: Kind, name: str, namespace: str = "", *, subresource: str = "") -> JSON:
        return codec.decode(await self._calls.get(kind, name, namespace, subresource))

    async def list(self, kind: Kind, namespace: str = "", *, labels: str = "", fields: str = "") -> RawListing:
        """The whole collection, asked for page by page."""
        return _listing(await self._calls.list(kind, namespace, labels, fields))

    async def page(
        self,
        kind: Kind,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        limit: int = 0,
        continue_: str = "",
    ) -> RawListing:
        """One page of a collection. Raises Expired when `continue_` is too old."""
        return _listing(await self._calls.page(kind, namespace, labels, fields, limit, continue_))

    async def create(self, kind: Kind, obj: JSON, namespace: str = "", options: Options = NO_OPTIONS) -> JSON:
        """Raises AlreadyExists, Invalid."""
        namespace = namespace or _metadata(obj, "namespace")
        return codec.decode(await self._calls.create(kind, namespace, codec.encode(obj), options))

    async def update(
        self, kind: Kind, obj: JSON, namespace: str = "", options: Options = NO_OPTIONS, *, subresource: str = ""
    ) -> JSON:
        """Replaces the object of this name. Raises Conflict when its resourceVersion is no longer current."""
        namespace, name = namespace or _metadata(obj, "namespace"), _metadata(obj, "name")
        return codec.decode(await self._calls.update(kind, namespace, name, codec.encode(obj), subresource, options))

    async def patch(
        self,
        kind: Kind,
        name: str,
        patch: Patch,
        namespace: str = "",
        *,
        subresource: str = "",
        media_type: str = MERGE_PATCH,
        options: Options = NO_OPTIONS,
    ) -> JSON:
        data = codec.encode(patch)
        return codec.decode(await self._calls.patch(kind, namespace, name, data, media_type, subresource, options))

    async def delete(
        self,
        kind: Kind,
        name: str,
        namespace: str = "",
        *,
        grace_period: int | None = None,
        propagation: str = "",
        uid: str = "",
        resource_version: str = "",
        dry_run: bool = False,
    ) -> JSON:
        """The object as it was last seen (it may stay until its finalizers and its grace period are over), or a Status.

        Raises NotFound; Conflict when `uid` or `resource_version` is not the object's.
        """
        options = delete_options(grace_period, propagation, uid, resource_version, dry_run)
        return codec.decode(await self._calls.delete(kind, namespace, name, options))

    async def delete_collection(
        self,
        kind: Kind,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        grace_period: int | None = None,
        propagation: str = "",
    ) -> RawListing:
        options = delete_options(grace_period, propagation, "")
        return _listing(await self._calls.delete_collection(kind, namespace, labels, fields, options))

    async def watch(
        self,
        kind: Kind,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        resource_version: str = "",
        bookmarks: bool = False,
        send_initial_events: bool = False,
    ) -> AsyncGenerator[RawEvent, None]:
        """Changes after `resource_version`; "" begins with ADDED for all that exists.

        Runs until closed (use contextlib.aclosing where the loop may be left early). Raises Expired when the version
        is too old, ServiceUnavailable when the connection is lost.
        """
        stream = self._calls.watch(kind, namespace, labels, fields, resource_version, bookmarks, send_initial_events)
        async with aclosing(stream) as events:
            async for event in events:
                obj = codec.decode(event.data) if event.data else {}
                if event.type == "ERROR":
                    raise from_status(obj)
                yield RawEvent(event.type, obj, event.revision)

    async def bind(self, namespace: str, name: str, uid: str, node: str) -> None:
        """Assigns a pod to a node. Raises Conflict when it is bound already or `uid` is another pod's."""
        await self._calls.bind(namespace, name, uid, node)

    async def node_document(self, node: str, path: str) -> JSON:
        """A JSON document of a node's kubelet, such as `routes`. Raises NotFound, ServiceUnavailable naming the node.

        Asked once: a node that is down takes seconds to be found so, and would be asked until the deadline is over.
        """
        ref = pb.Ref(version="v1", resource="nodes", name=node, subresource=f"proxy/{path}")
        answer = await self._transport.call(self._transport.registry.Get, pb.GetRequest(ref=ref), idempotent=False)
        return codec.decode(answer.json)

    async def logs(self, namespace: str, name: str, options: LogOptions) -> AsyncGenerator[bytes, None]:
        """A container's log, in pieces as they come."""
        request = pb.LogsRequest(
            namespace=namespace,
            name=name,
            container=options.container,
            follow=options.follow,
            previous=options.previous,
            timestamps=options.timestamps,
            tail_lines=options.tail_lines,
            since_seconds=options.since_seconds,
            limit_bytes=options.limit_bytes,
        )
        call = self._transport.registry.Logs(request, metadata=self._transport.metadata)
        async with aclosing(self._transport.stream(call)) as chunks:
            async for chunk in chunks:
                yield chunk.data

    async def exec(
        self,
        namespace: str,
        name: str,
        command: Sequence[str],
        *,
        container: str = "",
        tty: bool = False,
        stdin: AsyncIterator[bytes | TerminalSize] | None = None,
    ) -> AsyncGenerator[ExecOutput, None]:
        """Runs a command in a container; the last output carries the exit code.

        `stdin` yields bytes to send and, for a terminal, its new sizes; None: the command reads nothing.
        """
        start = pb.ExecStart(
            namespace=namespace, name=name, container=container, command=command, stdin=stdin is not None, tty=tty
        )
        call = self._transport.registry.Exec(_exec_frames(start, stdin), metadata=self._transport.metadata)
        async with aclosing(self._transport.stream(call)) as frames:
            async for frame in frames:
                match frame.WhichOneof("frame"):
                    case "stdout":
                        yield ExecOutput(stdout=frame.stdout)
                    case "stderr":
                        yield ExecOutput(stderr=frame.stderr)
                    case "exit_code":
                        yield ExecOutput(exit_code=frame.exit_code)

    async def sign_node(self, csr_pem: bytes) -> tuple[bytes, bytes]:
        """A node's certificate for its signing request, and the CA's; for clients of group system:bootstrappers."""
        request = pb.SignNodeRequest(csr_pem=csr_pem)
        answer = await self._transport.call(self._transport.bootstrap.SignNode, request, idempotent=True)
        return bytes(answer.certificate_pem), bytes(answer.ca_pem)


async def _exec_frames(
    start: pb.ExecStart, stdin: AsyncIterator[bytes | TerminalSize] | None
) -> AsyncGenerator[pb.ExecInput, None]:
    yield pb.ExecInput(start=start)
    if stdin is None:
        return
    async for piece in stdin:
        if isinstance(piece, TerminalSize):
            yield pb.ExecInput(resize=pb.TerminalSize(width=piece.width, height=piece.height))
        else:
            yield pb.ExecInput(stdin=piece)
    yield pb.ExecInput(stdin_closed=True)


def _listing(page: Page) -> RawListing:
    return RawListing([codec.decode(item) for item in page.items], page.revision, page.continue_, page.remaining)


def _metadata(obj: JSON, key: str) -> str:
    return str((obj.get("metadata") or {}).get(key) or "")
