"""The long-lived requests to dockerd, over its unix socket and the event loop: events, logs, exec, stop, pull.

The docker SDK blocks a thread for as long as a request lasts, and for a hijacked exec it loses bytes that arrive
together with the response's headers. Requests that may last seconds or for ever therefore go through here: they hold no
thread and end at once when their task is cancelled. Source: Docker Engine API v1.41.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import aiohttp

from .plugins import ImagePullFailure, RuntimeFailure, RuntimeUnreachable

_HEADER = 8
_CHUNK = 65536


def split_image(image: str) -> tuple[str, str]:
    """Repository and tag (or digest) of an image reference; the tag defaults to `latest`.

    >>> split_image("registry:5000/web")
    ('registry:5000/web', 'latest')
    """
    if "@" in image:
        repository, _, digest = image.partition("@")
        return repository, digest
    head, _, tail = image.rpartition(":")
    if head and "/" not in tail:
        return head, tail
    return image, "latest"


async def frames_of(reader: Reader) -> AsyncGenerator[tuple[int, bytes], None]:
    """Splits docker's multiplexed stream: 1 byte stream, 3 bytes zero, 4 bytes length big-endian, then the data."""
    while header := await read_exactly_or_end(reader, _HEADER):
        size = int.from_bytes(header[4:8], "big")
        if size:
            yield (2 if header[0] == 2 else 1), await reader.readexactly(size)


Reader = asyncio.StreamReader | aiohttp.StreamReader


async def read_exactly_or_end(reader: Reader, size: int) -> bytes:
    """`size` bytes, or b"" at the end of the stream (a partial frame is the end too)."""
    try:
        return await reader.readexactly(size)
    except asyncio.IncompleteReadError:
        return b""


class EngineStreams:
    """Streaming requests to one dockerd. Methods raise RuntimeFailure; RuntimeUnreachable when dockerd is away."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._session: aiohttp.ClientSession | None = None

    def _http(self) -> aiohttp.ClientSession:
        # Made on first use, since aiohttp wants a running loop.
        if self._session is None or self._session.closed:
            connector = aiohttp.UnixConnector(path=self._socket, limit=0)
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
            self._session = aiohttp.ClientSession("http://docker", connector=connector, timeout=timeout)
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def unreachable(self, error: BaseException) -> RuntimeUnreachable:
        why = str(error) or type(error).__name__
        return RuntimeUnreachable(f"dockerd at {self._socket} does not answer: {why}; check that it runs")

    @asynccontextmanager
    async def request(
        self, method: str, path: str, subject: str, params: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An open response. Raises RuntimeFailure naming `subject` for a status of 400 and above."""
        try:
            async with self._http().request(method, path, params=params or {}) as response:
                if response.status >= 400:
                    raise RuntimeFailure(f"{subject}: {await _message(response)}")
                yield response
        except (aiohttp.ClientError, OSError) as error:
            raise self.unreachable(error) from error

    async def ping(self) -> None:
        """Returns when dockerd answers."""
        async with self.request("GET", "/_ping", "dockerd") as response:
            await response.read()

    async def stop(self, container_id: str, grace_seconds: float) -> None:
        """Stop signal, then SIGKILL after the grace period (whole seconds, rounded up). Gone or dead is no error."""
        grace = max(0, int(grace_seconds + 0.999))
        path = f"/containers/{container_id}/stop"
        try:
            async with self._http().post(path, params={"t": str(grace)}) as response:
                if response.status >= 400 and response.status != 404:
                    raise RuntimeFailure(f"container {container_id[:12]} cannot be stopped: {await _message(response)}")
        except (aiohttp.ClientError, OSError) as error:
            raise self.unreachable(error) from error

    async def events(self, filters: Mapping[str, Sequence[str]], since: float) -> AsyncGenerator[dict[str, Any], None]:
        """Docker's events from `since` (Unix time) on. Raises RuntimeUnreachable when the stream ends."""
        params = {"filters": json.dumps({key: list(value) for key, value in filters.items()}), "since": f"{since:.9f}"}
        async with self.request("GET", "/events", "events", params) as response:
            async for line in response.content:
                if line.strip():
                    yield json.loads(line)
        raise RuntimeUnreachable(f"the event stream of dockerd at {self._socket} ended: dockerd stopped")

    async def logs(self, container_id: str, params: Mapping[str, str], *, tty: bool) -> AsyncGenerator[bytes, None]:
        """Output of a container, both streams merged."""
        path = f"/containers/{container_id}/logs"
        wanted = {"stdout": "1", "stderr": "1", **params}
        async with self.request("GET", path, f"logs of container {container_id[:12]}", wanted) as response:
            if tty:
                async for chunk in response.content.iter_any():
                    yield chunk
                return
            async for _, data in frames_of(response.content):
                yield data

    async def pull(self, image: str) -> None:
        """Pulls an image. Raises ImagePullFailure naming image and cause."""
        repository, tag = split_image(image)
        try:
            async with self.request(
                "POST", "/images/create", f"image {image}", {"fromImage": repository, "tag": tag}
            ) as response:
                async for line in response.content:
                    error = json.loads(line).get("error") if line.strip() else None
                    if error:
                        raise ImagePullFailure(_pull_message(image, str(error)))
        except RuntimeUnreachable:
            raise
        except ImagePullFailure:
            raise
        except RuntimeFailure as error:
            raise ImagePullFailure(_pull_message(image, str(error))) from error

    async def hijack(self, path: str, body: Mapping[str, Any], subject: str) -> Hijacked:
        """POSTs and takes the connection over as a raw duplex stream."""
        payload = json.dumps(body).encode()
        head = (
            f"POST {quote(path)} HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(payload)}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
        )
        try:
            reader, writer = await asyncio.open_unix_connection(self._socket)
        except OSError as error:
            raise self.unreachable(error) from error
        try:
            writer.write(head.encode() + payload)
            await writer.drain()
            answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status = int(answer.split(" ", 2)[1])
            if status not in (101, 200):
                # The error's body is short; what matters is there as soon as the headers are.
                text = (await reader.read(_CHUNK)).decode(errors="replace").strip()
                raise RuntimeFailure(f"{subject}: {text}")
        except (OSError, asyncio.IncompleteReadError) as error:
            writer.close()
            raise self.unreachable(error) from error
        except BaseException:
            writer.close()
            raise
        return Hijacked(reader, writer)


class Hijacked:
    """A raw duplex connection to a process."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self._writer = writer

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def close_write(self) -> None:
        if self._writer.can_write_eof() and not self._writer.is_closing():
            self._writer.write_eof()

    def close(self) -> None:
        self._writer.close()


async def _message(response: aiohttp.ClientResponse) -> str:
    text = await response.text()
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text.strip() or f"dockerd answered {response.status}"


def _pull_message(image: str, cause: str) -> str:
    return (
        f"image {image} is not on this node and cannot be pulled: {cause}; "
        f"check the name and the way to its registry, or load the image with `docker load` or `docker import`"
    )
