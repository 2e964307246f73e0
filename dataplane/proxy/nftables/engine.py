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
number.) For a like reason only one chain uses `backends` (and one more for each affinity timeout): the kernel walks a
map as a whole for each chain that comes to use it, and with the rule in every chain a restart took two seconds longer
at 10,000 services.

What only some services ask for is in the number too (numbers.py), so that the others pay nothing for it:

* session affinity: the chain of such a number asks a map that rules fill before it chooses (affinity.py);
* loadBalancerSourceRanges: the chain drops clients which are not in the set `sources`, whose elements are ranges, keyed
  by frontend; it is for balancer addresses alone;
* weights need no chain: a backend has as many slots as its weight over the greatest common divisor of all.

Packets between pods that no service has a part in go around connection tracking (untracked.py).

Beside socket-level translation (`beside_sockets`) frontends of cluster IPs are left out, but for SCTP; external and
balancer addresses and node ports stay, and what pods send there is masqueraded, since nothing else would bring the
replies back to where they are translated.

Costs. A new connection: four hash lookups, one of them in a tiny map, and a route lookup only where no service
address matches; packets of known connections run through no chain but `raw` (every other is of type nat), conntrack
translates them. A service port: two elements per address, of which one counts. An endpoint: one element per address;
three under session affinity. A changed endpoint: two to five element operations (its slot, the one that moves into its
place, the number). Chains: one per number that has ever been needed.

Measured on two cores with 10,000 services of 10 endpoints: 0.6 s to write all of them to an empty table, 0.15 ms to
change one endpoint, 1 s to compare everything with the kernel after a restart and find nothing to write. Most of the
latter is the kernel's, which walks a set from its beginning for each 32 KB of a dump: with the square of the elements,
so that at 50,000 services a restarted agent reads for ten seconds and more. What the kernel holds works meanwhile.

Details that matter
-------------------

* A delta is one netlink transaction, and so is what a snapshot differs by: a process that is killed leaves the old
  routes or the new ones. Chains for numbers that are new come before, in a transaction of their own, and do nothing
  until an element leads there.
* A packet that is between two lookups while a transaction is committed falls back to slot 0.
* The kernel has no update: a changed value is a deletion and an addition in the same transaction.
* What the kernel refuses of a service, it names by element: that frontend is left as it is and the rest is written in
  the next attempt, until the kernel takes it. The error tells services and elements; they are tried again with
  the snapshot that must follow, and with each repair.
* Slots come from what the kernel holds, so that a restarted agent finds nothing to write.
* Masquerading is asked for by a packet mark that lives from prerouting or output until postrouting: node ports, and
  service addresses where the client is no pod. A pod that meets itself is found by the `hairpin` set.
* The number travels from the lookup to the verdict map in the packet's priority, and the slot from the random choice
  to the backend: the one field of a first packet that nobody has a use for at that point, and one whose type nft can
  list (`nft list ruleset` of nft 1.0.6 aborts on a map with an untyped number). Postrouting sets it back.
* Counters count connections only, as packets of known connections pass no chain.
* 127.0.0.1:<node port> works on the node through route_localnet, and packets from outside for 127.0.0.0/8 are
  dropped.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from kernelet.ext.nft import BatchError, NetlinkError, Socket

from ...routes import Delta, RouteTable, ServiceRoute
from ..engine import Counter, EngineConfig, EngineError
from ..memory import collector_paused
from .elements import Elements, Frontend, Plan, Value, differences, frontend_of, plan, readable, without
from .flows import StaleFlows
from .ledger import Ledger, Transition, all_elements, kernel_slots, whole
from .ruleset import BACKENDS, KINDS, TABLE, Family, Nft, families
from .session import Session
from .untracked import BACKEND_PORTS
from .watch import ForeignChanges, is_restart

_log = logging.getLogger(__name__)
_TRIES = 8
_ROUTE_LOCALNET = Path("/proc/sys/net/ipv4/conf/all/route_localnet")


