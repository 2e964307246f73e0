"""Connection tracking entries: where a flow was translated to, and their deletion by that.

See linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ._nft import NetlinkError, Socket

_GET = 1 << 8 | 1
_DELETE = 1 << 8 | 2
_TUPLE_ORIGINAL, _TUPLE_REPLY, _STATUS, _ID, _ZONE, _STATUS_MASK = 1, 2, 3, 12, 18, 26
_SEEN_REPLY = 1 << 1
_TUPLE_IP, _TUPLE_PROTOCOL = 1, 2
_NESTED = 0x8000


@dataclass(frozen=True, slots=True)
class Flow:
    """One tracked flow: where the client sent it, and who answers. Addresses are packed; ports in host order."""

    protocol: int
    destination: bytes
    destination_port: int
    reply_source: bytes
    reply_source_port: int
    answered: bool
    """A packet of the other side has been seen."""


def _attributes(payload: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(payload):
        length, kind = struct.unpack_from("=HH", payload, at)
        if length < 4:
            return
        yield kind & 0x3FFF, payload[at + 4 : at + length]
        at += (length + 3) & ~3


def _endpoint(tuple_: bytes, source: bool) -> tuple[int, bytes, int]:
    """(protocol, address, port) of one end of a tuple."""
    parts = dict(_attributes(tuple_))
    addresses = dict(_attributes(parts[_TUPLE_IP]))
    transport = dict(_attributes(parts[_TUPLE_PROTOCOL]))
    address = next((addresses[kind] for kind in ((1, 3) if source else (2, 4)) if kind in addresses), b"")
    port = transport.get(2 if source else 3, b"\0\0")
    return transport[1][0], address, struct.unpack(">H", port)[0]


def _flow(original: bytes, reply: bytes, status: bytes) -> Flow:
    protocol, destination, port = _endpoint(original, source=False)
    _, reply_source, reply_port = _endpoint(reply, source=True)
    answered = bool(int.from_bytes(status, "big") & _SEEN_REPLY)
    return Flow(protocol, destination, port, reply_source, reply_port, answered)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) & 3)


def find_flow(
    socket: Socket, family: int, protocol: int, source: tuple[bytes, int], destination: tuple[bytes, int]
) -> Flow | None:
    """The flow that began with a packet from `source` to `destination`, each an address and a port; one lookup.

    None where nothing of it is tracked. Raises NetlinkError.
    """
    kinds = (1, 2) if len(source[0]) == 4 else (3, 4)
    addresses = _attribute(kinds[0], source[0]) + _attribute(kinds[1], destination[0])
    ports = _attribute(1, bytes((protocol,))) + b"".join(
        _attribute(kind, struct.pack(">H", end[1])) for kind, end in ((2, source), (3, destination))
    )
    tuple_ = _attribute(_TUPLE_IP | _NESTED, addresses) + _attribute(_TUPLE_PROTOCOL | _NESTED, ports)
    try:
        body = socket.get(_GET, family, _attribute(_TUPLE_ORIGINAL | _NESTED, tuple_))
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    values = dict(_attributes(body[4:]))
    return _flow(values[_TUPLE_ORIGINAL], values[_TUPLE_REPLY], values.get(_STATUS, b""))


def delete_flows(socket: Socket, family: int, match: Callable[[Flow], bool], *, only_unanswered: bool = False) -> int:
    """Deletes the tracked flows of a family that `match` accepts; returns how many. Raises NetlinkError.

    Reads the whole table of the family (about 2 microseconds an entry), so call it for rare events only, or with
    `only_unanswered`: then the kernel (since 5.19; older ones send all) sends none that got an answer. An entry is
    deleted by its id, so one that expired and whose tuple was taken by a new flow since is left alone.
    """
    deleted = 0
    wanted = b""
    if only_unanswered:
        wanted = _attribute(_STATUS, bytes(4)) + _attribute(_STATUS_MASK, _SEEN_REPLY.to_bytes(4, "big"))
    for body in socket.dump(_GET, family, wanted):
        values = dict(_attributes(body[4:]))
        original, reply = values.get(_TUPLE_ORIGINAL), values.get(_TUPLE_REPLY)
        if original is None or reply is None or not match(_flow(original, reply, values.get(_STATUS, b""))):
            continue
        payload = _attribute(_TUPLE_ORIGINAL | _NESTED, original) + _attribute(_ID, values[_ID])
        if _ZONE in values:
            payload += _attribute(_ZONE, values[_ZONE])
        try:
            socket.request(_DELETE, 0, family, payload)
        except NetlinkError as error:
            if error.errno != errno.ENOENT:  # it expired by itself in the meantime
                raise
        else:
            deleted += 1
    return deleted
