"""What carries bytes in the userspace engine: TCP connections joined end to end, UDP clients each with a socket.

One thread, one epoll instance, edge-triggered, so that a descriptor is registered once in its life. A short read tells
that a socket is drained and saves the read that would say so (epoll(7)). Data goes through one shared buffer and is
copied only when its receiver does not keep up. splice(2) would save the copying of large transfers but needs two calls
and a pipe for each direction where small messages need one receive and one send: requests are what this is for.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from operator import itemgetter

_log = logging.getLogger(__name__)
_BUFFER = memoryview(bytearray(256 * 1024))
_HANGUP = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_READ = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_BOTH = _READ | select.EPOLLOUT
DIAL_SECONDS = (0.25, 0.5, 1.0, 2.0)
"""How long each backend in turn has to take a connection, as the first Kubernetes proxy had it."""
UDP_SECONDS = 30.0
"""A UDP client that is silent for so long is forgotten; conntrack's own nf_conntrack_udp_timeout."""
_ABORT = struct.pack("ii", 1, 0)
_IP_PKTINFO = 8
"""ip(7); Python's socket module does not have it."""
Handler = Callable[[int], None]
Address = tuple[str, int]


@dataclass(slots=True)
class Poll:
    """The epoll instance, and who is told of each descriptor."""

    epoll: select.epoll = field(default_factory=select.epoll)
    handlers: dict[int, Handler] = field(default_factory=dict)
    dialing: dict[Dial, float] = field(default_factory=dict)
    """Connections on their way to a backend -> when to give up."""
    sessions: dict[UdpSession, None] = field(default_factory=dict)

    def add(self, sock: socket.socket, handler: Handler, events: int) -> None:
        self.handlers[sock.fileno()] = handler
        self.epoll.register(sock.fileno(), events)

    def remove(self, sock: socket.socket) -> None:
        """Forgets a socket and closes it; closing takes it out of the epoll instance."""
        self.handlers.pop(sock.fileno(), None)
        sock.close()

    def once(self, seconds: float) -> None:
        """Handles what has happened, or waits for it so long."""
        for descriptor, events in self.epoll.poll(seconds):
            # An earlier handler of this very round may have closed it.
            handler = self.handlers.get(descriptor)
            if handler is not None:
                handler(events)

    def sweep(self) -> None:
        """Ends what has taken too long."""
        now = time.monotonic()
        for dial in [dial for dial, deadline in self.dialing.items() if deadline <= now]:
            dial.failed(errno.ETIMEDOUT)
        for session in [session for session in self.sessions if session.used + UDP_SECONDS <= now]:
            session.close()


class Chooser:
    """Round robin over the backends of one frontend, with session affinity by client address where wanted."""

    def __init__(self, backends: tuple[Address, ...], affinity_seconds: int) -> None:
        self.set(backends, affinity_seconds)
        self._remembered: dict[str, tuple[Address, float]] = {}

    def set(self, backends: tuple[Address, ...], affinity_seconds: int) -> None:
        """Takes other backends, each as often as its weight asks for; a client whose backend stays keeps it."""
        self.backends = backends
        self._affinity = affinity_seconds
        self._turn = itertools.cycle(_interleaved(backends))

    def next(self, client: str, failed: Collection[Address] = ()) -> Address | None:
        """A backend for a new connection; None where there is none. `failed`: those that did not take it."""
        if not self.backends:
            return None
        if not self._affinity:
            return self._next_but(failed)
        now = time.monotonic()
        backend, used = self._remembered.get(client, (None, 0.0))
        if backend is None or failed or used + self._affinity <= now or backend not in self.backends:
            backend = self._next_but(failed)
        self._remembered[client] = (backend, now)
        return backend

    def _next_but(self, failed: Collection[Address]) -> Address:
        """Whose turn it is; one that has failed only where all have."""
        for _ in self.backends if failed else ():
            backend = next(self._turn)
            if backend not in failed:
                return backend
        return next(self._turn)

    def forget(self) -> None:
        """Drops clients whose time is over."""
        oldest = time.monotonic() - self._affinity
        for client in [client for client, (_, used) in self._remembered.items() if used <= oldest]:
            del self._remembered[client]


def _interleaved(backends: Collection[Address]) -> list[Address]:
    """The same, with the repetitions of each spread over the whole."""
    places: list[tuple[float, Address]] = []
    for backend, count in Counter(backends).items():
        places.extend(((index + 0.5) / count, backend) for index in range(count))
    return [backend for _, backend in sorted(places, key=itemgetter(0))]


