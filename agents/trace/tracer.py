"""From what the kernel saw to what a person asks: which client, which backend, on which node.

How the backend of a connection is known depends on how it was chosen, not on which engine a node runs: a socket that
was sent straight to a backend names it; one that holds the service's address was translated on its way, and the
node's connection tracking has the outcome. That entry is looked up by its exact tuple, once a connection, and lives for
at least ten seconds after the connection ended. It does not outlive a refusal; then the refused packet, where it was
dropped on this machine, tells the backend. A socket that was opened to a backend's own address, without the
service, looks like one that was sent there: nothing in the packets tells them apart. So it is left out on nodes that
only translate, and taken for the service's on the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from kernelet.ext import netns
from kernelet.ext.nft import AF_INET, AF_INET6, NetlinkError, Socket, find_flow

from .collect import Attempt, Collector, Drop
from .errors import TraceError
from .subject import Endpoint, Place, Subject

_MOST_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Connection:
    """One attempt to connect to the service."""

    client: Endpoint
    service: Endpoint
    backend: Endpoint | None
    """None where none was chosen, or the choice left no trace."""
    translated: bool
    """By NAT; else the socket itself was sent to the backend."""
    microseconds: float
    node: str
    """The client's; "" for none of the nodes on this machine."""
    netns: int
    error: str


@dataclass(frozen=True, slots=True)
class DroppedPacket:
    drop: Drop
    node: str


Record = Connection | DroppedPacket


class Tracer:
    """Follows one service on the nodes of this machine. Call it from one thread. Raises TraceError."""

    def __init__(self, collector: Collector, places: Sequence[Place]) -> None:
        self._collector = collector
        self._places = places
        self._backends: dict[Endpoint, Endpoint] = {}
        self._reached: dict[Endpoint, Endpoint] = {}
        self._stack = ExitStack()
        self._conntrack: dict[str, Socket] = {}
        self._inodes: dict[int, str] = {}
        for place in places:
            self._open(place)

    def _open(self, place: Place) -> None:
        try:
            fd = os.open(place.netns, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._stack.close()
            raise TraceError(f"node {place.node}: {place.netns}: {error.strerror}; does the node run?") from error
        try:
            self._inodes[os.fstat(fd).st_ino] = place.node
            self._conntrack[place.node] = self._stack.enter_context(netns.run_in(fd, Socket))
        finally:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def follow(self, subject: Subject) -> None:
        """The service as it is from now on."""
        self._collector.watch(subject.watched)
        # Those that left are kept: attempts that began before end later.
        self._backends.update(subject.backends)

    @property
    def lost(self) -> int:
        return self._collector.lost

    def records(self, seconds: float) -> Iterator[Record]:
        """What has happened, waiting at most this long for the first of it."""
        for event in self._collector.poll(seconds):
            if isinstance(event, Drop):
                self._note_backend(event)
                yield DroppedPacket(event, self._node_of_drop(event))
            elif not self._is_direct(event):
                yield self._connection(event)

    def _note_backend(self, drop: Drop) -> None:
        """Of a connection that may come to nothing by this."""
        if drop.destination in self._backends:
            self._reached[drop.source] = drop.destination
            if len(self._reached) > _MOST_REMEMBERED:
                del self._reached[next(iter(self._reached))]

    def _is_direct(self, attempt: Attempt) -> bool:
        """Opened to a backend's own address, by a client of a node that redirects no sockets."""
        place = self._place_of(attempt.source.address)
        return place is not None and not place.redirects and attempt.destination in self._backends

    def _connection(self, attempt: Attempt) -> Connection:
        node = self._node_of(attempt.source.address)
        reached = self._reached.pop(attempt.source, None)
        service = self._backends.get(attempt.destination)
        backend: Endpoint | None = attempt.destination
        if service is None:
            # The kernel forgets a flow whose first packet was refused or dropped; but then it told of that packet.
            service, backend = attempt.destination, self._translation(attempt, node) or reached
        return Connection(
            client=attempt.source,
            service=service,
            backend=backend,
            translated=service == attempt.destination,
            microseconds=attempt.microseconds,
            node=node or self._inodes.get(attempt.netns, ""),
            netns=attempt.netns,
            error=attempt.error,
        )

    def _node_of(self, address: bytes) -> str:
        place = self._place_of(address)
        return place.node if place else ""

    def _place_of(self, address: bytes) -> Place | None:
        return next((place for place in self._places if place.has(address)), None)

    def _node_of_drop(self, drop: Drop) -> str:
        ends = (drop.source.address, drop.destination.address)
        return self._inodes.get(drop.netns) or next(filter(None, map(self._node_of, ends)), "")

    def _translation(self, attempt: Attempt, node: str) -> Endpoint | None:
        """Where the connection tracking of the client's node, or of any where that is unknown, says it went."""
        source, destination = attempt.source, attempt.destination
        family = AF_INET if len(source.address) == 4 else AF_INET6
        for socket in [self._conntrack[node]] if node else self._conntrack.values():
            try:
                flow = find_flow(socket, family, source.protocol, source[:2], destination[:2])
            except NetlinkError as error:
                raise TraceError(f"connection tracking cannot be read: {error}") from error
            if flow is not None:
                found = Endpoint(flow.reply_source, flow.reply_source_port, source.protocol)
                return found if found != destination else None
        return None
