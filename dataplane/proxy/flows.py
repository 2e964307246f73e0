"""Tracked UDP flows that outlive the route they were made by.

A TCP connection ends with its backend. A UDP flow does not: as long as a client keeps sending, conntrack keeps the
translation that the first packet got, to a backend that is gone, or to none where the service had not been there yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kernelet.ext.nft import Flow

from ..routes import Protocol
from .elements import Frontend, Held
from .ruleset import Family


class StaleFlows:
    """Which flows a change leaves stale, collected frontend by frontend."""

    def __init__(self) -> None:
        self._gone: dict[Family, set[tuple[bytes, int, bytes, int]]] = {}
        """(service address or b"" for a node port, port, backend address, backend port)"""
        self._new: dict[Family, set[tuple[bytes, int]]] = {}
        """(service address or b"", port) of frontends that did not exist: flows to them are not translated yet."""

    def add(self, frontend: Frontend, old: Iterable[bytes] | None, new: Held | None) -> None:
        """A frontend goes from the backends `old` (None: it did not exist) to `new`."""
        kind, key = frontend
        length = kind.family.length
        address, rest = (key[:length], key[length:]) if kind.addressed else (b"", key)
        if rest[0] != Protocol.UDP:
            return
        port = int.from_bytes(rest[4:6], "big")
        if old is None:
            self._new.setdefault(kind.family, set()).add((address, port))
            return
        for data in set(old).difference(new.slots if new else ()):
            backend = (data[:length], int.from_bytes(data[length : length + 2], "big"))
            self._gone.setdefault(kind.family, set()).add((address, port, *backend))

    def __iter__(self) -> Iterator[Family]:
        """The families that have any."""
        return iter(self._gone.keys() | self._new.keys())

    def match(self, family: Family, flow: Flow) -> bool:
        """Whether a tracked flow is stale."""
        if flow.protocol != Protocol.UDP:
            return False
        places = ((flow.destination, flow.destination_port), (b"", flow.destination_port))
        gone = self._gone.get(family, set())
        if any((*place, flow.reply_source, flow.reply_source_port) in gone for place in places):
            return True
        new = self._new.get(family, set())
        return flow.reply_source == flow.destination and any(place in new for place in places)
