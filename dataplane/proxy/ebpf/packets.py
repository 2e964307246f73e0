"""What the ebpf engine leaves to packets: an nftables engine beside it.

As a rule that one knows no cluster IPs of TCP and UDP, and keeps pods' packets among themselves out of conntrack. Where
an nftables engine ran on this node before, connections that it has translated between pods live on by being tracked. So
long as there are any, the engine beside is a whole one, as before; the sockets' programs come first all the same.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from ipaddress import ip_address

from kernelet.ext.nft import AF_INET, AF_INET6, Flow, Socket, delete_flows

from ...routes import Delta, Protocol, RouteTable
from ..engine import Counter, EngineConfig
from ..nftables.engine import NftablesEngine

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 0.5
_FLOWS_SECONDS = 60.0
"""Between two looks at conntrack, which cost 2 us for each of its entries."""


class Packets:
    """Methods as the contract has them; to be used in the network namespace of the thread that calls `start`."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._engine = NftablesEngine(config, beside_sockets=True)
        self._retired: list[NftablesEngine] = []
        self._whole = False
        self._next_look = 0.0

    def start(self) -> None:
        """Raises EngineError, and NetlinkError where conntrack cannot be read."""
        self._whole = translated(self._config)
        if self._whole:
            _log.info("pods' packets stay tracked until the connections end that were translated for them")
            self._engine = NftablesEngine(self._config)
        self._next_look = time.monotonic() + _FLOWS_SECONDS
        self._engine.start()

    def apply(self, delta: Delta) -> None:
        self._engine.apply(delta)

    def repair(self) -> int:
        return self._engine.repair()

    def counters(self) -> list[Counter]:
        return self._engine.counters()

    def tidy(self, table: RouteTable) -> None:
        """Also puts an engine for what sockets leave in the place of a whole one that is not needed any more."""
        self._engine.tidy()
        if not self._whole or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _FLOWS_SECONDS
        if not translated(self._config):
            self._narrow(table)

    def _narrow(self, table: RouteTable) -> None:
        narrow = NftablesEngine(self._config, beside_sockets=True)
        narrow.start()
        services, peers = list(table.services.values()), list(table.peers.values())
        narrow.apply(Delta(table.generation, table.version, 0, services, [], peers))
        self._retired.append(self._engine)
        self._engine, self._whole = narrow, False
        _log.info("no translated connection between pods is left: their packets are not tracked any more")

    async def watch_foreign_changes(self, on_change: Callable[[], None]) -> None:
        while True:
            engine = self._engine
            watching = asyncio.create_task(engine.watch_foreign_changes(on_change), name="nftables changes")
            try:
                while engine is self._engine:
                    done, _ = await asyncio.wait({watching}, timeout=_LOOK_SECONDS)
                    for task in done:
                        task.result()
            finally:
                watching.cancel()
                await asyncio.wait({watching})
            self._close_retired()

    def _close_retired(self) -> None:
        while self._retired:
            self._retired.pop().close()

    def close(self, *, keep: bool = True) -> None:
        self._close_retired()
        self._engine.close(keep=keep)


def translated(config: EngineConfig) -> bool:
    """Whether conntrack has connections that packets to cluster IPs made. Raises NetlinkError."""
    found = False

    def look(flow: Flow) -> bool:
        nonlocal found
        if flow.protocol in (Protocol.TCP, Protocol.UDP) and flow.destination != flow.reply_source:
            destination = ip_address(flow.destination)
            found = found or any(destination in network for network in config.service_cidrs)
        return False

    with Socket() as netlink:
        for family in (AF_INET, AF_INET6):
            delete_flows(netlink, family, look)
    return found
