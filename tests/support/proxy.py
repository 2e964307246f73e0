"""A TCP proxy that can cut its connections: a network that fails, on one machine."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class FaultyProxy:
    """Forwards to 127.0.0.1:`target`. While cut, open connections hang, as behind a dead link; new ones are refused."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.port = 0

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for pipe in self._pipes:
            pipe.cancel()
        if self._pipes:
            await asyncio.wait(self._pipes)

    def cut(self) -> None:
        """Nothing passes any more; nobody is told."""
        self._flowing.clear()
        if self._server is not None:
            self._server.close()
            self._server = None

    def strand(self) -> None:
        """Open connections hang for ever, new ones work: as after a host's sudden restart."""
        self._flowing.clear()
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def mend(self) -> None:
        await self._listen()
        self._flowing.set()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        for source, sink in ((reader, there_writer), (there_reader, writer)):
            task = asyncio.create_task(self._pipe(source, sink, self._flowing))
            self._pipes.add(task)
            task.add_done_callback(self._pipes.discard)

    async def _pipe(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, flowing: asyncio.Event) -> None:
        try:
            while data := await source.read(65536):
                await flowing.wait()
                sink.write(data)
                await sink.drain()
        except OSError:
            return  # The other side is gone, and so is this pipe.
        finally:
            sink.close()
