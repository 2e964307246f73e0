"""The DNS server of one node: UDP and TCP on one address, fed by informers.

An answer from the zone is made in the callback that brought the query, with no task and no wait. A name that is not the
cluster's, or that a service of type ExternalName leads to, is asked upstream in a task each; how many there may be is
bounded by the forwarder, which refuses the rest at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, cast

from dnslib import QTYPE, DNSError, DNSRecord

from .answers import Answer, Answerer, Malformed, pack, parse, servfail
from .forward import Forwarder, UpstreamFailed

log = logging.getLogger(__name__)

TCP_IDLE_SECONDS = 10.0
MOST_TCP_CONNECTIONS = 256


class DnsServer:
    """Serves until closed. Answers of the zone are made at once, without a task; forwarded ones in a task each."""

    def __init__(self, answerer: Answerer, forwarder: Forwarder) -> None:
        self._answerer = answerer
        self._forwarder = forwarder
        self._tasks: set[asyncio.Task[Any]] = set()
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
        """Stops listening, closes connections and drops what is under way."""
        if self._transport is not None:
            self._transport.close()
        if self._server is not None:
            self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def datagram(self, data: bytes, peer: tuple[str, int], transport: asyncio.DatagramTransport) -> None:
        """One query over UDP."""
        reply = self._answer(data, udp=True)
        if not isinstance(reply, bytes):
            self._own(asyncio.create_task(self._send_later(reply, peer, transport)))
        elif reply:
            transport.sendto(reply, peer)

    def _own(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @staticmethod
    async def _send_later(
        reply: Coroutine[Any, Any, bytes], peer: tuple[str, int], transport: asyncio.DatagramTransport
    ) -> None:
        data = await reply
        if not transport.is_closing():
            transport.sendto(data, peer)

    def _answer(self, data: bytes, *, udp: bool) -> bytes | Coroutine[Any, Any, bytes]:
        """What to answer, now or later; b"" for nothing."""
        try:
            query = parse(data)
        except Malformed as error:
            log.debug("unreadable query: %s", error)
            return error.reply
        answer = self._answerer.answer(query)
        if answer is None:
            return self._forwarded(data, query, udp=udp)
        if answer.alias:
            return self._with_alias(query, answer, udp=udp)
        return pack(query, answer.reply, udp=udp)

    async def _forwarded(self, data: bytes, query: DNSRecord, *, udp: bool) -> bytes:
        try:
            return await self._forwarder.ask(data, udp=udp)
        except UpstreamFailed as error:
            log.info("query not forwarded: %s", error)
            return servfail(query)

    async def _with_alias(self, query: DNSRecord, answer: Answer, *, udp: bool) -> bytes:
        """The answer, completed by what upstream knows of the name it leads to."""
        question = DNSRecord.question(answer.alias, QTYPE[query.q.qtype])
        data = bytes(question.pack())
        try:
            found = DNSRecord.parse(await self._forwarder.ask(data, udp=udp))
            if found.header.tc and udp:
                found = DNSRecord.parse(await self._forwarder.ask(data, udp=False))
        except (UpstreamFailed, DNSError) as error:
            log.info("alias not followed name=%s: %s", answer.alias, error)
            return servfail(query)
        answer.reply.add_answer(*found.rr)
        answer.reply.header.rcode = found.header.rcode
        return pack(query, answer.reply, udp=udp)

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Queries with a length before each (RFC 7766), until the client leaves, is idle or does not read."""
        task = asyncio.current_task()
        assert task is not None
        self._own(task)
        try:
            if self._connections.locked():
                return
            async with self._connections:
                with suppress(asyncio.IncompleteReadError, TimeoutError, ConnectionError):
                    while await self._serve_query(reader, writer):
                        pass
        except asyncio.CancelledError:
            log.debug("connection closed with the server")  # Cancelled by close() alone, which waits for it.
        finally:
            writer.close()

    async def _serve_query(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether to go on: not after something that gets no answer."""
        async with asyncio.timeout(TCP_IDLE_SECONDS):
            size = int.from_bytes(await reader.readexactly(2), "big")
            data = await reader.readexactly(size)
        reply = self._answer(data, udp=False)
        if not isinstance(reply, bytes):
            reply = await reply
        if not reply:
            return False
        writer.write(len(reply).to_bytes(2, "big") + reply)
        async with asyncio.timeout(TCP_IDLE_SECONDS):
            await writer.drain()
        return True


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
