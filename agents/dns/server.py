"""The DNS server of one node: UDP and TCP on one address, fed by informers."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import cast

from dnslib import RCODE

from .answers import Answerer, Malformed, failure, pack, parse
from .forward import Forwarder, UpstreamFailed

log = logging.getLogger(__name__)

TCP_IDLE_SECONDS = 10.0
MOST_TCP_CONNECTIONS = 256


class DnsServer:
    """Serves until closed. Answers of the zone are made at once, without a task; forwarded ones in a task each."""

    def __init__(self, answerer: Answerer, forwarder: Forwarder) -> None:
        self._answerer = answerer
        self._forwarder = forwarder
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport: asyncio.DatagramTransport | None = None
        self._server: asyncio.Server | None = None
        self._connections = asyncio.Semaphore(MOST_TCP_CONNECTIONS)
        self.port = 0

    async def start(self, address: str, port: int = 53) -> None:
        """Listens on both protocols; port 0 takes any, the same for both. Raises OSError naming the address."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await asyncio.start_server(self._serve_tcp, address, port)
            self.port = int(self._server.sockets[0].getsockname()[1])
            self._transport, _ = await loop.create_datagram_endpoint(
                lambda: _Datagrams(self), local_addr=(address, self.port)
            )
        except OSError as error:
            await self.close()
            raise OSError(error.errno, f"DNS server on {address}:{port}: {error.strerror}") from error

    async def close(self) -> None:
        """Stops listening and drops what is under way."""
        if self._transport is not None:
            self._transport.close()
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def datagram(self, data: bytes, peer: tuple[str, int], transport: asyncio.DatagramTransport) -> None:
        """One query over UDP."""
        reply = self._own_answer(data, udp=True)
        if reply is not None:
            transport.sendto(reply, peer)
            return

        async def forward() -> None:
            transport.sendto(await self._forwarded(data, udp=True), peer)

        task = asyncio.create_task(forward())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _own_answer(self, data: bytes, *, udp: bool) -> bytes | None:
        try:
            query = parse(data)
        except Malformed as error:
            log.debug("unreadable query: %s", error)
            return failure(data, RCODE.FORMERR)
        reply = self._answerer.answer(query)
        return None if reply is None else pack(query, reply, udp=udp)

    async def _forwarded(self, data: bytes, *, udp: bool) -> bytes:
        try:
            return await self._forwarder.ask(data, udp=udp)
        except UpstreamFailed as error:
            log.info("query not forwarded: %s", error)
            return failure(data, RCODE.SERVFAIL)

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Queries with a length before each (RFC 7766), until the client leaves or is idle."""
        try:
            async with self._connections:
                with suppress(asyncio.IncompleteReadError, TimeoutError, ConnectionError):
                    while True:
                        async with asyncio.timeout(TCP_IDLE_SECONDS):
                            size = int.from_bytes(await reader.readexactly(2), "big")
                            data = await reader.readexactly(size)
                        reply = self._own_answer(data, udp=False) or await self._forwarded(data, udp=False)
                        writer.write(len(reply).to_bytes(2, "big") + reply)
                        await writer.drain()
        finally:
            writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self._transport is not None:
            self._server.datagram(data, addr, self._transport)

    def error_received(self, exc: Exception) -> None:
        log.debug("a client could not be answered: %s", exc)
