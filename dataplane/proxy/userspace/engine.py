"""The userspace engine: the first kube-proxy's design, as the baseline that the others are compared with.

A listener for each service port on the node; nftables redirects what is sent to a service address or a node port to it;
a process takes every connection, opens another one to a backend, and carries every byte from one to the other. Backends
take turns (or stay with a client's address under session affinity), and one that does not take a connection is followed
by the next, which the kernel's engines cannot do.

What that costs: four trips through the kernel's TCP and two through this process where a translated packet has none,
two sockets a connection, a listener a service port. What it cannot do, by its nature:

* keep a client's address: backends see the node's;
* outlive its process: connections end with it, and service addresses refuse until it is back;
* SCTP: the listeners speak TCP and UDP;
* more service ports than a process may have open files, or the node free ports.

As good as such a design gets in Python: one thread on epoll in a process of its own, edge-triggered, no buffer a
connection, two calls a message (relay.py). The rules are maps as in the nftables engine, so that packets find
their listener by one lookup, where the original went through a list of iptables rules. Heavier backends have more
turns. Who may use a balancer's address is decided before the redirection, while the client's address is still known.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import pickle
import socket
import subprocess
import sys
from collections import Counter as Tally
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import TypeVar

from kernelet.ext.nft import Batch, BatchError, Events, Flow, NetlinkError, Socket, delete_flows

from ...routes import Delta, Protocol, RouteTable, ServiceRoute
from ..engine import Counter, EngineConfig, EngineError
from ..nftables.elements import Elements, Frontend, Held, Plan, differences, plan
from ..nftables.ledger import Ledger, Transition
from ..nftables.ruleset import KINDS, NONE, SERVICES, TABLE, Nft, families
from ..nftables.watch import ForeignChanges
from .ruleset import GUARDED, REFUSED, add_maps, names, refusal, text
from .worker import Open, Prepare, Refused, Show, Shown, Switch

_log = logging.getLogger(__name__)
_WORKER = "from kernelet.dataplane.proxy.userspace.worker import main; main()"
_ANSWER_SECONDS = 60.0
_STOP_SECONDS = 5.0
_CARRIED = (Protocol.TCP, Protocol.UDP)
T = TypeVar("T")


@dataclass(slots=True)
class _Listener:
    """One frontend with backends: who listens for it, and with which."""

    wanted: Open
    port: int


@dataclass(slots=True)
class _Step:
    """What one change does to the listeners."""

    opened: dict[Frontend, Open] = field(default_factory=dict)
    changed: dict[Frontend, Open] = field(default_factory=dict)
    closed: dict[Frontend, _Listener] = field(default_factory=dict)


class UserspaceEngine:
    """Keeps a process of listeners and nftables' redirections equal to a route table.

    Both are in the network namespace of the thread that calls `start`, which must stay the one that calls `repair`.
    """

    name = "userspace"

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._families = families(config)
        self._table = RouteTable()
        self._ledger = Ledger()
        self._zone = ""
        self._listeners: dict[Frontend, _Listener] = {}
        self._worker: _Process | None = None
        self._socket: Socket | None = None
        self._events: Events | None = None
        self._nft: Nft | None = None
        self._rules: int = 0
        self._on_new_worker: Callable[[], object] | None = None
        self._last = 0

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the process and makes the tables anew: what they held led to listeners that are gone."""
        try:
            self._nft = Nft()
            self._socket = Socket()
            self._events = Events(ignore=self._socket)
        except OSError as error:
            raise EngineError(f"nftables is not available: {error}; load nf_tables") from error
        self._nft.delete_tables(self._families)
        self._make_tables()
        self._worker = _Process()

    def close(self, *, keep: bool = True) -> None:
        """Ends the process and with it all connections.

        With keep=True the rules stay, so that service addresses refuse until the engine is back.
        """
        worker, self._worker = self._worker, None
        try:
            if worker is not None:
                worker.close()
            if not keep:
                (self._nft or Nft()).delete_tables(self._families)
        finally:
            for resource in (self._socket, self._events):
                if resource is not None:
                    resource.close()
            self._socket = self._events = self._nft = None
            self._listeners, self._ledger, self._table = {}, Ledger(), RouteTable()

    async def watch_foreign_changes(self, on_change: Callable[[], None]) -> None:
        """See the contract; the death of the process that carries the traffic is such a change too."""
        changes = ForeignChanges(_started(self._events), frozenset(f.number for f in self._families))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(changes.run(on_change), name="foreign changes")
            tasks.create_task(self._watch_worker(on_change), name="userspace proxy's process")

    async def _watch_worker(self, on_change: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        replaced = asyncio.Event()
        self._on_new_worker = lambda: loop.call_soon_threadsafe(replaced.set)
        try:
            while True:
                replaced.clear()
                await _started(self._worker).ended()
                on_change()
                await replaced.wait()
        finally:
            self._on_new_worker = None

    # --- routes -------------------------------------------------------------------------------------------------------

    def apply(self, delta: Delta) -> None:
        """New listeners are opened, then the kernel is switched to them, then old ones are closed. See the contract."""
        held = self._table.services
        if not delta.snapshot and (delta.generation, delta.base_version) != (
            self._table.generation,
            self._table.version,
        ):
            raise EngineError(
                f"routes {delta.generation}:{delta.base_version}..{delta.version} do not continue what this node "
                f"holds, {self._table.generation}:{self._table.version}; send a snapshot"
            )
        zone = self._table.zone_after(delta, self._config.node)
        moved = zone != self._zone
        services = self._table.after(delta).services
        given = services if delta.snapshot or moved else {service.id: service for service in delta.services}
        removed = held.keys() - services.keys() if delta.snapshot or moved else delta.removed_services
        new = {
            name: service
            for name, service in given.items()
            if name not in removed and (moved or held.get(name) != service)
        }
        old = {name: held[name] for name in (*new, *removed) if name in held}
        transition = self._ledger.transition(
            {name: self._plan(service, self._zone) for name, service in old.items()},
            {name: self._plan(service, zone) for name, service in new.items()},
            lambda name: self._plan(services[name], zone),
        )
        self._carry_out(transition, services)
        self._ledger.accept(transition)
        self._table.apply(delta)
        self._zone = zone

    def _plan(self, service: ServiceRoute, zone: str) -> Plan:
        return plan(service, self._config, self._families, zone)

    def _carry_out(self, transition: Transition, services: Mapping[str, ServiceRoute]) -> None:
        worker = _started(self._worker)
        step = self._step(transition, services)
        ports = worker.ask(Prepare(tuple(step.opened.values())), dict[int, int]) if step.opened else {}
        after = dict(self._listeners)
        after.update((frontend, _Listener(item, ports[item.id])) for frontend, item in step.opened.items())
        after.update((frontend, _Listener(item, after[frontend].port)) for frontend, item in step.changed.items())
        before = {frontend: self._ledger.held.get(frontend) for frontend in transition.frontends}
        edits, _ = differences(_elements(before, self._listeners), _elements(transition.frontends, after))
        try:
            if edits:
                _started(self._socket).commit(edits.batch())
        except NetlinkError as error:
            worker.ask(Switch(closed=tuple(item.id for item in step.opened.values())), dict[int, int])
            raise EngineError(f"cannot write nftables table {TABLE}: {error}") from error
        closed = tuple(listener.wanted.id for listener in step.closed.values())
        if step.changed or closed:
            worker.ask(Switch(tuple(step.changed.values()), closed), dict[int, int])
        for frontend in step.closed:
            del after[frontend]
        self._listeners = after
        self._forget_flows(step)

    def _step(self, transition: Transition, services: Mapping[str, ServiceRoute]) -> _Step:
        step = _Step()
        for frontend, held in transition.frontends.items():
            listener = self._listeners.get(frontend)
            if held is None or not held.slots or not _carried(frontend):
                if listener is not None:
                    step.closed[frontend] = listener
                continue
            owner = min(transition.claims[frontend])
            wanted = self._open(frontend, held, services[owner].affinity_seconds, listener)
            if listener is None:
                step.opened[frontend] = wanted
            elif listener.wanted != wanted:
                step.changed[frontend] = wanted
        return step

    def _open(self, frontend: Frontend, held: Held, affinity: int, listener: _Listener | None) -> Open:
        if listener is None:
            self._last += 1
        number = listener.wanted.id if listener else self._last
        kind, _ = frontend
        size = kind.family.length
        backends = tuple((str(ip_address(d[:size])), int.from_bytes(d[size : size + 2], "big")) for d in held.slots)
        return Open(number, kind.family.number, _protocol(frontend) == Protocol.TCP, backends, affinity)

    def _forget_flows(self, step: _Step) -> None:
        """UDP clients that keep sending would go on to a closed listener, or past one that has opened."""
        udp = {frontend for frontend in (*step.opened, *step.closed) if _protocol(frontend) == Protocol.UDP}
        for family in {kind.family for kind, _ in udp}:
            size = family.length
            places = {_place(frontend, size) for frontend in udp if frontend[0].family is family}
            try:
                delete_flows(_started(self._socket), family.number, partial(_leads_to, places))
            except (NetlinkError, TimeoutError) as error:
                _log.warning("stale flows stay until they time out: conntrack says: %s", error)

    def tidy(self) -> None:
        """Nothing is left over: a backend that does not answer is followed by the next one."""

    # --- looking ------------------------------------------------------------------------------------------------------

    def restore(self) -> frozenset[tuple[bytes, int, int, bytes, int]]:
        """The service addresses that the kernel redirects, and the backends of the listener that each leads to."""
        # Of two families, or of TCP and UDP, both may listen on a port of the same number.
        listening = {(shown.family, shown.tcp, shown.port): shown.backends for shown in self._shown().values()}
        found = set()
        for (family, name), items in self._kernel().items():
            if name != SERVICES:
                continue
            size = family.length
            for key, data in items.items():
                assert isinstance(data, bytes)
                place = (family.number, key[size] == Protocol.TCP, int.from_bytes(data[:2], "big"))
                for address, port in listening.get(place, ()):
                    service_port = int.from_bytes(key[size + 4 : size + 6], "big")
                    found.add((key[:size], key[size], service_port, ip_address(address).packed, port))
        return frozenset(found)

    def counters(self) -> list[Counter]:
        """Connections, and UDP clients, to each service's addresses and node ports."""
        shown = self._shown()
        tally = Tally(dict.fromkeys(self._table.services, 0))
        for frontend, listener in self._listeners.items():
            tally[self._ledger.owner(frontend)] += shown[listener.wanted.id].connections
        return [Counter(name, connections, 0, 0) for name, connections in sorted(tally.items())]

    def _shown(self) -> dict[int, Shown]:
        return _started(self._worker).ask(Show(), dict[int, Shown])

    def repair(self) -> int:
        """See the contract. A process that has died is started again, with its listeners on other ports."""
        mended = 0
        if _started(self._worker).dead:
            mended += self._restart_worker()
        if self._fingerprint() != self._rules:
            self._make_tables()
            mended += 1
        edits, count = differences(self._kernel(), _elements(self._ledger.held, self._listeners))
        if edits:
            try:
                _started(self._socket).commit(edits.batch())
            except NetlinkError as error:
                raise EngineError(f"cannot mend nftables table {TABLE}: {error}") from error
        return mended + count

    def _restart_worker(self) -> int:
        _log.error("the process that carries services' traffic has died; starting another")
        _started(self._worker).close()
        self._worker = _Process()
        ports = self._worker.ask(Prepare(tuple(item.wanted for item in self._listeners.values())), dict[int, int])
        for listener in self._listeners.values():
            listener.port = ports[listener.wanted.id]
        if self._on_new_worker is not None:
            self._on_new_worker()
        return 1

    def _kernel(self) -> Elements:
        found: Elements = {}
        for family in self._families:
            for kind in KINDS[family]:
                for name in names(kind):
                    items = _started(self._socket).elements(TABLE, family.number, name)
                    if items:
                        found[family, name] = dict(items)
        return found

    def _make_tables(self) -> None:
        nft, netlink = _started(self._nft), _started(self._socket)
        maps = Batch()
        for family in self._families:
            add_maps(maps, family)
        nft.add_tables(self._families)
        try:
            netlink.commit(maps)
        except BatchError as error:
            if error.errno != errno.EEXIST:
                raise EngineError(f"cannot make the maps of nftables table {TABLE}: {error}") from error
            nft.delete_tables(self._families)
            nft.add_tables(self._families)
            netlink.commit(maps)
        nft.run("".join(text(family, self._config) for family in self._families), f"write nftables table {TABLE}")
        self._rules = self._fingerprint()

    def _fingerprint(self) -> int:
        netlink = _started(self._socket)
        return hash(tuple(tuple(netlink.rules(TABLE, family.number)) for family in self._families))


class _Process:
    """The worker, and what it is asked. Raises EngineError where it has died."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-c", _WORKER, str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        ours.settimeout(_ANSWER_SECONDS)
        self._control = ours
        self._answers = ours.makefile("rb")

    @property
    def dead(self) -> bool:
        return self._process.poll() is not None

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ended(self) -> None:
        """Waits for its end."""
        descriptor = os.pidfd_open(self.pid)
        loop, gone = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(descriptor, gone.set)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    def ask(self, message: object, kind: type[T]) -> T:
        """The worker's answer. Raises EngineError with what it refused, or that it is dead."""
        try:
            self._control.sendall(pickle.dumps(message))
            answer: T | Refused = pickle.load(self._answers)
        except (OSError, EOFError) as error:
            raise EngineError(
                f"the process that carries services' traffic (pid {self.pid}) does not answer: "
                f"{error or 'it has ended'}"
            ) from error
        if isinstance(answer, Refused):
            raise EngineError(answer.reason)
        return answer

    def close(self) -> None:
        self._answers.close()
        self._control.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _leads_to(places: set[tuple[bytes, int]], flow: Flow) -> bool:
    """Whether a tracked flow is one of UDP to a service address or node port among these."""
    to = ((flow.destination, flow.destination_port), (b"", flow.destination_port))
    return flow.protocol == Protocol.UDP and not places.isdisjoint(to)


def _started(resource: T | None) -> T:
    if resource is None:
        raise EngineError("the userspace engine is not started: call start() first")
    return resource


def _protocol(frontend: Frontend) -> int:
    kind, key = frontend
    return key[kind.family.length if kind.addressed else 0]


def _carried(frontend: Frontend) -> bool:
    return _protocol(frontend) in _CARRIED


def _place(frontend: Frontend, size: int) -> tuple[bytes, int]:
    """(service address, or b"" for a node port; port)"""
    kind, key = frontend
    address, rest = (key[:size], key[size:]) if kind.addressed else (b"", key)
    return address, int.from_bytes(rest[4:6], "big")


def _elements(frontends: Mapping[Frontend, Held | None], listeners: Mapping[Frontend, _Listener]) -> Elements:
    """What the kernel holds for these."""
    found: Elements = {}
    for frontend, held in frontends.items():
        if held is None:
            continue
        kind, key = frontend
        listener = listeners.get(frontend)
        if held.slots and listener is not None:
            found.setdefault((kind.family, kind.frontends), {})[key] = listener.port.to_bytes(2, "big")
        else:
            verdict = refusal(NONE if held.slots else held.number)
            found.setdefault((kind.family, kind.frontends + REFUSED), {})[key] = verdict
        if held.sources:
            found.setdefault((kind.family, kind.frontends + GUARDED), {})[key] = None
        for source in held.sources:
            size = kind.family.length
            found.setdefault((kind.family, kind.sources), {})[key + source[:size] + key + source[size:]] = None
    return found
