"""One exec in a container, as plugins.ExecStream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from .docker_streams import Hijacked, frames_of

_CHUNK = 65536


class DockerExec:
    """An exec over its hijacked connection; the connection's end is the process's end."""

    def __init__(
        self,
        link: Hijacked,
        *,
        tty: bool,
        resize: Callable[[int, int], Awaitable[None]],
        exit_code: Callable[[], Awaitable[int]],
    ) -> None:
        self._link = link
        self._tty = tty
        self._resize = resize
        self._exit_code = exit_code

    async def frames(self) -> AsyncGenerator[tuple[int, bytes], None]:
        if self._tty:
            while data := await self._link.reader.read(_CHUNK):
                yield 1, data
            return
        async with aclosing(frames_of(self._link.reader)) as frames:
            async for frame in frames:
                yield frame

    async def write(self, data: bytes) -> None:
        await self._link.write(data)

    async def close_stdin(self) -> None:
        self._link.close_write()

    async def resize(self, width: int, height: int) -> None:
        await self._resize(width, height)

    async def wait(self) -> int:
        return await self._exit_code()

    async def close(self) -> None:
        self._link.close()


class FinishedExec:
    """An exec that could not start: its message on standard error and an exit code, as a shell would give."""

    def __init__(self, code: int, message: str) -> None:
        self._code = code
        self._message = message

    async def frames(self) -> AsyncGenerator[tuple[int, bytes], None]:
        yield 2, f"{self._message}\n".encode()

    async def write(self, data: bytes) -> None:
        return None

    async def close_stdin(self) -> None:
        return None

    async def resize(self, width: int, height: int) -> None:
        return None

    async def wait(self) -> int:
        return self._code

    async def close(self) -> None:
        return None
