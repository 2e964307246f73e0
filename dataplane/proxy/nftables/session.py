"""One process's hold on the nftables tables of a network namespace: sockets, structure, and transactions."""

from __future__ import annotations

from collections.abc import Collection

from kernelet.ext.nft import Events, Socket

from ..engine import EngineConfig
from .elements import Edits, Elements
from .flows import Forgetter
from .ruleset import HAIRPIN, KINDS, TABLE, Family
from .structure import Structure
from .untracked import BACKEND_PORTS, UNTRACKED

_LARGE = 2000
"""A transaction of this many elements is committed while nobody listens to its notifications."""


class Session:
    """Opened in the network namespace the calling thread is in; raises OSError or EngineError where that fails."""

    def __init__(self, config: EngineConfig, families: Collection[Family], *, beside_sockets: bool) -> None:
        self.families = families
        self.socket = Socket()
        try:
            self.structure = Structure(config, families, self.socket, beside_sockets=beside_sockets)
            self.events = Events(ignore=self.socket)
        except OSError:
            self.socket.close()
            raise
        self.flows = Forgetter(self.socket)
        self.written = 0
        """Element operations so far."""

    def close(self) -> None:
        self.socket.close()
        self.events.close()

    def elements(self) -> Elements:
        """All elements in the kernel but clients' affinity, which rules write, by set. Raises NetlinkError."""
        found: Elements = {}
        for family in self.families:
            kinds = KINDS[family]
            names = [name for kind in kinds for name in (*kind.sets, kind.chains)]
            for name in (*names, HAIRPIN, BACKEND_PORTS, UNTRACKED):
                items = self.socket.elements(TABLE, family.number, name)
                if items:
                    found[family, name] = items
        return found

    def commit(self, edits: Edits, generation: int = 0) -> bool:
        """One transaction; true where another process may have changed something unnoticed. Raises NetlinkError."""
        if not edits:
            return False
        large = len(edits) >= _LARGE
        if large:
            generation = generation or self.socket.generation()
        batch = edits.batch(generation)
        if not large:
            self.socket.commit(batch)
            self.written += len(batch)
            return False
        self.events.pause()
        try:
            self.socket.commit(batch)
        finally:
            self.events.resume()
        self.written += len(batch)
        return self.socket.generation() != generation + 1
