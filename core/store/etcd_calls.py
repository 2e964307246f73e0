"""Unary calls to etcd: which endpoint, how long, and what its errors mean."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar
from urllib.parse import parse_qs, urlsplit

import grpc
import grpc.aio

from kernelet.proto import etcd_pb2 as pb
from kernelet.proto import etcd_pb2_grpc as rpc

from .contract import StoreError, StoreUnavailable

M = TypeVar("M")
WatchCall: TypeAlias = "grpc.aio.StreamStreamCall[pb.WatchRequest, pb.WatchResponse]"

CALL_SECONDS = 5.0
LIST_SECONDS = 30.0
_OPTIONS = [
    # A page of values or a batch of a watch may exceed gRPC's default of 4 MiB.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # etcd closes connections that ping more often than each 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    # One connection per store: two stores of a process do not share their fate.
    ("grpc.use_local_subchannel_pool", 1),
]
_FIXES = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: "compact and defragment it, then clear the alarm with `etcdctl alarm disarm`",
    grpc.StatusCode.UNAUTHENTICATED: "give a client certificate that it accepts",
    grpc.StatusCode.PERMISSION_DENIED: "let this client's role read and write the store's prefix",
}
_DEFAULT_FIX = "check that it runs, has a quorum and can be reached from here"


class OutOfRange(StoreError):
    """etcd's OUT_OF_RANGE: the revision is compacted, or in the future."""


@dataclass(frozen=True)
class Address:
    """A store's URL, taken apart."""

    url: str
    endpoints: tuple[str, ...]
    root: str
    """What every key is prefixed with in etcd; begins with `/`, does not end with one, or is empty."""
    credentials: grpc.ChannelCredentials | None

    @classmethod
    def parse(cls, url: str) -> Address:
        """Reads `etcd[s]://host:port[,host:port][?prefix=/kernelet&ca=FILE&cert=FILE&key=FILE]`.

        Raises ValueError for a malformed URL and StoreUnavailable for a file that cannot be read.
        """
        parts = urlsplit(url)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        unknown = query.keys() - {"prefix", "ca", "cert", "key"}
        if unknown or parts.path not in ("", "/"):
            wrong = ", ".join(sorted(unknown)) or parts.path
            raise ValueError(f"store {url!r}: {wrong} means nothing here; use ?prefix=, ca=, cert=, key=")
        endpoints = tuple(part for part in parts.netloc.split(",") if part)
        if not endpoints or not all(part.rpartition(":")[2].isdecimal() for part in endpoints):
            raise ValueError(f"store {url!r}: no host:port; use {parts.scheme}://127.0.0.1:2379")
        root = query.get("prefix", "/kernelet").rstrip("/")
        if root and not root.startswith("/"):
            raise ValueError(f"store {url!r}: prefix {root!r} does not start with '/'")
        credentials = _credentials(url, query) if parts.scheme == "etcds" else None
        return cls(url, endpoints, root, credentials)


def _credentials(url: str, query: dict[str, str]) -> grpc.ChannelCredentials:
    def content(name: str) -> bytes | None:
        return Path(query[name]).read_bytes() if name in query else None

    try:
        return grpc.ssl_channel_credentials(content("ca"), content("key"), content("cert"))
    except OSError as error:
        raise StoreUnavailable(f"store {url}: cannot read {error.filename}: {error.strerror}") from error


class Calls:
    """Channels to every endpoint of one etcd; a call goes to the first which is not known to be down."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._channels = [self._channel(endpoint) for endpoint in address.endpoints]
        self._kv = [rpc.KVStub(channel) for channel in self._channels]
        self._watch = [rpc.WatchStub(channel) for channel in self._channels]
        self._current = 0
        self._closed = False

    def _channel(self, endpoint: str) -> grpc.aio.Channel:
        if self.address.credentials is None:
            return grpc.aio.insecure_channel(endpoint, options=_OPTIONS)
        return grpc.aio.secure_channel(endpoint, self.address.credentials, options=_OPTIONS)

    async def close(self) -> None:
        self._closed = True
        for channel in self._channels:
            await channel.close(None)

    async def range(self, request: pb.RangeRequest) -> pb.RangeResponse:
        """Reads are repeated on each other endpoint before they fail. Raises OutOfRange, StoreUnavailable."""
        seconds = LIST_SECONDS if request.range_end else CALL_SECONDS
        for _ in self._channels[1:]:
            try:
                return await self._call(lambda kv: kv.Range(request, timeout=seconds))
            except StoreUnavailable:
                continue
        return await self._call(lambda kv: kv.Range(request, timeout=seconds))

    async def txn(self, request: pb.TxnRequest) -> pb.TxnResponse:
        """Never repeated: whether a failed one was applied is unknown. Raises StoreUnavailable."""
        return await self._call(lambda kv: kv.Txn(request, timeout=CALL_SECONDS))

    async def put(self, request: pb.PutRequest) -> pb.PutResponse:
        return await self._call(lambda kv: kv.Put(request, timeout=CALL_SECONDS))

    async def compact(self, request: pb.CompactionRequest) -> pb.CompactionResponse:
        """Raises OutOfRange when it is done already or in the future."""
        return await self._call(lambda kv: kv.Compact(request, timeout=LIST_SECONDS))

    def watch(self) -> tuple[str, WatchCall]:
        """Opens a watch stream: the endpoint and the call. `hasleader` makes etcd end it when its member is cut off."""
        index = self._pick()
        return self.address.endpoints[index], self._watch[index].Watch(None, metadata=(("hasleader", "true"),))

    def failed(self, endpoint: str, error: grpc.aio.AioRpcError) -> StoreError:
        """The store's error for a failed call; the next call goes elsewhere if the endpoint was the reason."""
        code = error.code()
        message = f"etcd at {endpoint}: {error.details() or code.name} ({code.name})"
        if code is grpc.StatusCode.OUT_OF_RANGE:
            return OutOfRange(message)
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return StoreError(message)
        is_current = endpoint == self.address.endpoints[self._current]
        if is_current and code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            self._current = (self._current + 1) % len(self._channels)
        return StoreUnavailable(f"{message}: {_FIXES.get(code, _DEFAULT_FIX)}")

    async def _call(self, start: Callable[[rpc.KVAsyncStub], Awaitable[M]]) -> M:
        if self._closed:
            raise StoreUnavailable(f"store {self.address.url} is closed")
        index = self._pick()
        try:
            return await start(self._kv[index])
        except grpc.aio.AioRpcError as error:
            raise self.failed(self.address.endpoints[index], error) from error

    def _pick(self) -> int:
        for _ in self._channels:
            state = self._channels[self._current].get_state(try_to_connect=True)
            if state is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                break
            self._current = (self._current + 1) % len(self._channels)
        return self._current
