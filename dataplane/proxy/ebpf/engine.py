"""The eBPF engine: sockets connect straight to a backend, and no packet is ever translated.

Programs on the cgroup hooks of the node's pods and processes (ext/bpf/connect.bpf.c) replace a service's address by a
backend's where a socket names its peer: connect(2), and sendto(2) on unconnected sockets. recvfrom(2) and
getpeername(2) show the service's address. After that the connection is one between two pods: no NAT, no conntrack, no
cost per packet, and a pod that reaches itself through its service needs nothing special.

What comes from elsewhere never passes a hook: clients outside the cluster, node ports on the node's addresses, SCTP,
balancer addresses that are not for everybody. For these the engine runs an nftables engine beside, at the same version,
which knows no cluster IPs of TCP and UDP and keeps pods' packets among themselves out of conntrack.

Maps::

    services   10.96.0.1 . 80 . tcp   : set 7, 3 slots, affinity 0, counter 2
    backends   set 7 . slot 0         : 10.244.1.7 . 8080               slots are dense: 0, 1, 2
    members    set 7 . 10.244.1.7 ... : (present)                       of services with affinity only
    affinity   client . service       : 10.244.1.7 . 8080, last used    LRU
    flows      socket . backend       : service address                 LRU
    sockets    (socket storage)       : the last service of an unconnected UDP socket
    namespaces pod's namespace        : (present)                       LRU
    counters   2                      : connections, refusals           per CPU

Designs considered
------------------

*Slots that are rewritten in place.* A change would be two elements, but a service with three backends of which one goes
is wrong for a moment: either slot 2 leads nowhere or the same backend is met twice. Sets that are written whole cost as
many elements as the service has backends, in one system call (2 us for ten), and switch with one write.

*A map inside the service's element* (hash of maps): a switch is as atomic, but every set is a map of its own, with a
descriptor and an RCU grace period each; 10,000 take seconds.

*Reverse translation from socket storage for all sockets.* It lives as long as the socket, so nothing is ever forgotten,
but to make and free it costs a TCP connection 2 us, more than all else in its programs, for getpeername(2), which those
who ask ask at once. The LRU map of 65,536 forgets a connection after as many newer ones; getpeername then tells the
backend's address.

*Growth by an outer map of maps.* A lookup more for every connection. Growing by loading the programs anew over larger
maps costs nothing on the way, and is the same as an upgrade (kernel.py).

Atomicity: of a delta against crashes, of a service against connections; see maps.py.

The client of session affinity is the network namespace: a pod, or the node itself. Node ports are translated for the
node's own processes on loopback addresses; on its other addresses they are the nftables engine's.

Cgroups: each hook has two programs. One is attached to the root of the hierarchy (`EngineConfig.host_cgroup`) and
serves sockets in the node's own network namespace, of its processes and of pods of the host's network, whatever their
cgroup, and those in namespaces that are known to be its pods'. The other one is attached to the parent cgroup of the
node's pods (`cgroups`) and serves all others: a pod's first socket does not depend on anybody having been told of its
namespace, while whoever enters that namespace from elsewhere (nsenter(1)) is served too. So no socket is served twice,
although programs of a cgroup and of those above it all run, and nodes that are namespaces of one host do not meet. A
socket that is no node's business pays a comparison and a lookup.

In place of the nftables engine: it goes on translating packets until the first routes are in the maps, and what it had
translated between pods is tracked until it ends (packets.py). The other way its rules are there before the
programs go. So changing engines under traffic fails no connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from kernelet.ext.libbpf import BpfError

from ...routes import Delta, RouteTable, ServiceRoute
from ..engine import Counter, EngineConfig, EngineError
from ..memory import collector_paused
from .kernel import NAMESPACES, SERVED, Kernel, remove_pins
from .ledger import Held, Ledger, Transition
from .maps import COUNTERS, Image, counted, delete_sets, flip, read, sweep, write_sets
from .packets import Packets
from .plan import Key, Plan, endpoints, is_address, plan, route
from .sockets import StaleSockets, present_namespaces, release, stale

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 0.5
"""The kernel tells nobody when a link is detached or a pin removed, so they are looked at: 20 us a time."""


class EbpfEngine:
    """Keeps the socket programs' maps equal to a route table; see the module's text for how.

    It works in the network namespace of the thread that calls `start`. `written` counts map elements so far, those of
    the nftables engine beside it not included.
    """

    name = "ebpf"

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._kernel = Kernel(config)
        self._packets = Packets(config)
        self._table = RouteTable()
        self._zone = ""
        self._ledger = Ledger()
        self._stale: StaleSockets = {}
        self._applied = self._broken = False
        self.written = 0

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Loads and attaches the programs over the maps that are there. Raises EngineError."""
        with _told("start the ebpf engine"):
            self._packets.start()
            self._kernel.start()

    def close(self, *, keep: bool = True) -> None:
        """Releases descriptors; with keep=False also detaches the programs and removes maps and pins."""
        try:
            with _told("remove the ebpf engine"):
                self._kernel.close()
                if not keep:
                    remove_pins(self._kernel.pins)
        finally:
            self._packets.close(keep=keep)

    async def watch_foreign_changes(self, on_change: Callable[[], None]) -> None:
        """Calls `on_change` when a link or pin has vanished, or nftables rules were changed; until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._packets.watch_foreign_changes(on_change), name="nftables changes")
            while True:
                await asyncio.sleep(_LOOK_SECONDS)
                with suppress(BpfError):  # a descriptor that another thread closes meanwhile: looked at again
                    missing = self._kernel.missing()
                    if missing:
                        _log.warning("%s: removed by somebody", ", ".join(missing))
                        on_change()

    # --- routes -------------------------------------------------------------------------------------------------------

    def apply(self, delta: Delta) -> None:
        """Brings the kernel to the delta's version; see the contract.

        Where the nftables engine cannot take a snapshot whole, sockets are brought to the new version all the same,
        EngineError is raised, and only a snapshot is accepted next.
        """
        table = self._table
        if not delta.snapshot and (
            self._broken or (delta.generation, delta.base_version) != (table.generation, table.version)
        ):
            raise EngineError(
                f"routes {delta.generation}:{delta.base_version}..{delta.version} do not continue what this node "
                f"holds, {table.generation}:{table.version}; send a snapshot"
            )
        zone, before = table.zone_after(delta, self._config.node), self._zone
        self._zone = zone
        try:
            with _told("write the routes of the ebpf engine"):
                whole = delta.snapshot or zone != before
                transition = self._whole(table.after(delta).services) if whole else self._difference(delta)
                self._stage(transition)
                if delta.snapshot:  # Packets may have been what served these sockets so far: no moment without either.
                    self._commit(transition)
                    refusal = self._apply_to_packets(delta, transition)
                else:
                    refusal = self._apply_to_packets(delta, transition)
                    self._commit(transition)
        except EngineError:
            self._zone = before
            raise
        if refusal is not None:
            self._broken = True
            table.services = table.after(delta).services  # What a repair is to bring back, though it is no version.
            raise refusal
        table.apply(delta)
        self._applied, self._broken = True, False

    def _apply_to_packets(self, delta: Delta, transition: Transition) -> EngineError | None:
        """The nftables engine's turn; of a delta while nothing leads to what is staged."""
        try:
            self._packets.apply(delta)
        except EngineError as error:
            if delta.snapshot:
                return error
            self._broken = True
            delete_sets(self._kernel.maps, transition.new_sets)
            raise
        return None

    def _difference(self, delta: Delta) -> Transition:
        """What a delta changes, trusting that the kernel holds what the ledger says."""
        held = self._table.services
        new = {service.id: service for service in delta.services if held.get(service.id) != service}
        old = {name: held[name] for name in (*new, *delta.removed_services) if name in held}
        for name in delta.removed_services:
            new.pop(name, None)
        return self._ledger.change(
            {name: self._plan(service) for name, service in old.items()},
            {name: self._plan(service) for name, service in new.items()},
            lambda name: self._plan(held[name]),
        )

    @collector_paused()
    def _whole(self, services: Mapping[str, ServiceRoute]) -> Transition:
        """What brings the kernel, as it is read back now, to a whole table."""
        plans = {name: self._plan(service) for name, service in services.items()}
        image = read(self._kernel.maps) if self._kernel.maps else Image()
        self._ledger.adopt(image.held, image.numbers)
        made = self._ledger.replace(plans)
        made.stray_backends, made.stray_members = image.stray_backends, image.stray_members
        made.stray_counters = image.stray_counters
        return made

    def _plan(self, service: ServiceRoute) -> Plan:
        return plan(service, self._config, self._zone)

    def _stage(self, transition: Transition) -> None:
        """Makes room and writes the new sets; nothing leads to them yet."""
        if not self._kernel.started:
            raise EngineError("the ebpf engine is not started: call start() first")
        self._kernel.ensure_room(self._ledger.room(transition))
        if not transition.new_sets:
            return
        try:
            self.written += write_sets(self._kernel.maps, transition.new_sets)
        except BpfError:
            delete_sets(self._kernel.maps, transition.new_sets)
            raise

    def _commit(self, transition: Transition) -> None:
        """Flips all keys to what is staged, then deletes what is left over."""
        if transition:
            try:
                self.written += flip(self._kernel.maps, transition, self._ledger.held)
            except BpfError:
                self._broken = True  # the nftables engine is at the new version already
                delete_sets(self._kernel.maps, transition.new_sets)
                raise
        for endpoint, keys in stale(transition, self._ledger.held).items():
            self._stale.setdefault(endpoint, set()).update(keys)
        self._ledger.accept(transition)
        if self._kernel.waiting:
            for cookie in present_namespaces(self._config):
                self._kernel.maps[NAMESPACES].update(cookie, SERVED)
            self._kernel.activate()
        if transition:
            self.written += sweep(self._kernel.maps, transition)

    def tidy(self) -> None:
        """See the contract; also disconnects UDP sockets whose backend has left their service."""
        left, self._stale = self._stale, {}
        if left and self._kernel.maps:
            count = release(left, self._kernel.maps["flows"], self._config)
            if count:
                _log.info("disconnected %d UDP sockets that were stuck on backends that are gone", count)
        with _told("look at translated connections"):
            self._packets.tidy(self._table)

    def restore(self) -> frozenset[tuple[bytes, int, int, bytes, int]]:
        """Read from the maps: (service address, protocol, port, backend address, backend port), also before start()."""
        with _told("read the routes of the ebpf engine"):
            if self._kernel.started:
                return _routes(read(self._kernel.maps).held) if self._kernel.maps else frozenset()
            maps = self._kernel.open_pinned()
            try:
                return _routes(read(maps).held)
            finally:
                for item in maps.values():
                    item.close()

    def repair(self) -> int:
        """Mends links, pins, elements and rules; returns how many differed. Raises EngineError."""
        with _told("repair the ebpf engine"):
            count = self._kernel.mend()
            if self._applied:
                transition = self._whole(self._table.services)
                count += len(transition.held) + len(transition.stray_backends) + len(transition.stray_members)
                count += len(transition.stray_counters)
                self._stage(transition)
                self._commit(transition)
        return count + self._packets.repair()

    def counters(self) -> list[Counter]:
        """New connections to each service, by sockets and by packets, and refusals of sockets."""
        tally: Tally[str] = Tally(dict.fromkeys(self._table.services, 0))
        refused: Tally[str] = Tally()
        with _told("read the counters of the ebpf engine"):
            if self._kernel.maps:
                owners = self._ledger.owners()
                for place, connections, refusals in counted(self._kernel.maps[COUNTERS]):
                    tally[owners[place]] += connections
                    refused[owners[place]] += refusals
        for counter in self._packets.counters():
            tally[counter.service] += counter.connections
        return [Counter(name, tally[name], 0, 0, refused[name]) for name in sorted(tally.keys() | refused.keys())]


def _routes(held: Mapping[Key, Held]) -> frozenset[tuple[bytes, int, int, bytes, int]]:
    return frozenset(
        route(key, endpoint)
        for key, item in held.items()
        if is_address(key)
        for endpoint in endpoints(item.target.pool)
    )


@contextmanager
def _told(deed: str) -> Iterator[None]:
    """What the kernel refuses becomes an EngineError."""
    try:
        yield
    except OSError as error:
        raise EngineError(f"cannot {deed}: {error.strerror or error}") from error