class End:
    """One side of a TCP connection; `peer` is the other."""

    __slots__ = ("_behind", "_finished", "_poll", "_readable", "peer", "sock")

    def __init__(self, poll: Poll, sock: socket.socket) -> None:
        self._poll = poll
        self.sock = sock
        self.peer: End = self
        self._behind: memoryview | None = None
        """What this side has not taken yet."""
        self._readable = False
        """There may be more to read, once the peer has taken what it was given."""
        self._finished = False
        """Nothing more will come from this side."""

    def handle(self, events: int) -> None:
        if self._behind is not None and events & select.EPOLLOUT:
            self._flush()
        if events & select.EPOLLIN or events & _HANGUP:
            self.pump(last=bool(events & _HANGUP))

    def pump(self, *, last: bool = True) -> None:
        """Passes on what there is to read; `last` reads on until there is nothing, so as not to miss an end."""
        sock, peer = self.sock, self.peer
        if self._finished:
            return
        while True:
            if peer._behind is not None:
                self._readable = True
                return
            try:
                count = sock.recv_into(_BUFFER)
            except BlockingIOError:
                return
            except OSError:
                self.abort()
                return
            if not count:
                self._finish()
                return
            if not peer._give(count) or (count < len(_BUFFER) and not last):
                return

    def _give(self, count: int) -> bool:
        """Sends what is in the buffer; false where the connection is over."""
        try:
            sent = self.sock.send(_BUFFER[:count])
        except BlockingIOError:
            sent = 0
        except OSError:
            self.abort()
            return False
        if sent < count:
            self._behind = memoryview(bytes(_BUFFER[sent:count]))
            self._poll.epoll.modify(self.sock.fileno(), _BOTH)
        return True

    def _flush(self) -> None:
        while self._behind is not None:
            try:
                sent = self.sock.send(self._behind)
            except BlockingIOError:
                return
            except OSError:
                self.abort()
                return
            self._behind = self._behind[sent:] if sent < len(self._behind) else None
        peer = self.peer
        if peer._readable:
            peer._readable = False
            peer.pump()

    def _finish(self) -> None:
        """This side sends nothing more, and all it sent is passed on: the other is told, and may go on sending."""
        self._finished = True
        if self.peer._finished:
            self._poll.remove(self.sock)
            self._poll.remove(self.peer.sock)
            return
        try:
            self.peer.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
            self.abort()  # Reset in the meantime.

    def abort(self) -> None:
        """Resets both sides, as a reset of either would be seen without a proxy."""
        for end in (self, self.peer):
            end._finished, end._behind = True, None
            if end.sock.fileno() >= 0:
                end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
                self._poll.remove(end.sock)


