"""The nftables engine: service routing as elements of a few maps.

Designs considered
------------------

*A chain per service and one per endpoint* (kube-proxy's nftables mode, and its iptables mode before). A change adds
and deletes chains and rules, and the kernel validates the jump graph and rebuilds rule blobs on every commit;
programming 10,000 services with 10 endpoints takes tens of seconds and one change takes seconds, since cost follows
the size of the table rather than that of the change.

*A chain per service, endpoints in an anonymous map* (`dnat to numgen random mod 3 map { 0 : ..., 1 : ... }`). Half as
many chains, but an endpoint change replaces a rule and its anonymous map, and a chain per service stays.

*A named map per service.* No chains for endpoints, but every set is a hash table of its own, and the rule that uses it
still needs a chain.

*IPVS.* A good data structure, but no NAT from nodes without iptables or nftables beside it, a dummy link that bears
every service address, and it is missing from many kernels.

This design
-----------

What differs between services is data, so it is kept in elements; what is common is kept in chains, and services that
have the same *number* of backends have their whole logic in common::

    services   10.96.0.1 . tcp . 80      : 3
    lb_chains  3                         : goto lb3
    backends   10.96.0.1 . tcp . 80 . 0  : 10.244.1.7 . 8080       slots are dense: 0, 1, 2
    chain lb3          { meta priority set numgen random mod 3 goto lb_translate }
    chain lb_translate { dnat ip to ip daddr . meta l4proto . th dport . meta priority map @backends }

Node ports are the same without the address (`nodeports`, `nodeport_backends`, `np<N>`). Clients outside the cluster
first meet the `local_` twins of these maps, which hold services with externalTrafficPolicy Local and only this node's
backends. A frontend without backends is an element as well (0 : goto reject_new), so that clients are refused at once;
so are unknown ports of service networks.

That a frontend has a number rather than a verdict is for the sake of changes: the kernel checks the whole jump graph,
and with it every element of every verdict map in reach, whenever an element with a jump is added. Verdicts are kept
in maps of a few dozen elements that hardly ever change, so a change costs the same whatever the size of the table.
(With verdicts in `services`, a changed number of endpoints took 1.5 ms at 10,000 services, in proportion to their
number.) For a like reason only one chain uses `backends`: the kernel walks a map as a whole for each chain that comes
to use it, and with the rule in every chain a restart took two seconds longer at 10,000 services.

Costs. A new connection: four hash lookups, one of them in a tiny map, and a route lookup only where no service
address matches; packets of known connections run through no chain at all (every chain is of type nat), conntrack
translates them. A service port: two elements per address, of which one counts. An endpoint: one element per address.
A changed endpoint: two to five element operations (its slot, the one that moves into its place, the number). Chains:
one per number of backends that has ever been needed.

Measured on two cores with 10,000 services of 10 endpoints: 0.8 s to write all of them to an empty table, 0.15 ms to
change one endpoint, 1.1 s to compare everything with the kernel after a restart and find nothing to write.

Details that matter
-------------------

* A delta is one netlink transaction. A packet that is between two lookups while it is committed falls back to slot 0.
* The kernel has no update: a changed value is a deletion and an addition in the same transaction.
* Slots come from what the kernel holds, so that a restarted agent finds nothing to write.
* Masquerading is asked for by a packet mark that lives from prerouting or output until postrouting: node ports, and
  service addresses where the client is no pod. A pod that meets itself is found by the `hairpin` set.
* The number of backends travels from the lookup to the verdict map in the packet's priority, and the slot from the
  random choice to the backend: the one field of a first packet that nobody has a use for at that point, and one whose
  type nft can list (`nft list ruleset` of nft 1.0.6 aborts on a map with an untyped number). Postrouting sets it back.
* Session affinity would be one more verdict, `goto af<N>`, whose chain asks a dynamic map before it chooses; routes
  carry `affinity_seconds` for it, which this engine ignores.
* Counters count connections only, as packets of known connections pass no chain; node ports have none.
* 127.0.0.1:<node port> works on the node through route_localnet, and packets from outside for 127.0.0.0/8 are
  dropped.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from kernelet.ext.nft import Batch, BatchError, Events, NetlinkError, Socket, delete_flows

from ..routes import Delta, RouteTable, ServiceRoute
from .elements import Edits, Elements, Frontend, Place, Plan, Value, differences, frontend_of, plan, readable, without
from .engine import Counter, EngineConfig, EngineError
from .flows import StaleFlows
from .ledger import KernelSlots, Ledger, Transition, all_elements, kernel_slots, whole
from .memory import collector_paused
from .ruleset import (
    BACKENDS,
    HAIRPIN,
    INITIAL_CHAINS,
    KINDS,
    TABLE,
    TRAFFIC,
    Chooser,
    Family,
    Nft,
    add_sets,
    base_text,
    chain_elements,
    choosers_text,
    families,
)
from .untracked import BACKEND_PORTS, PROTOCOLS, UNTRACKED
from .watch import ForeignChanges, is_restart

_log = logging.getLogger(__name__)
_TRIES = 8
_LARGE = 2000
"""A transaction of this many elements is committed while nobody listens to its notifications."""
_ROUTE_LOCALNET = Path("/proc/sys/net/ipv4/conf/all/route_localnet")


class NftablesEngine:
    """Keeps the kernel's maps equal to a route table; see the module's text for how.

    It works in the network namespace of the thread that calls `start`. `written` counts element operations so far.
    """

    name = "nftables"

    def __init__(self, config: EngineConfig, beside_sockets: bool = False) -> None:
        self._config = config
        self._beside_sockets = beside_sockets
        self._families = families(config)
        self._table = RouteTable()
        self._ledger = Ledger()
        self._zone = ""
        self._applied = False
        self._broken = False
        self._rules: dict[Family, int] = {}
        self._chains: dict[Family, set[Chooser]] = {}
        self._socket: Socket | None = None
        self._events: Events | None = None
        self._nft: Nft | None = None
        self._untidy = StaleFlows()
        self.written = 0

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Makes the tables and replaces their rules in one transaction; elements stay. Raises EngineError."""
        try:
            self._nft = Nft()
            self._socket = Socket()
            self._events = Events(ignore=self._socket)
        except OSError as error:
            raise EngineError(f"nftables is not available: {error}; load nf_tables or use another engine") from error
        self._ensure_base(force=True)
        try:
            _ROUTE_LOCALNET.write_text("1")
        except OSError as error:
            _log.warning(
                "node ports will not answer on 127.0.0.1: cannot write %s: %s", _ROUTE_LOCALNET, error.strerror
            )

    def close(self, *, keep: bool = True) -> None:
        """Releases sockets; with keep=False also removes the tables. Raises EngineError where that is refused."""
        try:
            if not keep:
                (self._nft or Nft()).delete_tables(self._families)
        finally:
            for resource in (self._socket, self._events):
                if resource is not None:
                    resource.close()
            self._socket = self._events = self._nft = None

    async def watch_foreign_changes(self, on_change: Callable[[], None]) -> None:
        """Calls `on_change` whenever another process has changed our tables, until cancelled.

        Whoever is called sees to it that `repair` runs, in the thread that calls this engine's other methods.
        """
        if self._events is None:
            raise EngineError("the nftables engine is not started: call start() first")
        await ForeignChanges(self._events, frozenset(f.number for f in self._families)).run(on_change)

    # --- routes -------------------------------------------------------------------------------------------------------

    def apply(self, delta: Delta) -> None:
        """Brings the kernel to the delta's version; see the contract.

        Where the kernel refuses elements of some service even after reading back, all other services are brought to the
        new version, EngineError names the refused one, the version is not taken over, and only a snapshot is
        accepted next.
        """
        if not delta.snapshot and (
            self._broken or (delta.generation, delta.base_version) != (self._table.generation, self._table.version)
        ):
            raise EngineError(
                f"routes {delta.generation}:{delta.base_version}..{delta.version} do not continue what this node "
                f"holds, {self._table.generation}:{self._table.version}; send a snapshot"
            )
        zone, before = self._table.zone_after(delta, self._config.node), self._zone
        self._zone = zone
        try:
            if delta.snapshot or zone != before:
                self._synchronize(self._target(delta))
            else:
                self._apply_difference(delta)
        except EngineError:
            if self._broken:
                self._table.services = self._target(delta)
            else:
                self._zone = before
            raise
        self._table.apply(delta)
        self._applied, self._broken = True, False

    def _target(self, delta: Delta) -> dict[str, ServiceRoute]:
        """All services as they are after a delta."""
        return self._table.after(delta).services

    def _apply_difference(self, delta: Delta) -> None:
        """Writes what a delta changes, trusting that the kernel holds what the ledger says; else reads it back."""
        held = self._table.services
        new = {service.id: service for service in delta.services if held.get(service.id) != service}
        old = {name: held[name] for name in (*new, *delta.removed_services) if name in held}
        for name in delta.removed_services:
            new.pop(name, None)
        transition = self._ledger.transition(
            {name: self._plan(service) for name, service in old.items()},
            {name: self._plan(service) for name, service in new.items()},
            lambda name: self._plan(held[name]),
        )
        try:
            self._ensure_choosers(
                (frontend[0], len(held.slots)) for frontend, held in transition.frontends.items() if held
            )
            missed = self._commit(self._ledger.edits(transition))
        except (NetlinkError, EngineError) as error:
            _log.warning("nftables refused a change, reading back what the kernel holds: %s", error)
            self._synchronize(self._target(delta))
            return
        flows = self._stale_flows(transition)
        self._ledger.accept(transition)
        self._delete_flows(flows)
        if missed:
            self._synchronize(self._target(delta))

    def _plan(self, service: ServiceRoute) -> Plan:
        return plan(service, self._config, self._families, self._zone, beside_sockets=self._beside_sockets)

    def _stale_flows(self, transition: Transition) -> StaleFlows:
        flows = StaleFlows()
        for frontend, new in transition.frontends.items():
            old = self._ledger.held.get(frontend)
            flows.add(frontend, old.slots if old else None, new)
        return flows

    def restore(self) -> frozenset[tuple[bytes, int, int, bytes, int]]:
        """Read from the kernel: (service address, protocol, port, backend address, backend port).

        Also before start(), for a bystander who only looks. Raises EngineError where there are no routes to read.
        """
        if self._socket is not None:
            return self._read_routes(self._socket)
        with Socket() as netlink:
            try:
                return self._read_routes(netlink)
            except NetlinkError as error:
                raise EngineError(f"cannot read nftables table {TABLE}: {error}; does the proxy run here?") from error

    def _read_routes(self, netlink: Socket) -> frozenset[tuple[bytes, int, int, bytes, int]]:
        found = set()
        for family in self._families:
            size = family.length
            for key, data in netlink.elements(TABLE, family.number, BACKENDS):
                if isinstance(data, bytes):
                    port, backend_port = key[size + 4 : size + 6], data[size : size + 2]
                    found.add((key[:size], key[size], int.from_bytes(port), data[:size], int.from_bytes(backend_port)))
        return frozenset(found)

    def repair(self) -> int:
        """Mends rules and elements; returns how many elements differed, plus one where rules did. Raises EngineError.

        Before the first snapshot only the rules are looked at: what elements should be there is not known yet.
        """
        mended = self._ensure_base()
        if not self._applied:
            return int(mended)
        return self._synchronize(self._table.services) + mended

    def counters(self) -> list[Counter]:
        """New connections to each service's addresses; packets and bytes are not counted, see the module's text."""
        tally: Tally[str] = Tally()
        for family in self._families:
            services = KINDS[family][0]
            try:
                rows = self._netlink.counters(TABLE, family.number, TRAFFIC)
            except NetlinkError as error:
                raise EngineError(f"cannot read the counters of nftables table {TABLE}: {error}") from error
            for key, packets, _ in rows:
                owner = self._ledger.owner((services, key))
                if owner:
                    tally[owner] += packets
        return [Counter(name, connections, 0, 0) for name, connections in sorted(tally.items())]

    # --- the whole table ----------------------------------------------------------------------------------------------

    @collector_paused()
    def _synchronize(self, services: Mapping[str, ServiceRoute]) -> int:
        """Compares the kernel with a whole table and writes the difference; returns how many elements differed."""
        plans = {name: self._plan(service) for name, service in services.items()}
        refused: dict[Frontend, str] = {}
        differed = 0
        reason = "the ruleset kept changing"
        for _ in range(_TRIES):
            self._ensure_base()
            self._ensure_choosers(
                (kind, len(target.backends)) for p in plans.values() for (kind, _), target in p.frontends.items()
            )
            try:
                generation = self._netlink.generation()
                kernel = self._kernel()
                slots = kernel_slots(kernel)
                ledger = whole(plans, slots, self._known_ports(kernel))
                wanted = all_elements(ledger) | self._chain_elements() | self._untracked_elements()
                edits, count = differences(without(kernel, refused), without(wanted, refused))
                missed = self._commit(edits, generation)
            except BatchError as error:
                if not any(is_restart(failure.errno) for failure in error.failures):
                    refused.update(self._blame(ledger, error))
                reason = str(error)
                continue
            except NetlinkError as error:
                reason = str(error)
                continue
            differed += count
            self._ledger = ledger
            if count:
                self._delete_flows(_whole_flows(self._families, kernel, slots, ledger))
            if not missed:
                break
        else:
            raise EngineError(f"cannot write nftables table {TABLE} in {_TRIES} attempts: {reason}")
        if refused:
            self._broken = True
            raise EngineError("; ".join(sorted(set(refused.values()))))
        return differed

    def _kernel(self) -> dict[Place, dict[bytes, Value]]:
        """All elements in the kernel, by set."""
        found: dict[Place, dict[bytes, Value]] = {}
        for family in self._families:
            names = [name for kind in KINDS[family] for name in (kind.frontends, kind.backends, kind.chains)]
            for name in (*names, HAIRPIN, TRAFFIC, BACKEND_PORTS, UNTRACKED):
                items = self._netlink.elements(TABLE, family.number, name)
                if items:
                    found[family, name] = dict(items)
        return found

    def _known_ports(self, kernel: Elements) -> set[tuple[Family, bytes]]:
        """Ports of backends that must go on being tracked: connections may be left of when a service led to them."""
        if self._beside_sockets:
            return set()
        found = {(family, key) for family in self._families for key in kernel.get((family, BACKEND_PORTS), ())}
        return found | self._ledger.ports

    def _untracked_elements(self) -> Elements:
        return {(family, UNTRACKED): dict.fromkeys(PROTOCOLS) for family in self._families}

    def _commit(self, edits: Edits, generation: int = 0) -> bool:
        """One transaction; true where another process may have changed something unnoticed. Raises NetlinkError."""
        if not edits:
            return False
        large = len(edits) >= _LARGE and self._events is not None
        if large:
            generation = generation or self._netlink.generation()
        batch = edits.batch(generation)
        if not large or self._events is None:
            self._netlink.commit(batch)
            self.written += len(batch)
            return False
        self._events.pause()
        try:
            self._netlink.commit(batch)
        finally:
            self._events.resume()
        self.written += len(batch)
        return self._netlink.generation() != generation + 1

    def _blame(self, ledger: Ledger, error: BatchError) -> dict[Frontend, str]:
        """The frontends whose elements were refused, and what to tell. Raises EngineError where none is to blame."""
        found = {}
        for failure in error.failures:
            frontend = frontend_of(failure)
            if frontend is None:
                raise EngineError(f"cannot write nftables table {TABLE}: {error}") from error
            owner = ledger.owner(frontend)
            found[frontend] = (
                f"service {owner or '(none)'}: the kernel refused to {failure.operation} element "
                f"{readable(frontend)} of nftables map {failure.set_name}: "
                f"{failure.message or os.strerror(failure.errno)}; other services are routed"
            )
        return found

    def _delete_flows(self, flows: StaleFlows) -> None:
        """Forgets tracked flows that a change left stale: UDP ones now, the rest is for `tidy`.

        A UDP client that keeps sending would reach the old backend for ever. Unanswered TCP attempts only matter where
        a backend died, and reading the table takes milliseconds, which every acknowledgement would wait for.
        """
        for family in flows:
            if flows.only_unanswered(family):
                self._untidy.merge(flows, family)
            else:
                self._delete_flows_of(family, flows)

    def tidy(self) -> None:
        """See the contract."""
        flows, self._untidy = self._untidy, StaleFlows()
        for family in flows:
            self._delete_flows_of(family, flows)

    def _delete_flows_of(self, family: Family, flows: StaleFlows) -> None:
        """The routes are right all the same when this fails."""
        match, few = partial(flows.match, family), flows.only_unanswered(family)
        try:
            count = delete_flows(self._netlink, family.number, match, only_unanswered=few)
        except (NetlinkError, TimeoutError) as error:
            _log.warning("stale flows stay until they time out: conntrack says: %s", error)
        else:
            if count:
                _log.info("forgot %d stale flows", count)

    # --- structure ----------------------------------------------------------------------------------------------------

    @property
    def _netlink(self) -> Socket:
        if self._socket is None:
            raise EngineError("the nftables engine is not started: call start() first")
        return self._socket

    def _ensure_base(self, *, force: bool = False) -> bool:
        """Puts the rules right where they are not what was written last; true where they were not."""
        if not force and all(self._fingerprint(family) == self._rules.get(family) for family in self._families):
            return False
        try:
            self._add_sets()
            text = ""
            for family in self._families:
                chains = self._chains.setdefault(family, set())
                chains.update(self._kernel_chains(family), _initial(family))
                text += base_text(family, self._config, chains, beside_sockets=self._beside_sockets)
            self._write_rules(text)
            self._add_chain_elements()
        except NetlinkError as error:
            raise EngineError(f"cannot make the maps of nftables table {TABLE}: {error}") from error
        return True

    def _add_sets(self) -> None:
        """Makes the tables and their sets. Those of another version, with sets of other types, are made anew."""
        sets = Batch()
        for family in self._families:
            add_sets(sets, family)
        self._structure.add_tables(self._families)
        try:
            self._netlink.commit(sets)
        except BatchError as error:
            if error.errno != errno.EEXIST:
                raise
            _log.warning("making nftables table %s anew, which has sets of another version: %s", TABLE, error)
            self._structure.delete_tables(self._families)
            self._structure.add_tables(self._families)
            self._netlink.commit(sets)

    def _kernel_chains(self, family: Family) -> set[Chooser]:
        """The choosers that are in the kernel: elements may point to them."""
        known = {kind.chain: kind for kind in KINDS[family]}
        names = {chain for chain, _, _ in self._netlink.rules(TABLE, family.number)}
        matches = [match for name in names if (match := re.fullmatch(r"([a-z]+)([0-9]+)", name))]
        return {(known[match[1]], int(match[2])) for match in matches if match[1] in known}

    def _ensure_choosers(self, wanted: Iterable[Chooser]) -> None:
        """Makes the chains for numbers of backends that have not been needed before. Raises EngineError."""
        missing = {
            (kind, count) for kind, count in set(wanted) if count and (kind, count) not in self._chains[kind.family]
        }
        if not missing:
            return
        self._write_rules(choosers_text(missing))
        for kind, count in missing:
            self._chains[kind.family].add((kind, count))
        self._add_chain_elements()

    def _chain_elements(self) -> Elements:
        """What the maps from a number of backends to a chain are to hold."""
        found: Elements = {}
        for family in self._families:
            for kind in KINDS[family]:
                counts = [count for owner, count in self._chains[family] if owner is kind]
                found[family, kind.chains] = dict(chain_elements(kind, counts))
        return found

    def _add_chain_elements(self) -> None:
        """Adds those that are missing: what is there already the kernel takes for done. Raises NetlinkError."""
        edits = Edits()
        for where, items in self._chain_elements().items():
            edits.change(where, [], list(items.items()))
        self._netlink.commit(edits.batch())

    def _write_rules(self, text: str) -> None:
        """Runs the text and remembers the rules that are in the kernel then, to compare with later."""
        for _ in range(_TRIES):
            before = self._netlink.generation()
            self._structure.run(text, f"write the rules of nftables table {TABLE}")
            self._rules = {family: self._fingerprint(family) for family in self._families}
            # Had somebody changed rules in between, theirs would be taken for ours.
            if self._netlink.generation() == before + 1:
                return
        raise EngineError(
            f"the nftables ruleset changed during each of {_TRIES} attempts to write table {TABLE}'s rules"
        )

    @property
    def _structure(self) -> Nft:
        if self._nft is None:
            raise EngineError("the nftables engine is not started: call start() first")
        return self._nft

    def _fingerprint(self, family: Family) -> int:
        try:
            return hash(tuple(self._netlink.rules(TABLE, family.number)))
        except NetlinkError as error:
            raise EngineError(f"cannot read the rules of nftables table {TABLE}: {error}") from error


def _initial(family: Family) -> set[Chooser]:
    services, nodeports, *_ = KINDS[family]
    return {(kind, count) for kind in (services, nodeports) for count in range(1, INITIAL_CHAINS + 1)}


def _whole_flows(
    which: Iterable[Family], kernel: Mapping[Place, Mapping[bytes, Value]], slots: KernelSlots, ledger: Ledger
) -> StaleFlows:
    """The flows that going from the kernel's elements to the ledger's leaves stale."""
    flows = StaleFlows()
    nothing: Mapping[bytes, Value] = {}
    for kind in (kind for family in which for kind in KINDS[family]):
        there = kernel.get((kind.family, kind.frontends), nothing)
        wanted = {key for owner, key in ledger.held if owner is kind}
        for key in wanted | there.keys():
            old = [data for data in slots.get((kind.family, kind.backends, key), ()) if data] if key in there else None
            flows.add((kind, key), old, ledger.held.get((kind, key)))
    return flows
