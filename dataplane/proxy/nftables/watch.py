"""Notices when another process changes the nftables tables of this program."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable

from kernelet.ext.nft import Change, Events, Generation, Overrun

from .ruleset import TABLE

_log = logging.getLogger(__name__)


class ForeignChanges:
    """nftables' notifications, reduced to "somebody else touched our tables".

    Transactions of `Events`' ignored socket are dropped in the kernel already. What libnftables does for this process
    comes by and is told apart by its process id, which ends every transaction's notifications.
    """

    def __init__(self, events: Events, families: frozenset[int]) -> None:
        self._events = events
        self._families = families
        self._touched = ""
        self._reason = ""
        self._noticed = asyncio.Event()

    async def run(self, on_change: Callable[[], None]) -> None:
        """Calls `on_change` after every foreign transaction, until cancelled; what it raises ends the watch."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._events.fileno(), self._read)
        try:
            while True:
                await self._noticed.wait()
                self._noticed.clear()
                _log.warning("%s", self._reason)
                on_change()
        finally:
            loop.remove_reader(self._events.fileno())

    def _read(self) -> None:
        try:
            records = self._events.read()
        except Overrun:
            self._touched = ""
            self._notice("nftables notifications were lost")
            return
        for record in records:
            if isinstance(record, Change):
                if record.table == TABLE and record.family in self._families:
                    deed = "removed" if record.removed else "changed"
                    self._touched = self._touched or f"a {record.kind} of table {TABLE} was {deed}"
            elif isinstance(record, Generation):
                if self._touched and record.pid != os.getpid():
                    self._notice(f"{self._touched} by {record.process or 'a process'} ({record.pid})")
                self._touched = ""

    def _notice(self, reason: str) -> None:
        self._reason = reason
        self._noticed.set()


def is_restart(number: int) -> bool:
    """Whether the kernel asks to read back and try again: the ruleset changed in between, or is being changed."""
    return number in (errno.ERESTART, errno.EBUSY, errno.EAGAIN, errno.EINTR, errno.ENOBUFS)
