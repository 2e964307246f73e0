"""rtnetlink's notifications (rtnetlink(7)), reduced to "something we depend on may have changed".

pyroute2's listener decodes every message into an object tree and, when the kernel reports lost notifications (ENOBUFS),
closes itself without telling whoever waits for it. Here a notification costs a look at a few bytes, most are dropped at
once (on a busy node neighbours of other links change state all the time), and lost notifications count as a change,
since what was lost is unknown.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

log = logging.getLogger(__name__)

RTM_NEWLINK, RTM_DELLINK = 16, 17
RTM_NEWADDR, RTM_DELADDR = 20, 21
RTM_NEWROUTE, RTM_DELROUTE = 24, 25
RTM_NEWNEIGH, RTM_DELNEIGH = 28, 29
_GROUPS = 0x1 | 0x4 | 0x10 | 0x40  # RTMGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE
_RTA_DST, _RTA_OIF = 1, 4
_HEADER, _INDEX, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=i"), struct.Struct("=HH")
_RTMSG_BYTES = 12
_BUFFER_BYTES = 1 << 20
_READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Notice:
    """One notification: what kind of message, about which link, and for routes to which IPv4 prefix."""

    type: int
    index: int
    destination: str = ""
    """`10.244.2.0/24`; "" for what is no route."""


def parse(data: bytes) -> Iterator[Notice]:
    """The notices in one datagram; what is cut short or of another type is left out."""
    start = 0
    while start + _HEADER.size <= len(data):
        length, kind = _HEADER.unpack_from(data, start)[:2]
        body = data[start + _HEADER.size : start + length]
        if kind in (RTM_NEWROUTE, RTM_DELROUTE):
            yield _route(kind, body)
        elif RTM_NEWLINK <= kind <= RTM_DELNEIGH and len(body) >= 8:
            # ifinfomsg, ifaddrmsg and ndmsg all hold the link's index at their second word.
            yield Notice(kind, _INDEX.unpack_from(body, 4)[0])
        start += max(_aligned(length), _HEADER.size)


def _route(kind: int, body: bytes) -> Notice:
    index, address = 0, b"\0\0\0\0"
    start = _RTMSG_BYTES
    while start + _ATTRIBUTE.size <= len(body):
        length, attribute = _ATTRIBUTE.unpack_from(body, start)
        value = body[start + _ATTRIBUTE.size : start + length]
        if attribute == _RTA_OIF and len(value) == 4:
            index = _INDEX.unpack(value)[0]
        elif attribute == _RTA_DST and len(value) == 4:
            address = value
        start += max(_aligned(length), _ATTRIBUTE.size)
    prefix = body[1] if len(body) > 1 else 0
    return Notice(kind, index, f"{socket.inet_ntoa(address)}/{prefix}")


def _aligned(length: int) -> int:
    return (length + 3) & ~3


class KernelEvents:
    """Calls `on_change` for the notices that `concerns` picks, and whenever notices were lost.

    Opened in the network namespace of the calling thread; needs a running event loop. A context manager.
    """

    def __init__(self, concerns: Callable[[Notice], bool], on_change: Callable[[], None]) -> None:
        self._concerns = concerns
        self._on_change = on_change
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )

    def __enter__(self) -> Self:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            self._socket.bind((0, _GROUPS))
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._read)
        except BaseException:
            self._socket.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()

    def _read(self) -> None:
        concerned = False
        while True:
            try:
                data = self._socket.recv(_READ_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                log.info("rtnetlink notifications were lost, everything is compared")
                concerned = True
                continue
            concerned = concerned or any(self._concerns(notice) for notice in parse(data))
        if concerned:
            self._on_change()
