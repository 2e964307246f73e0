"""The process that carries the userspace engine's traffic: `main` with the number of a socket to its parent.

It has an interpreter of its own, so that the agent's work and its own do not wait for each other. It does what its
parent asks over a socket, one pickled message at a time (both ends are the same program), and ends with its parent.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

from .relay import Chooser, Poll, TcpListener, UdpListener

_SWEEP_SECONDS = 0.25
_AFFINITY_SWEEP_SECONDS = 10.0
Backends = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Open:
    """One listener that is wanted, or one whose backends change."""

    id: int
    family: int
    """AF_INET or AF_INET6."""
    tcp: bool
    """Or UDP."""
    backends: Backends
    affinity_seconds: int


@dataclass(frozen=True, slots=True)
class Prepare:
    """Open listeners. Answered with the port of each by id; nothing is open when one fails."""

    listeners: tuple[Open, ...]


@dataclass(frozen=True, slots=True)
class Switch:
    """Other backends for listeners that are there, and listeners to close; answered with {}."""

    changed: tuple[Open, ...] = ()
    closed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Show:
    """Answered with what each listener has, by id."""


@dataclass(frozen=True, slots=True)
class Shown:
    family: int
    tcp: bool
    port: int
    backends: Backends
    connections: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The answer to what failed."""

    reason: str


class Worker:
    """All listeners of one node."""

    def __init__(self) -> None:
        self.poll = Poll()
        self._listeners: dict[int, TcpListener | UdpListener] = {}

    def answer(self, message: object) -> object:
        match message:
            case Prepare():
                return self._prepare(message.listeners)
            case Switch():
                return self._switch(message)
            case Show():
                return {
                    number: Shown(
                        listener.family,
                        isinstance(listener, TcpListener),
                        listener.port,
                        listener.chooser.backends,
                        listener.connections,
                    )
                    for number, listener in self._listeners.items()
                }
        return Refused(f"a message of an unknown kind: {message!r}")

    def _prepare(self, wanted: Iterable[Open]) -> dict[int, int] | Refused:
        made: dict[int, TcpListener | UdpListener] = {}
        for item in wanted:
            kind = TcpListener if item.tcp else UdpListener
            chooser = Chooser(item.backends, item.affinity_seconds)
            try:
                made[item.id] = kind(self.poll, socket.AddressFamily(item.family), chooser)
            except OSError as error:
                for listener in made.values():
                    listener.close()
                return Refused(
                    f"the service proxy cannot listen with {len(self._listeners) + len(made)} listeners open: {error}; "
                    "raise the limit of open files or net.ipv4.ip_local_port_range, or use engine nftables"
                )
        self._listeners |= made
        return {number: listener.port for number, listener in made.items()}

    def _switch(self, message: Switch) -> dict[int, int]:
        for item in message.changed:
            listener = self._listeners[item.id]
            listener.chooser.set(item.backends, item.affinity_seconds)
            listener.changed()
        for number in message.closed:
            self._listeners.pop(number).close()
        return {}

    def forget_clients(self) -> None:
        for listener in self._listeners.values():
            listener.chooser.forget()


def run(control: socket.socket) -> None:
    """Serves until the parent closes its end."""
    worker = Worker()
    stream = control.makefile("rwb")
    ended = False

    def obey(events: int) -> None:
        nonlocal ended
        try:
            message = pickle.load(stream)
        except EOFError:
            ended = True
            return
        pickle.dump(worker.answer(message), stream)
        stream.flush()

    worker.poll.add(control, obey, select.EPOLLIN)
    swept = forgotten = time.monotonic()
    while not ended:
        worker.poll.once(_SWEEP_SECONDS)
        now = time.monotonic()
        if now - swept >= _SWEEP_SECONDS:
            worker.poll.sweep()
            swept = now
        if now - forgotten >= _AFFINITY_SWEEP_SECONDS:
            worker.forget_clients()
            forgotten = now


def main() -> None:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s userspace proxy: %(message)s")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # A terminal's Ctrl-C reaches every process in the foreground; the parent decides, and its end of the socket tells.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError), socket.socket(fileno=int(sys.argv[1])) as control:
        run(control)