class NftablesEngine:
    """Keeps the kernel's maps equal to a route table; see the module's text for how.

    It works in the network namespace of the thread that calls `start`. `beside_sockets`: sockets of clients on this
    node are translated when they connect, so cluster IPs are left out but for SCTP, and pods' connections that are
    translated here are masqueraded.
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
        self._session: Session | None = None

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Makes the tables and replaces their rules in one transaction; elements stay. Raises EngineError."""
        try:
            self._session = Session(self._config, self._families, beside_sockets=self._beside_sockets)
        except OSError as error:
            raise EngineError(f"nftables is not available: {error}; load nf_tables or use another engine") from error
        self._session.structure.ensure(force=True)
        try:
            _ROUTE_LOCALNET.write_text("1")
        except OSError as error:
            _log.warning(
                "node ports will not answer on 127.0.0.1: cannot write %s: %s", _ROUTE_LOCALNET, error.strerror
            )

    def close(self, *, keep: bool = True) -> None:
        """Releases sockets; with keep=False also removes the tables. Raises EngineError where that is refused."""
        try:
            if not keep and self._session is not None:
                self._session.structure.delete()
            elif not keep:
                Nft().delete_tables(self._families)
        finally:
            if self._session is not None:
                self._session.close()
            self._session = None

    @property
    def written(self) -> int:
        """Element operations so far."""
        return self._kernel.written

    @property
    def _kernel(self) -> Session:
        if self._session is None:
            raise EngineError("the nftables engine is not started: call start() first")
        return self._session

    async def watch_foreign_changes(self, on_change: Callable[[], None]) -> None:
        """Calls `on_change` whenever another process has changed our tables, until cancelled.

        Whoever is called sees to it that `repair` runs, in the thread that calls this engine's other methods.
        """
        await ForeignChanges(self._kernel.events, frozenset(f.number for f in self._families)).run(on_change)

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
        try:
            transition = self._ledger.transition(
                {name: self._plan(service) for name, service in old.items()},
                {name: self._plan(service) for name, service in new.items()},
                lambda name: self._plan(held[name]),
            )
            self._kernel.structure.ensure_choosers(
                (kind, int.from_bytes(held.number, sys.byteorder))
                for (kind, _), held in transition.frontends.items()
                if held and held.slots
            )
            missed = self._kernel.commit(self._ledger.edits(transition))
        except (NetlinkError, EngineError) as error:
            _log.warning("a change was refused, reading back what the kernel holds: %s", error)
            self._synchronize(self._target(delta))
            return
        flows = self._stale_flows(transition)
        self._ledger.accept(transition)
        self._kernel.flows.forget(flows)
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
        if self._session is not None:
            return self._read_routes(self._session.socket)
        with Socket() as netlink:
            try:
                return self._read_routes(netlink)
            except NetlinkError as error:
                raise EngineError(f"cannot read nftables table {TABLE}: {error}; does the proxy run here?") from error

    def _read_routes(self, netlink: Socket) -> frozenset[tuple[bytes, int, int, bytes, int]]:
        found = set()
        for family in self._families:
            size = family.length
            for key, data in netlink.elements(TABLE, family.number, BACKENDS).items():
                if isinstance(data, bytes):
                    port, backend_port = key[size + 4 : size + 6], data[size : size + 2]
                    found.add((key[:size], key[size], int.from_bytes(port), data[:size], int.from_bytes(backend_port)))
        return frozenset(found)

    def repair(self) -> int:
        """Mends rules and elements; returns how many elements differed, plus one where rules did. Raises EngineError.

        Before the first snapshot only the rules are looked at: what elements should be there is not known yet.
        """
        mended = self._kernel.structure.ensure()
        if not self._applied:
            return int(mended)
        return self._synchronize(self._table.services) + mended

    def tidy(self) -> None:
        """See the contract."""
        self._kernel.flows.tidy()

    def counters(self) -> list[Counter]:
        """New connections to each service's addresses and node ports; packets and bytes are not counted: see above."""
        tally: Tally[str] = Tally()
        for kind in (kind for family in self._families for kind in KINDS[family] if kind.traffic):
            try:
                rows = self._kernel.socket.counters(TABLE, kind.family.number, kind.traffic)
            except NetlinkError as error:
                raise EngineError(f"cannot read the counters of nftables table {TABLE}: {error}") from error
            for key, packets, _ in rows:
                owner = self._ledger.owner((kind, key))
                if owner:
                    tally[owner] += packets
        return [Counter(name, connections, 0, 0) for name, connections in sorted(tally.items())]

    # --- the whole table ----------------------------------------------------------------------------------------------

    @collector_paused()
    def _synchronize(self, services: Mapping[str, ServiceRoute]) -> int:
        """Compares the kernel with a whole table and writes the difference; returns how many elements differed.

        What cannot be had of a service does not keep the others from being written; then EngineError tells all of it.
        """
        plans, impossible = self._plans(services)
        refused: dict[Frontend, str] = {}
        differed = 0
        reason = "the ruleset kept changing"
        for _ in range(_TRIES):
            try:
                count, missed = self._attempt(plans, refused)
            except BatchError as error:
                if not any(is_restart(failure.errno) for failure in error.failures):
                    refused.update(self._blame(plans, error))
                reason = str(error)
                continue
            except NetlinkError as error:
                reason = str(error)
                continue
            differed += count
            if not missed:
                break
        else:
            raise EngineError(f"cannot write nftables table {TABLE} in {_TRIES} attempts: {reason}")
        if refused or impossible:
            self._broken = True
            raise EngineError("; ".join(sorted({*refused.values(), *impossible})))
        return differed

    def _plans(self, services: Mapping[str, ServiceRoute]) -> tuple[dict[str, Plan], list[str]]:
        """What each service wants, and what is wrong with those that cannot be had."""
        plans, impossible = {}, []
        for name, service in services.items():
            try:
                plans[name] = self._plan(service)
            except EngineError as error:
                impossible.append(f"{error}; other services are routed")
        return plans, impossible

    def _attempt(self, plans: Mapping[str, Plan], refused: Mapping[Frontend, str]) -> tuple[int, bool]:
        """Writes what differs, but for `refused`, in one transaction; how many elements, and whether to look again.

        Raises NetlinkError, and then has changed nothing.
        """
        session = self._kernel
        session.structure.ensure()
        session.structure.ensure_choosers(
            (kind, target.number) for p in plans.values() for (kind, _), target in p.frontends.items()
        )
        generation = session.socket.generation()
        kernel = session.elements()
        ledger = whole(plans, kernel, self._known_ports(kernel))
        wanted = all_elements(ledger) | session.structure.elements()
        edits, count = differences(without(kernel, refused), without(wanted, refused))
        missed = session.commit(edits, generation)
        self._ledger = ledger
        if count:
            session.flows.forget(_whole_flows(self._families, kernel, ledger))
        return count, missed

    def _known_ports(self, kernel: Elements) -> set[tuple[Family, bytes]]:
        """Ports of backends that must go on being tracked: connections may be left of when a service led to them."""
        if self._beside_sockets:
            return set()
        found = {(family, key) for family in self._families for key in kernel.get((family, BACKEND_PORTS), ())}
        return found | self._ledger.ports

    def _blame(self, plans: Mapping[str, Plan], error: BatchError) -> dict[Frontend, str]:
        """The frontends whose elements were refused, and what to tell. Raises EngineError where none is to blame."""
        found = {}
        for failure in error.failures:
            frontend = frontend_of(failure)
            if frontend is None:
                raise EngineError(f"cannot write nftables table {TABLE}: {error}") from error
            owner = min((name for name, plan_ in plans.items() if frontend in plan_.frontends), default="")
            found[frontend] = (
                f"service {owner or '(none)'}: the kernel refused to {failure.operation} element "
                f"{readable(frontend)} of nftables map {failure.set_name}: "
                f"{failure.message or os.strerror(failure.errno)}; other services are routed"
            )
        return found


def _whole_flows(which: Iterable[Family], kernel: Elements, ledger: Ledger) -> StaleFlows:
    """The flows that going from the kernel's elements to the ledger's leaves stale."""
    flows = StaleFlows()
    nothing: Mapping[bytes, Value] = {}
    for kind in (kind for family in which for kind in KINDS[family]):
        there = kernel.get((kind.family, kind.frontends), nothing)
        wanted = {key for owner, key in ledger.held if owner is kind}
        for key in wanted | there.keys():
            old = kernel_slots(kernel, (kind, key)) if key in there else None
            flows.add((kind, key), old, ledger.held.get((kind, key)))
    return flows
