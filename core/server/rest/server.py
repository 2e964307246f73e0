"""Listening sockets and TLS of the REST face."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web

from .app import RestApp
from .context import Face

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10.0
FIRST_REQUEST_SECONDS = 30.0
"""How long a new connection may take to send the head of its first request."""
KEEPALIVE_SECONDS = 120.0
MAX_LINE = 64 * 1024
"""Bytes of a request line: a label selector may be long."""
MAX_HEADER = 32 * 1024
BACKLOG = 512


class ListenError(Exception):
    """A listening address cannot be used; the message names it, the cause and the fix."""


def tls_context(cert: Path, key: Path, ca: Path) -> ssl.SSLContext:
    """TLS 1.2 or newer; a client certificate is optional, but one of another CA ends the handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert, key)
    context.load_verify_locations(ca)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.set_alpn_protocols(["http/1.1"])
    context.sslobject_class = _AlertingTls
    return context


class _AlertingTls(ssl.SSLObject):
    """Lets a client whose certificate is refused read why.

    asyncio drops the connection as soon as the handshake raises, with OpenSSL's alert still unsent, and clients take
    that for a network fault and try again. Asking for more data once makes it flush the alert first.
    """

    _refused = False

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLCertVerificationError as error:
            if self._refused:
                raise
            self._refused = True
            raise ssl.SSLWantReadError("the alert is to be sent") from error


class RestServer:
    """Serves a face on any number of sockets. `start`, then `stop`; both once."""

    def __init__(self, face: Face, context: ssl.SSLContext) -> None:
        self.face = face
        self._context = context
        self._app = RestApp(face)
        self._runner = web.AppRunner(
            self._app.application(),
            access_log=None,
            handle_signals=False,
            handler_cancellation=True,
            keepalive_timeout=KEEPALIVE_SECONDS,
            max_line_size=MAX_LINE,
            max_field_size=MAX_HEADER,
        )
        self._servers: list[asyncio.Server] = []

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Serves on bound sockets (`listen`, `inherit`), which belong to the server from now on."""
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        for listener in sockets:
            listener.setblocking(False)
            server = await loop.create_server(
                self._connection,
                sock=listener,
                ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
                backlog=BACKLOG,
            )
            self._servers.append(server)

    async def stop(self, grace: float = 2.0) -> None:
        """Stops listening, ends watches, lets requests and writes in progress finish within `grace` seconds."""
        for server in self._servers:
            server.close()
        self.face.end_streams()
        if self.face.writes:
            await asyncio.wait(set(self.face.writes), timeout=grace)
        # The application's own wait for open connections is short: whatever still runs had its grace above.
        if self._runner.server is not None:
            await self._runner.server.shutdown(timeout=0.5)
        await self._runner.cleanup()

    def _connection(self) -> asyncio.BaseProtocol:
        server = self._runner.server
        if server is None:
            raise RuntimeError("the REST face is not set up")
        handler = server()
        self._app.silent.add(handler)
        asyncio.get_running_loop().call_later(FIRST_REQUEST_SECONDS, self._close_silent, handler)
        return handler

    def _close_silent(self, handler: web.RequestHandler) -> None:
        if handler in self._app.silent:
            self._app.silent.discard(handler)
            if handler.transport is not None:
                handler.transport.close()


def inherit(descriptor: int) -> socket.socket:
    """The bound TCP socket behind an inherited file descriptor. Raises ListenError."""
    try:
        listener = socket.socket(fileno=descriptor)
        if listener.type != socket.SOCK_STREAM or listener.getsockname()[1] == 0:
            raise ListenError(f"file descriptor {descriptor} is no bound TCP socket")
    except OSError as error:
        raise ListenError(f"file descriptor {descriptor} is no socket: {error.strerror or error}") from error
    return listener


def listen(host: str, port: int) -> socket.socket:
    """A bound TCP socket; port 0 takes a free one. Raises ListenError."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
    except OSError as error:
        raise ListenError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        fix = "; stop what uses the port or choose another with --port" if error.errno == 98 else ""
        raise ListenError(f"cannot listen on {host}:{port}: {error.strerror}{fix}") from error
    return listener
