"""A process that the tests put into a cgroup and a network namespace; it does what it is told, a line at a time.

Each line on stdin is a JSON list, a function's name and its arguments; each answer is one JSON value;
{"raised": ...} says what went wrong where a function expects success.
"""

from __future__ import annotations

import errno
import json
import socket
import statistics
import struct
import sys
import time
from typing import Any

from . import sctp as _sctp

_kept: dict[str, socket.socket] = {}


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _error(error: OSError) -> dict[str, Any]:
    return {"error": errno.errorcode.get(error.errno or 0, str(error))}


def tcp(
    address: str, port: int, times: int = 1, mapped: bool = False, timeout: float = 2.0, source: str = ""
) -> list[dict[str, Any]]:
    """Connects again and again: who answered, and whom the socket believes it talks to; or what went wrong."""
    found = []
    for _ in range(times):
        start = time.monotonic()
        with socket.socket(socket.AF_INET6 if mapped else _family(address), socket.SOCK_STREAM) as made:
            made.settimeout(timeout)
            try:
                if source:
                    made.bind((source, 0))
                made.connect((f"::ffff:{address}" if mapped else address, port))
                name = made.recv(256).decode().strip()
                found.append({"name": name, "peer": made.getpeername()[:2]})
            except OSError as error:
                found.append({**_error(error), "seconds": time.monotonic() - start})
    return found


def udp(address: str, port: int, times: int = 1, connected: bool = False, key: str = "") -> list[dict[str, Any]]:
    """Sends datagrams from one socket (kept under `key` for later calls): who answered, and from which address."""
    made = _kept.get(key) or socket.socket(_family(address), socket.SOCK_DGRAM)
    made.settimeout(2)
    found: list[dict[str, Any]] = []
    try:
        if connected:
            made.connect((address, port))
        for _ in range(times):
            try:
                if connected:
                    made.send(b"?")
                else:
                    made.sendto(b"?", (address, port))
                data, source = made.recvfrom(256)
                answer = {"name": data.decode(), "source": source[:2]}
                if connected:
                    answer["peer"] = made.getpeername()[:2]
                found.append(answer)
            except OSError as error:
                found.append(_error(error))
    except OSError as error:
        found.append(_error(error))
    if key:
        _kept[key] = made
    else:
        made.close()
    return found


def hold(key: str, address: str, port: int) -> list[Any]:
    """Opens a TCP connection and keeps it."""
    made = socket.create_connection((address, port), 2)
    _kept[key] = made
    return [made.recv(256).decode().strip(), made.getpeername()[:2]]


def echo(key: str, text: str) -> str:
    """What comes back through a connection that is kept, or the error's name."""
    try:
        _kept[key].sendall(text.encode())
        return _kept[key].recv(256).decode()
    except OSError as error:
        return str(_error(error)["error"])


def send_again(key: str) -> dict[str, Any]:
    """One more datagram through a connected socket that is kept."""
    made = _kept[key]
    try:
        made.send(b"?")
        return {"name": made.recv(256).decode()}
    except OSError as error:
        return _error(error)


def persist(key: str, address: str, port: int, times: int) -> list[dict[str, Any]]:
    """Datagrams through a connected socket that is kept, which is connected again where the kernel reports an error."""
    found: list[dict[str, Any]] = []
    for _ in range(times):
        answer = send_again(key)
        if "error" in answer:
            _kept[key].connect((address, port))
        found.append(answer)
    return found


def sctp(address: str, port: int, timeout: float = 2.0) -> dict[str, Any]:
    """Sends an INIT: the name that the INIT ACK of this very address carries, or what went wrong."""
    try:
        return {"name": _sctp.ask(address, port, timeout)}
    except OSError as error:
        return _error(error)


def drop() -> None:
    """Closes what is kept."""
    while _kept:
        _kept.popitem()[1].close()


def cost(address: str, port: int, times: int) -> float:
    """Microseconds that connect(2) of a UDP socket takes, which sends nothing."""
    with socket.socket(_family(address), socket.SOCK_DGRAM) as made:
        start = time.perf_counter()
        for _ in range(times):
            made.connect((address, port))
        return (time.perf_counter() - start) / times * 1e6


def tcp_cost(address: str, port: int, times: int) -> float:
    """Median microseconds that connect(2) of a TCP socket takes, the handshake included."""
    found = []
    for _ in range(times):
        with socket.socket(_family(address), socket.SOCK_STREAM) as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            start = time.perf_counter()
            made.connect((address, port))
            found.append((time.perf_counter() - start) * 1e6)
            made.recv(256)
    return statistics.median(found)


_FUNCTIONS = {
    function.__name__: function for function in (tcp, udp, hold, echo, send_again, persist, drop, sctp, cost, tcp_cost)
}

if __name__ == "__main__":
    for line in sys.stdin:
        function, *arguments = json.loads(line)
        try:
            answer = _FUNCTIONS[function](*arguments)
        except OSError as error:
            answer = {"raised": f"{function}{tuple(arguments)}: {error}"}
        print(json.dumps(answer), flush=True)
