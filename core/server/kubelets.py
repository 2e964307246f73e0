"""The NodeProxy over aiohttp: HTTPS for logs, WebSocket for exec.

A kubelet proves its identity by a certificate of the cluster's CA that holds the node's name: the address it is
reached at may be any. The API server shows the certificate `kernelet-apiserver`.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import aiohttp
import msgspec
from yarl import URL

from ..api import errors
from .nodeproxy import SUBPROTOCOL, ContainerTarget, Document, ExecQuery, ExecSession, LogQuery, NodeTarget

CONNECT_SECONDS = 5.0
HEARTBEAT_SECONDS = 30.0
READ_SECONDS = 30.0
SILENT_SECONDS = 5.0
_DOCUMENT_BYTES = 48 * 1024 * 1024
_ERROR_BYTES = 64 * 1024
_BY_CODE: dict[int, type[errors.ApiError]] = {
    400: errors.BadRequest,
    401: errors.Unauthorized,
    403: errors.Forbidden,
    404: errors.NotFound,
    503: errors.ServiceUnavailable,
}


class KubeletProxy:
    """A NodeProxy with one connection pool; `async with` or `close`."""

    def __init__(self, ca: Path, cert: Path, key: Path) -> None:
        """PEM files: the CA that signed the kubelets' certificates, and this server's client certificate."""
        self._tls = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(ca))
        self._tls.load_cert_chain(cert, key)
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
            self._http = aiohttp.ClientSession(timeout=timeout, auto_decompress=False)
        return self._http

    async def read(self, target: NodeTarget, path: str, query: str = "") -> Document:
        """Raises ServiceUnavailable, also for an answer that does not end, or the kubelet's own error."""
        url = URL.build(scheme="https", host=target.host, port=target.port, path=f"/{path}", query_string=query)
        # A kept connection to a node that lost its power takes the request, and nothing ever comes back.
        timeout = aiohttp.ClientTimeout(total=READ_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS)
        try:
            async with self._session().get(
                url, ssl=self._tls, server_hostname=target.node, timeout=timeout, allow_redirects=False
            ) as response:
                if response.status != 200:
                    raise _refusal(response.status, await response.content.read(_ERROR_BYTES), target)
                body = bytearray()
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > _DOCUMENT_BYTES:
                        raise _unreachable(target, ValueError(f"its answer is over {_DOCUMENT_BYTES} bytes"))
                return Document(bytes(body), response.content_type)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _unreachable(target, error) from error

    async def logs(self, target: ContainerTarget, query: LogQuery) -> AsyncGenerator[bytes, None]:
        """Chunks as they arrive. Raises ServiceUnavailable, or the kubelet's own error."""
        url = _url("https", target, "containerLogs", _log_parameters(query))
        try:
            async with self._session().get(url, ssl=self._tls, server_hostname=target.node) as response:
                if response.status != 200:
                    raise _refusal(response.status, await response.content.read(_ERROR_BYTES), target)
                async for chunk in response.content.iter_any():
                    yield chunk
        except aiohttp.ClientError as error:
            raise _unreachable(target, error) from error

    @asynccontextmanager
    async def exec(self, target: ContainerTarget, query: ExecQuery) -> AsyncIterator[ExecSession]:
        """An open WebSocket. Raises ServiceUnavailable, or the kubelet's own error."""
        url = _url("wss", target, "attach" if query.attach else "exec", _exec_parameters(query))
        try:
            socket = await self._session().ws_connect(
                url,
                protocols=(SUBPROTOCOL,),
                ssl=self._tls,
                server_hostname=target.node,
                heartbeat=HEARTBEAT_SECONDS,
                max_msg_size=0,
            )
        except aiohttp.WSServerHandshakeError as error:
            raise _refusal(error.status, error.message.encode(), target) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _unreachable(target, error) from error
        async with socket:
            yield _Session(socket, target)


class _Session:
    """The ExecSession of one WebSocket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, target: ContainerTarget) -> None:
        self._socket = socket
        self._target = target

    async def send(self, frame: bytes) -> None:
        try:
            await self._socket.send_bytes(frame)
        except (aiohttp.ClientError, ConnectionError) as error:
            raise _unreachable(self._target, error) from error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for message in self._socket:
            if message.type is aiohttp.WSMsgType.BINARY:
                yield message.data
            elif message.type is aiohttp.WSMsgType.ERROR:
                raise _unreachable(self._target, self._socket.exception())


def _url(scheme: str, target: ContainerTarget, what: str, query: list[tuple[str, str]]) -> URL:
    path = f"/{what}/{target.namespace}/{target.pod}/{target.container}"
    return URL.build(scheme=scheme, host=target.host, port=target.port, path=path).with_query(query)


def _log_parameters(query: LogQuery) -> list[tuple[str, str]]:
    flags = {"follow": query.follow, "previous": query.previous, "timestamps": query.timestamps}
    found = [(name, "true") for name, value in flags.items() if value]
    numbers = {"tailLines": query.tail_lines, "sinceSeconds": query.since_seconds, "limitBytes": query.limit_bytes}
    return found + [(name, str(value)) for name, value in numbers.items() if value is not None]


def _exec_parameters(query: ExecQuery) -> list[tuple[str, str]]:
    flags = {"input": query.stdin, "output": query.stdout, "error": query.stderr, "tty": query.tty}
    return [("command", part) for part in query.command] + [(name, str(int(value))) for name, value in flags.items()]


def _refusal(code: int, body: bytes, target: NodeTarget) -> errors.ApiError:
    """The kubelet's error: its Status where it sent one, else its text."""
    try:
        status = msgspec.json.decode(body)
    except msgspec.DecodeError:
        status = None
    if isinstance(status, dict) and status.get("kind") == "Status":
        return errors.from_status(status)
    text = body.decode(errors="replace").strip() or f"HTTP status {code}"
    kind = _BY_CODE.get(code, errors.InternalError)
    name, resource = _subject(target)
    return kind(f"kubelet of node {target.node}: {text}", name=name, resource=resource)


def _subject(target: NodeTarget) -> tuple[str, str]:
    """Name and resource of what could not be reached."""
    return (target.pod, "pods") if isinstance(target, ContainerTarget) else (target.node, "nodes")


def _unreachable(target: NodeTarget, error: BaseException | None) -> errors.ServiceUnavailable:
    name, resource = _subject(target)
    return errors.ServiceUnavailable(
        f"the kubelet of node {target.node} at {target.host}:{target.port} cannot be reached: {error or 'no answer'}; "
        "check that the node is up",
        name=name,
        resource=resource,
    )