class Dial:
    """A client that waits for a backend to take its connection."""

    __slots__ = ("_address", "_chooser", "_client", "_failed", "_poll", "_sock")

    def __init__(self, poll: Poll, chooser: Chooser, client: socket.socket, address: str) -> None:
        self._poll, self._chooser, self._client, self._address = poll, chooser, client, address
        self._failed: list[Address] = []
        self._sock: socket.socket | None = None
        self._next()

    def _next(self) -> None:
        """Tries one backend after the other; a client whom none takes is reset."""
        for seconds in DIAL_SECONDS[len(self._failed) :]:
            backend = self._chooser.next(self._address, self._failed)
            if backend is None:
                break
            self._failed.append(backend)  # Until it has taken the connection.
            try:
                sock = socket.socket(self._client.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            except OSError as error:
                _log.error("a connection of %s is refused: %s; raise the limit of open files", self._address, error)
                break
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if sock.connect_ex(backend) in (0, errno.EINPROGRESS):
                self._sock = sock
                self._poll.dialing[self] = time.monotonic() + seconds
                self._poll.add(sock, self._handle, _BOTH)
                return
            sock.close()
        self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        self._client.close()

    def failed(self, number: int) -> None:
        """The backend did not take it."""
        del self._poll.dialing[self]
        if self._sock is not None:
            _log.debug("a backend did not take a connection: %s", os.strerror(number))
            self._poll.remove(self._sock)
        self._next()

    def _handle(self, events: int) -> None:
        assert self._sock is not None
        number = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if events & select.EPOLLERR else 0
        if number:
            self.failed(number)
            return
        if not events & select.EPOLLOUT:
            return  # Meant for a socket that had this number before.
        del self._poll.dialing[self]
        client, backend = End(self._poll, self._client), End(self._poll, self._sock)
        client.peer, backend.peer = backend, client
        self._poll.handlers[self._sock.fileno()] = backend.handle
        self._poll.add(self._client, client.handle, _READ)
        if events & select.EPOLLIN:
            backend.pump()


class TcpListener:
    """Takes the connections of one frontend."""

    def __init__(self, poll: Poll, family: socket.AddressFamily, chooser: Chooser) -> None:
        self._poll, self.family, self.chooser = poll, family, chooser
        self.connections = 0
        self._sock = _bound(family, socket.SOCK_STREAM)
        # Accepted sockets inherit both.
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._sock.listen(4096)
        poll.add(self._sock, self._accept, select.EPOLLIN)

    @property
    def port(self) -> int:
        return int(self._sock.getsockname()[1])

    def _accept(self, events: int) -> None:
        try:
            client, address = self._sock.accept()
        except BlockingIOError:
            return
        except OSError as error:
            _log.error("cannot take a connection: %s; raise the limit of open files", error)
            return
        client.setblocking(False)
        self.connections += 1
        Dial(self._poll, self.chooser, client, address[0])

    def changed(self) -> None:
        """Established connections stay with their backends."""

    def close(self) -> None:
        self._poll.remove(self._sock)


class UdpSession:
    """One client of a UDP frontend, and the socket that stands for it at its backend."""

    __slots__ = ("_from", "_sock", "backend", "client", "listener", "used")

    def __init__(
        self,
        listener: UdpListener,
        client: Address,
        backend: Address,
        local: list[tuple[int, int, bytes]],
    ) -> None:
        self.listener, self.client, self.backend, self._from = listener, client, backend, local
        self.used = time.monotonic()
        self._sock = socket.socket(listener.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._sock.connect(backend)
        listener.poll.add(self._sock, self._answer, select.EPOLLIN)
        listener.poll.sessions[self] = None

    def send(self, data: memoryview) -> None:
        self.used = time.monotonic()
        try:
            self._sock.send(data)
        except OSError as error:
            # As on the wire: a datagram that cannot go is lost, and its sender sends another.
            _log.debug("a datagram to %s is lost: %s", self.backend, error)

    def _answer(self, events: int) -> None:
        try:
            count = self._sock.recv_into(_BUFFER)
            self.used = time.monotonic()
            self.listener.reply(_BUFFER[:count], self._from, self.client)
        except BlockingIOError:
            return
        except OSError as error:
            _log.debug("no answer from %s: %s", self.backend, error)
            self.close()

    def close(self) -> None:
        self.listener.sessions.pop(self.client, None)
        self.listener.poll.sessions.pop(self, None)
        self.listener.poll.remove(self._sock)


class UdpListener:
    """Takes the datagrams of one frontend."""

    def __init__(self, poll: Poll, family: socket.AddressFamily, chooser: Chooser) -> None:
        self.poll, self.family, self.chooser = poll, family, chooser
        self.connections = 0
        self.sessions: dict[Address, UdpSession] = {}
        self._sock = _bound(family, socket.SOCK_DGRAM)
        # Answers must come from the address that was asked, which a node with several has to be told.
        if family == socket.AF_INET6:
            self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            self._sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        poll.add(self._sock, self._receive, select.EPOLLIN)

    @property
    def port(self) -> int:
        return int(self._sock.getsockname()[1])

    def _receive(self, events: int) -> None:
        try:
            count, information, _, client = self._sock.recvmsg_into([_BUFFER], 64)
        except OSError as error:
            _log.debug("no datagram: %s", error)
            return
        session = self.sessions.get(client)
        if session is None:
            backend = self.chooser.next(client[0])
            if backend is None:
                return
            try:
                session = UdpSession(self, client, backend, _source(information))
            except OSError as error:
                _log.error("a datagram of %s is lost: %s", client[0], error)
                return
            self.sessions[client] = session
            self.connections += 1
        session.send(_BUFFER[:count])

    def reply(self, data: memoryview, source: list[tuple[int, int, bytes]], client: Address) -> None:
        self._sock.sendmsg([data], source, 0, client)

    def changed(self) -> None:
        """Clients of backends that are gone choose anew with their next datagram."""
        for session in [session for session in self.sessions.values() if session.backend not in self.chooser.backends]:
            session.close()

    def close(self) -> None:
        for session in list(self.sessions.values()):
            session.close()
        self.poll.remove(self._sock)


def _source(information: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """What makes an answer leave from the address that a datagram came to."""
    for level, kind, data in information:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            _, local, _ = struct.unpack("=I4s4s", data[:12])
            return [(level, kind, struct.pack("=I4s4s", 0, local, b"\0\0\0\0"))]
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            return [(level, kind, data)]
    return []


def _bound(family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", 0))
    except OSError:
        sock.close()
        raise
    return sock
