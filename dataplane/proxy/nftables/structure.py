"""Keeps the structure of the nftables tables: makes sets and rules, and mends what others have changed of them."""

from __future__ import annotations

import errno
import logging
from collections.abc import Collection, Iterable

from kernelet.ext.nft import Batch, BatchError, NetlinkError, Socket

from ..engine import EngineConfig, EngineError
from .chains import (
    Chooser,
    base_rules,
    base_text,
    chain_elements,
    choosers_among,
    choosers_rules,
    choosers_text,
    initial_choosers,
)
from .elements import Edits, Elements
from .ruleset import KINDS, TABLE, Family, Nft, add_sets
from .untracked import PROTOCOLS, UNTRACKED

_log = logging.getLogger(__name__)
_TRIES = 8


class Structure:
    """The tables of the network namespace that `netlink` is in, as far as they are no elements of services."""

    def __init__(
        self, config: EngineConfig, families: Collection[Family], netlink: Socket, *, beside_sockets: bool
    ) -> None:
        self._config = config
        self._families = families
        self._netlink = netlink
        self._beside_sockets = beside_sockets
        self._nft = Nft()
        self._rules: dict[Family, int] = {}
        """Fingerprints of the rules that were written last."""
        self._choosers: dict[Family, set[Chooser]] = {family: set() for family in families}

    def ensure(self, *, force: bool = False) -> bool:
        """Puts sets and rules right where they are not what was written last; true where they were not.

        Raises EngineError.
        """
        if not force and all(self._fingerprint(family) == self._rules.get(family) for family in self._families):
            return False
        try:
            self._add_sets()
            text, rules = "", Batch()
            for family in self._families:
                choosers = self._choosers[family]
                choosers.update(self._kernel_choosers(family), initial_choosers(family))
                text += base_text(family, self._config, choosers, beside_sockets=self._beside_sockets)
                base_rules(rules, family, choosers)
            self._write_rules(text, rules)
            self._add_chain_elements()
        except NetlinkError as error:
            raise EngineError(f"cannot make the sets and rules of nftables table {TABLE}: {error}") from error
        return True

    def ensure_choosers(self, wanted: Iterable[Chooser]) -> None:
        """Makes the chains for numbers that have not been needed before. Raises EngineError, NetlinkError."""
        missing = {chosen for chosen in set(wanted) if chosen[1] and chosen not in self._choosers[chosen[0].family]}
        if not missing:
            return
        present = {chosen for choosers in self._choosers.values() for chosen in choosers}
        rules = Batch()
        choosers_rules(rules, missing, present)
        self._write_rules(choosers_text(missing, present), rules)
        for chosen in missing:
            self._choosers[chosen[0].family].add(chosen)
        self._add_chain_elements()

    def elements(self) -> Elements:
        """What is to be in the sets that do not depend on services."""
        return self._chain_elements() | {(family, UNTRACKED): dict.fromkeys(PROTOCOLS) for family in self._families}

    def delete(self) -> None:
        """Removes the tables with all they hold. Raises EngineError."""
        self._nft.delete_tables(self._families)

    def _add_sets(self) -> None:
        """Makes the tables and their sets. Those of another version, with sets of other types, are made anew."""
        sets = Batch()
        for family in self._families:
            add_sets(sets, family)
        self._nft.add_tables(self._families)
        try:
            self._netlink.commit(sets)
        except BatchError as error:
            if error.errno != errno.EEXIST:
                raise
            _log.warning("making nftables table %s anew, which has sets of another version: %s", TABLE, error)
            self._nft.delete_tables(self._families)
            self._nft.add_tables(self._families)
            self._netlink.commit(sets)

    def _kernel_choosers(self, family: Family) -> set[Chooser]:
        """The choosers that are in the kernel: elements may point to them."""
        return choosers_among(family, {chain for chain, _, _ in self._netlink.rules(TABLE, family.number)})

    def _chain_elements(self) -> Elements:
        """What the maps from a number to a chain are to hold."""
        found: Elements = {}
        for family in self._families:
            for kind in KINDS[family]:
                numbers = [number for owner, number in self._choosers[family] if owner is kind]
                found[family, kind.chains] = dict(chain_elements(kind, numbers))
        return found

    def _add_chain_elements(self) -> None:
        """Adds those that are missing: what is there already the kernel takes for done. Raises NetlinkError."""
        edits = Edits()
        for where, items in self._chain_elements().items():
            edits.change(where, [], list(items.items()))
        self._netlink.commit(edits.batch())

    def _write_rules(self, text: str, rules: Batch) -> None:
        """Runs text and batch, and remembers the rules that are in the kernel then, to compare with later."""
        for _ in range(_TRIES):
            before = self._netlink.generation()
            self._nft.run(text, f"write the rules of nftables table {TABLE}")
            self._netlink.commit(rules)
            self._rules = {family: self._fingerprint(family) for family in self._families}
            # Had somebody changed rules in between, theirs would be taken for ours.
            if self._netlink.generation() == before + 1 + bool(rules):
                return
        raise EngineError(
            f"the nftables ruleset changed during each of {_TRIES} attempts to write table {TABLE}'s rules"
        )

    def _fingerprint(self, family: Family) -> int:
        try:
            return hash(tuple(self._netlink.rules(TABLE, family.number)))
        except NetlinkError as error:
            raise EngineError(f"cannot read the rules of nftables table {TABLE}: {error}") from error
