"""Events from the kernel, through bcc."""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from . import program
from .btf import Btf
from .errors import TraceError
from .subject import Endpoint

MOST_ENDPOINTS = 65536
_MAPPED = bytes(10) + b"\xff\xff"
_SOURCE_VARIABLE = "BCC_KERNEL_SOURCE"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A TCP connection that was established, or one that was not."""

    source: Endpoint
    destination: Endpoint
    """As the socket has it: the service's address, or a backend's where the socket was sent there."""
    microseconds: float
    """From the first SYN to the outcome."""
    netns: int
    """Inode number of the client's network namespace."""
    error: str
    """ "" when established, else the errno's name; "closed" when the client gave up."""


@dataclass(frozen=True, slots=True)
class Drop:
    """A packet that the kernel threw away, with the addresses it had then."""

    source: Endpoint
    destination: Endpoint
    reason: str
    """The kernel's own: SKB_DROP_REASON_..."""
    function: str
    """The kernel function that dropped it; "" where the kernel does not tell."""
    netns: int


Event = Attempt | Drop


class _Endpoint(ctypes.Structure):
    _fields_ = (
        ("address", ctypes.c_ubyte * 16),
        ("port", ctypes.c_ubyte * 2),
        ("protocol", ctypes.c_ubyte),
        ("zero", ctypes.c_ubyte),
    )


class _Event(ctypes.Structure):
    _fields_ = (
        ("nanoseconds", ctypes.c_uint64),
        ("location", ctypes.c_uint64),
        ("source", _Endpoint),
        ("destination", _Endpoint),
        ("netns", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("reason", ctypes.c_uint32),
        ("zero", ctypes.c_uint32),
    )


def _packed(endpoint: Endpoint) -> _Endpoint:
    address = endpoint.address if len(endpoint.address) == 16 else _MAPPED + endpoint.address
    data = address + endpoint.port.to_bytes(2, "big") + bytes((endpoint.protocol, 0))
    return _Endpoint.from_buffer_copy(data)


def _unpacked(end: _Endpoint) -> Endpoint:
    address = bytes(end.address)
    return Endpoint(address.removeprefix(_MAPPED), int.from_bytes(bytes(end.port), "big"), end.protocol)


class Collector:
    """Programs in the kernel that watch some addresses, until closed. Call it from one thread.

    Raises TraceError without root, bcc, BTF or the tracepoints.
    """

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise TraceError("tracing loads programs into the kernel, which needs root; run it with sudo")
        bcc = _bcc()
        types = Btf()
        for name in program.TRACEPOINTS:
            if not types.has(f"btf_trace_{name}"):
                raise TraceError(f"this kernel has no tracepoint {name}; tracing needs Linux 5.17 or newer")
        self._reasons = types.enum(program.REASONS)
        self._ksym = bcc.BPF.ksym
        self._bpf = _load(bcc, types)
        self._watched: frozenset[Endpoint] = frozenset()
        self._events: list[Event] = []
        self._bpf[b"events"].open_ring_buffer(self._take)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Takes the programs out of the kernel."""
        self._bpf.cleanup()

    def watch(self, endpoints: frozenset[Endpoint]) -> None:
        """From now on, events of these. Raises TraceError for more than there is room for."""
        if len(endpoints) > MOST_ENDPOINTS:
            raise TraceError(f"the service has {len(endpoints)} addresses and backends; {MOST_ENDPOINTS} can be traced")
        table = self._bpf[b"watched"]
        for gone in self._watched - endpoints:
            del table[_packed(gone)]
        for new in endpoints - self._watched:
            table[_packed(new)] = ctypes.c_ubyte(1)
        self._watched = endpoints

    def poll(self, seconds: float) -> list[Event]:
        """Events so far, waiting at most this long for the first."""
        self._bpf.ring_buffer_poll(int(seconds * 1000))
        self._bpf.ring_buffer_consume()
        events, self._events = self._events, []
        return events

    @property
    def lost(self) -> int:
        """Events that came faster than they were read."""
        return int(self._bpf[b"lost"][ctypes.c_int(0)].value)

    def _take(self, _context: object, data: int, _size: int) -> None:
        event = ctypes.cast(data, ctypes.POINTER(_Event)).contents
        source, destination = _unpacked(event.source), _unpacked(event.destination)
        if event.kind == program.DROPPED:
            reason = self._reasons.get(event.reason, f"{program.PREFIX}{event.reason}")
            self._events.append(Drop(source, destination, reason, self._function(event.location), event.netns))
            return
        error = ""
        if event.kind == program.FAILED:
            error = errno.errorcode.get(event.reason, str(event.reason)) if event.reason else "closed"
        self._events.append(Attempt(source, destination, event.nanoseconds / 1000, event.netns, error))

    def _function(self, address: int) -> str:
        name: str = self._ksym(address).decode()
        return "" if name.startswith("[") else name


def _bcc() -> Any:
    try:
        import bcc
    except ImportError as error:
        raise TraceError(
            f"tracing needs Debian's package python3-bpfcc ({error}); install it, "
            "and use a Python environment that sees the system's packages"
        ) from error
    return bcc


def _load(bcc: Any, types: Btf) -> Any:
    with tempfile.TemporaryDirectory(prefix="kernelet-trace-") as folder, _kernel_source(Path(folder)):
        try:
            return bcc.BPF(text=program.TEXT.encode(), cflags=program.macros(types, MOST_ENDPOINTS))
        except Exception as error:
            raise TraceError(
                f"the kernel or bcc refuses the tracing programs: {error}; what they said is printed above"
            ) from error


@contextmanager
def _kernel_source(folder: Path) -> Iterator[None]:
    """bcc takes the kernel's headers from there."""
    program.write_headers(folder)
    before = os.environ.get(_SOURCE_VARIABLE)
    os.environ[_SOURCE_VARIABLE] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SOURCE_VARIABLE]
        else:
            os.environ[_SOURCE_VARIABLE] = before
