"""Requests made by the tests themselves, from a socket in the network namespace of a pod, a node or an outsider."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import dnslib

from .cluster import Space, address_of, inside
from .manifests import STATS_PORT

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: Any


def _open(where: str, kind: socket.SocketKind) -> socket.socket:
    made: socket.socket = inside(where, lambda: socket.socket(socket.AF_INET, kind))
    return made


def _get(where: str, host: str, port: int, path: str, seconds: float) -> Answer:
    with _open(where, socket.SOCK_STREAM) as sock:
        sock.settimeout(seconds)
        sock.connect((host, port))
        connection = http.client.HTTPConnection(host, port)
        connection.sock = sock
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        return Answer(answer.status, json.loads(answer.read()))


async def get(where: str, host: str, port: int = 80, path: str = "/", seconds: float = 5.0) -> Answer:
    """One GET over a new connection from the namespace at path `where`. Raises OSError."""
    return await asyncio.to_thread(_get, where, host, port, path, seconds)


def _greeting(where: str, host: str, port: int) -> str:
    with _open(where, socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        sock.connect((host, port))
        return str(sock.makefile().readline())


async def greeting(where: str, host: str, port: int) -> str:
    """The first line that a server says."""
    return await asyncio.to_thread(_greeting, where, host, port)


def _datagram(where: str, host: str, port: int, data: bytes, seconds: float) -> bytes:
    with _open(where, socket.SOCK_DGRAM) as sock:
        sock.settimeout(seconds)
        sock.connect((host, port))
        sock.send(data)
        return sock.recv(4096)


async def ask_udp(where: str, host: str, port: int = 80, seconds: float = 5.0) -> JSON:
    """One datagram to a test server and its answer."""
    found: JSON = json.loads(await asyncio.to_thread(_datagram, where, host, port, b"?", seconds))
    return found


async def resolve(where: str, server: str, name: str, kind: str = "A") -> dnslib.DNSRecord:
    """The answer of a DNS server to one question."""
    question = dnslib.DNSRecord.question(name, kind)
    return dnslib.DNSRecord.parse(await asyncio.to_thread(_datagram, where, server, 53, question.pack(), 5.0))


@dataclass(slots=True)
class Report:
    """What image/load.py tells."""

    sent: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    kept_sent: int = 0
    kept_failed: int = 0
    kept_failures: list[str] = field(default_factory=list)
    reconnects: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    slowest: float = 0.0
    seconds: float = 0.0


class Load:
    """A load pod that runs. It is asked over the network: no API server and no kubelet is needed for that."""

    def __init__(self, space: Space, pod: JSON) -> None:
        self._where = space.cluster.node_netns(pod["spec"]["nodeName"])
        self.node: str = pod["spec"]["nodeName"]
        self._address = address_of(pod)

    async def reset(self) -> Report:
        return await self._ask("/reset")

    async def report(self) -> Report:
        return await self._ask("/")

    async def _ask(self, path: str) -> Report:
        return Report(**(await get(self._where, self._address, STATS_PORT, path)).body)

    async def more(self, requests: int, seconds: float = 60.0) -> Report:
        """Waits until this many more requests were sent; the report."""
        wanted = (await self.report()).sent + requests
        async with asyncio.timeout(seconds):
            return await self._until(lambda report: report.sent >= wanted)

    async def lasts(self, seconds: float) -> Report:
        """Waits until the load has been sending for this long since its reset; the report."""
        return await self._until(lambda report: report.seconds >= seconds)

    async def _until(self, holds: Callable[[Report], bool]) -> Report:
        while True:
            report = await self.report()
            if holds(report):
                return report
            await asyncio.sleep(0.1)
