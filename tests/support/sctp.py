"""Just enough of SCTP (RFC 9260) over raw sockets to open an association, for kernels that have no SCTP of their own.

A packet: ports, verification tag, CRC32c over all of it, then chunks. An INIT carries the tag that every packet of the
answer must bear, which conntrack checks; the INIT ACK in here carries the server's name where the cookie would be.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
import threading

_PROTOCOL = 132
_INIT, _INIT_ACK, _COOKIE = 1, 2, 7
_HEADER = struct.Struct("!HHI")
_CHUNK = struct.Struct("!BBHIIHHI")
"""Type, flags, length, initiate tag, receiver window, outbound streams, inbound streams, first TSN."""
_PARAMETER = struct.Struct("!HH")
_POLYNOMIAL = 0x82F63B78


def _crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def _packet(source: int, destination: int, verification: int, kind: int, tag: int, cookie: bytes = b"") -> bytes:
    parameter = _PARAMETER.pack(_COOKIE, _PARAMETER.size + len(cookie)) + cookie if cookie else b""
    chunk = _CHUNK.pack(kind, 0, _CHUNK.size + len(parameter), tag, 65536, 1, 1, 1) + parameter
    chunk += bytes(-len(chunk) % 4)
    header = _HEADER.pack(source, destination, verification)
    return header + struct.pack("<I", _crc32c(header + bytes(4) + chunk)) + chunk


def _parse(packet: bytes) -> tuple[int, int, int, int, int, bytes]:
    """Source and destination port, verification tag, chunk type, initiate tag, cookie of an IPv4 packet."""
    body = packet[(packet[0] & 15) * 4 :]
    source, destination, verification = _HEADER.unpack_from(body)
    kind, _, length, tag, *_ = _CHUNK.unpack_from(body, 12)
    return source, destination, verification, kind, tag, body[12 + _CHUNK.size + _PARAMETER.size : 12 + length]


def raw_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, _PROTOCOL)


def ask(address: str, port: int, timeout: float) -> str:
    """The name of the SCTP server that answers from this address and port. Raises OSError."""
    with raw_socket() as made:
        made.settimeout(timeout)
        made.connect((address, 0))  # Only its packets are received, and what ICMP says of it is reported.
        local, tag = 20000 + secrets.randbelow(10000), 1 + secrets.randbelow(1 << 31)
        made.send(_packet(local, port, 0, _INIT, tag))
        while True:
            source, destination, verification, kind, _, cookie = _parse(made.recv(2048))
            if (source, destination, verification, kind) == (port, local, tag, _INIT_ACK):
                return cookie.decode()


class SctpServer:
    """Answers every INIT to its port with its name; `listener` is a raw socket."""

    def __init__(self, listener: socket.socket, port: int, name: str) -> None:
        self._listener, self._port, self._name = listener, port, name.encode()
        self.peers: list[str] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                packet, peer = self._listener.recvfrom(2048)
            except OSError:
                return  # closed
            if not packet:
                return
            source, destination, _, kind, tag, _ = _parse(packet)
            if (destination, kind) == (self._port, _INIT):
                self.peers.append(peer[0])
                with contextlib.suppress(OSError):
                    self._listener.sendto(_packet(self._port, source, tag, _INIT_ACK, 1, self._name), peer)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
