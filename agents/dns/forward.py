"""Asking upstream servers for names that are not the cluster's.

Each question over UDP has a socket of its own: connected, so that the kernel drops strangers' datagrams, and on a port
that the kernel chose at random. An answer is taken only when it carries the question's id and the question itself
(RFC 5452). The server that answered last is asked first, so a dead one delays one question and not all of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)

ATTEMPT_SECONDS = 1.5
MOST_AT_ONCE = 512
"""Questions under way upstream; more are refused, so that a dead upstream cannot fill the memory."""


class UpstreamFailed(Exception):
    """No upstream server answered; the message names them."""


def upstreams_of(path: Path, own: Sequence[str]) -> list[str]:
    """The nameservers of a resolv.conf (resolv.conf(5)), without this server's own addresses."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    words = [line.split() for line in lines]
    return [line[1] for line in words if len(line) > 1 and line[0] == "nameserver" and line[1] not in own]


class Forwarder:
    """Sends a query on as it came; the answer goes back unchanged."""

    def __init__(self, servers: Sequence[str], port: int = 53) -> None:
        self._servers = tuple(servers)
        self._port = port
        self._slots = asyncio.Semaphore(MOST_AT_ONCE)
        self._first = 0

    async def ask(self, data: bytes, *, udp: bool) -> bytes:
        """Raises UpstreamFailed when there is no server, none answers, or too many questions are under way."""
        if not self._servers:
            raise UpstreamFailed("no upstream nameserver is configured on this node")
        if self._slots.locked():
            raise UpstreamFailed(f"{MOST_AT_ONCE} questions wait for {', '.join(self._servers)} already")
        async with self._slots:
            first = self._first
            for number in range(first, first + len(self._servers)):
                server = self._servers[number % len(self._servers)]
                try:
                    async with asyncio.timeout(ATTEMPT_SECONDS):
                        answer = await (self._ask_udp(server, data) if udp else self._ask_tcp(server, data))
                    self._first = number % len(self._servers)
                    return answer
                except (OSError, TimeoutError) as error:
                    log.info("upstream %s did not answer: %r", server, error)
        raise UpstreamFailed(f"no answer from {', '.join(self._servers)}")

    async def _ask_udp(self, server: str, data: bytes) -> bytes:
        answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Answer(answered, data), remote_addr=(server, self._port)
        )
        try:
            transport.sendto(data)
            return await answered
        finally:
            transport.close()

    async def _ask_tcp(self, server: str, data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(server, self._port)
        try:
            writer.write(len(data).to_bytes(2, "big") + data)
            answer = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
            if not answers(data, answer):
                raise ConnectionError(f"{server} answered another question")
            return answer
        except asyncio.IncompleteReadError as error:
            raise ConnectionError(f"{server} closed the connection") from error
        finally:
            writer.close()


def answers(query: bytes, answer: bytes) -> bool:
    """Whether a message answers this very query. A refusal may leave the question out."""
    if len(answer) < 12 or answer[:2] != query[:2] or not answer[2] & 0x80:
        return False
    if answer[4:6] == b"\0\0" and answer[3] & 0x0F:
        return True
    return _question(answer).lower() == _question(query).lower()


def _question(message: bytes) -> bytes:
    """The bytes of the first question: labels up to the root, type and class."""
    end = 12
    while end < len(message) and message[end]:
        end += 1 + message[end]
    return message[12 : end + 5]


class _Answer(asyncio.DatagramProtocol):
    """Takes the first datagram that answers the query; the connected socket keeps strangers out."""

    def __init__(self, answered: asyncio.Future[bytes], query: bytes) -> None:
        self._answered = answered
        self._query = query

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not self._answered.done() and answers(self._query, data):
            self._answered.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self._answered.done():
            self._answered.set_exception(exc)
