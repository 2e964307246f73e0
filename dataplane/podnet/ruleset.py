"""The pod network's own nftables table: masquerade for what leaves the cluster.

One small table, replaced as a whole in one transaction: it has no state worth keeping.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from ipaddress import IPv4Network
from types import TracebackType
from typing import Self

import nftables

from kernelet.ext.nft import Change, Events, Generation, Overrun

TABLE = "kernelet_podnet"


class RulesetError(Exception):
    """nft refused the ruleset; the message holds its words."""


def ruleset(pod_cidr: IPv4Network, cluster_cidr: IPv4Network) -> str:
    """nft text that declares the table, empties it and fills it: the same whether it stood before or not."""
    return f"""
table ip {TABLE} {{ }}
flush table ip {TABLE}
table ip {TABLE} {{
    chain postrouting {{
        type nat hook postrouting priority srcnat + 10; policy accept;
        ip saddr {pod_cidr} ip daddr != {{ {cluster_cidr}, 224.0.0.0/4 }} fib daddr type != local masquerade
    }}
}}
"""


def apply(text: str) -> None:
    """Runs nft text in this process's network namespace, as one transaction. Raises RulesetError."""
    nft = nftables.Nftables()
    code, _, error = nft.cmd(text)
    if code:
        raise RulesetError(f"nftables: {error.strip()}")


def remove() -> None:
    """Removes the table; no error when there is none (add, then delete: nft before 1.0.7 has no destroy)."""
    apply(f"table ip {TABLE} {{ }}\ndelete table ip {TABLE}\n")


class Watch:
    """Calls `on_change` when another process has changed the table, or may have: notifications can be lost.

    Opened in the network namespace of the calling thread; needs a running event loop. A context manager.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._events = Events()
        self._touched = False

    def __enter__(self) -> Self:
        asyncio.get_running_loop().add_reader(self._events.fileno(), self._read)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._events.fileno())
        self._events.close()

    def _read(self) -> None:
        try:
            records = self._events.read()
        except Overrun:
            self._on_change()
            return
        for record in records:
            if isinstance(record, Change):
                self._touched = self._touched or record.table == TABLE
            elif isinstance(record, Generation):
                # It ends every transaction and tells whose it was: what this process wrote is no news.
                if self._touched and record.pid != os.getpid():
                    self._on_change()
                self._touched = False
