"""Tracked flows that outlive the route they were made by.

Two kinds do. A UDP flow, for as long as its client keeps sending: conntrack keeps the translation that the first packet
got, to a backend that is gone, or to none where the service had not been there yet. And a TCP connection that was never
answered, for two minutes: its client's next SYN, and whoever is given the same source port by chance, would go to the
backend that did not answer. Without its entry, that very next SYN is translated anew and reaches a backend that lives.
An established TCP connection stays: it ends with its backend.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from functools import partial

from kernelet.ext.nft import Flow, NetlinkError, Socket, delete_flows

from ...routes import Protocol
from .elements import Frontend, Held
from .ruleset import Family

_log = logging.getLogger(__name__)


class StaleFlows:
    """Which flows a change leaves stale, collected frontend by frontend."""

    def __init__(self) -> None:
        self._gone: dict[Family, set[tuple[int, bytes, int, bytes, int]]] = {}
        """(protocol, service address or b"" for a node port, port, backend address, backend port)"""
        self._new: dict[Family, set[tuple[bytes, int]]] = {}
        """(service address or b"", port) of UDP frontends that did not exist: flows to them are not translated yet."""
        self._udp: set[Family] = set()

    def add(self, frontend: Frontend, old: Iterable[bytes] | None, new: Held | None) -> None:
        """A frontend goes from the backends `old` (None: it did not exist) to `new`."""
        kind, key = frontend
        length = kind.family.length
        address, rest = (key[:length], key[length:]) if kind.addressed else (b"", key)
        protocol, port = rest[0], int.from_bytes(rest[4:6], "big")
        if protocol == Protocol.UDP:
            self._udp.add(kind.family)
            if old is None:
                self._new.setdefault(kind.family, set()).add((address, port))
        for data in set(old or ()).difference(new.slots if new else ()):
            backend = (data[:length], int.from_bytes(data[length : length + 2], "big"))
            self._gone.setdefault(kind.family, set()).add((protocol, address, port, *backend))

    def __iter__(self) -> Iterator[Family]:
        """The families that have any."""
        return iter(self._gone.keys() | self._new.keys())

    def merge(self, other: StaleFlows, family: Family) -> None:
        """Takes over what another collection holds of one family."""
        self._gone.setdefault(family, set()).update(other._gone.get(family, ()))
        self._new.setdefault(family, set()).update(other._new.get(family, ()))
        self._udp |= other._udp & {family}

    def only_unanswered(self, family: Family) -> bool:
        """Whether answered flows need not be looked at, which are nearly all there are."""
        return family not in self._udp

    def match(self, family: Family, flow: Flow) -> bool:
        """Whether a tracked flow is stale."""
        if flow.answered and flow.protocol != Protocol.UDP:
            return False
        places = ((flow.destination, flow.destination_port), (b"", flow.destination_port))
        gone = self._gone.get(family, set())
        if any((flow.protocol, *place, flow.reply_source, flow.reply_source_port) in gone for place in places):
            return True
        new = self._new.get(family, set())
        untranslated = flow.protocol == Protocol.UDP and flow.reply_source == flow.destination
        return untranslated and any(place in new for place in places)


class Forgetter:
    """Makes conntrack forget stale flows: what must be at once, and the rest when it is asked to."""

    def __init__(self, netlink: Socket) -> None:
        self._netlink = netlink
        self._left = StaleFlows()

    def forget(self, flows: StaleFlows) -> None:
        """Forgets UDP flows now and keeps the rest for `tidy`.

        A UDP client that keeps sending would reach the old backend for ever. Unanswered TCP attempts only matter where
        a backend died, and reading the table takes milliseconds, which every acknowledgement would wait for.
        """
        for family in flows:
            if flows.only_unanswered(family):
                self._left.merge(flows, family)
            else:
                self._delete(family, flows)

    def tidy(self) -> None:
        """Forgets what `forget` has left."""
        flows, self._left = self._left, StaleFlows()
        for family in flows:
            self._delete(family, flows)

    def _delete(self, family: Family, flows: StaleFlows) -> None:
        """The routes are right all the same when this fails."""
        match, few = partial(flows.match, family), flows.only_unanswered(family)
        try:
            count = delete_flows(self._netlink, family.number, match, only_unanswered=few)
        except (NetlinkError, TimeoutError) as error:
            _log.warning("stale flows stay until they time out: conntrack says: %s", error)
        else:
            if count:
                _log.info("forgot %d stale flows", count)
