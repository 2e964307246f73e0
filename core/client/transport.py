"""The channel to the API server: TLS, deadlines, retries and errors, below any knowledge of kinds.

A call that did not reach the server, or whose answer was lost, ends in UNAVAILABLE. Reads and idempotent writes are
tried again until their deadline, with a growing pause. Other writes (a create, a JSON patch) are sent at most once:
they wait for a connection first (gRPC's wait-for-ready), so that a restarting server does not fail them.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio

from kernelet.core.api.errors import ApiError, ServiceUnavailable
from kernelet.core.client.config import ClientConfig
from kernelet.core.client.status import DETAILS_KEY, from_rpc_error
from kernelet.proto.registry_pb2_grpc import BootstrapStub, RegistryStub

SERVER_NAME = "kernelet-apiserver"
"""The name in the server's certificate that holds wherever the server is reached from."""

MESSAGE_LIMIT = 64 * 1024 * 1024
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 1.0

Metadata = tuple[tuple[str, str], ...]
Request = TypeVar("Request", contravariant=True)
Answer = TypeVar("Answer", covariant=True)
Item = TypeVar("Item")


class UnaryMethod(Protocol[Request, Answer]):
    """A stub's unary method, of the asynchronous kind."""

    def __call__(
        self, request: Request, /, *, timeout: float | None, metadata: Metadata, wait_for_ready: bool | None
    ) -> Awaitable[Answer]: ...


class StreamCall(Protocol[Answer]):
    """A running server stream."""

    def __aiter__(self) -> AsyncIterator[Answer]: ...

    def cancel(self) -> bool: ...


class Transport:
    """One gRPC channel, which connects on first use and again whenever the connection is lost.

    Must be made inside a running event loop, and closed.
    """

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self._metadata: Metadata = (("authorization", f"Bearer {config.token}"),) if config.token else ()
        credentials = grpc.ssl_channel_credentials(config.ca_pem, config.key_pem or None, config.cert_pem or None)
        self._channel = grpc.aio.secure_channel(config.address, credentials, options=_channel_options(config))
        # The generated stubs type themselves for the blocking channel too; at run time the channel decides.
        self.registry: Any = RegistryStub(self._channel)
        self.bootstrap: Any = BootstrapStub(self._channel)

    async def close(self) -> None:
        """Ends every running call and the connection."""
        await self._channel.close(grace=None)

    async def call(
        self, method: UnaryMethod[Request, Answer], request: Request, *, idempotent: bool, timeout: float | None = None
    ) -> Answer:
        """Raises the ApiError of the server's status; ServiceUnavailable where none came before the deadline."""
        deadline = time.monotonic() + (self.config.timeout if timeout is None else timeout)
        retries = 0
        unreachable: ApiError | None = None
        while True:
            try:
                left = max(deadline - time.monotonic(), 0.001)
                # The first read fails fast, to learn why; later ones go out the moment the connection is back.
                wait = not idempotent or retries > 0
                return await method(request, timeout=left, metadata=self._metadata, wait_for_ready=wait)
            except grpc.aio.AioRpcError as error:
                failure = self._api_error(error, unreachable)
                pause = self._pause(retries)
                may_retry = idempotent and error.code() is grpc.StatusCode.UNAVAILABLE
                if not may_retry or time.monotonic() + pause >= deadline:
                    raise failure from error
                unreachable = failure
            await asyncio.sleep(pause)
            retries += 1

    async def stream(self, call: StreamCall[Item]) -> AsyncGenerator[Item, None]:
        """The messages of a server stream, which is cancelled when the reader leaves.

        Close it (contextlib.aclosing) where the loop may be left early. Raises as `call`.
        """
        try:
            async for item in call:
                yield item
        except grpc.aio.AioRpcError as error:
            raise self._api_error(error, None) from error
        finally:
            call.cancel()

    @property
    def metadata(self) -> Metadata:
        """What every call carries: the bearer token, if any."""
        return self._metadata

    def _api_error(self, error: grpc.aio.AioRpcError, earlier: ApiError | None) -> ApiError:
        """A deadline that ran out while the server could not be reached is told as the latter."""
        failure = from_rpc_error(error)
        if error.code() is grpc.StatusCode.UNAVAILABLE and not _has_status(error):
            return self._unreachable(error.details() or "connection lost")
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not _has_status(error):
            if earlier is not None:
                return earlier
            if self._channel.get_state() is not grpc.ChannelConnectivity.READY:
                return self._unreachable("no connection before the deadline")
        return failure

    def _unreachable(self, cause: str) -> ServiceUnavailable:
        return ServiceUnavailable(
            f"the API server at {self.config.address} cannot be reached: {cause}; is it running, and does its "
            "certificate belong to this cluster?"
        )

    @staticmethod
    def _pause(retries: int) -> float:
        return min(FIRST_PAUSE * 2.0**retries, LONGEST_PAUSE) * random.uniform(0.5, 1.0)


def _has_status(error: grpc.aio.AioRpcError) -> bool:
    """Whether the server itself answered: its errors carry a Status, the channel's own do not."""
    entries: Any = error.trailing_metadata()  # Typed as something that cannot be looked into; it is pairs.
    return any(key == DETAILS_KEY for key, _ in entries or ())


def _channel_options(config: ClientConfig) -> list[tuple[str, Any]]:
    name = config.server_name or (SERVER_NAME if config.address.startswith("unix:") else "")
    options: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", MESSAGE_LIMIT),
        ("grpc.max_receive_message_length", MESSAGE_LIMIT),
        # A peer that vanished without a FIN (a powered-off host) is noticed, by default in 15 s. The ping timeout is
        # for the pings gRPC measures the link with: while one is unanswered (for 60 s), no keepalive one is sent.
        ("grpc.keepalive_time_ms", int(config.keepalive * 1000)),
        ("grpc.keepalive_timeout_ms", int(config.keepalive * 500)),
        ("grpc.http2.ping_timeout_ms", int(config.keepalive * 500)),
        # A watch sends nothing for hours: without this, pings would stop after the second.
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.min_reconnect_backoff_ms", 5_000),  # How long one attempt may take, despite its name.
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.primary_user_agent", config.user_agent),
    ]
    if name:
        options.append(("grpc.ssl_target_name_override", name))
    return options
