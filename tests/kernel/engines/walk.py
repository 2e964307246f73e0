"""A random walk of route tables, reproducible from its seed, and what a kernel is to hold after each step.

`expected` is written from Kubernetes' documentation alone, so that it does not repeat the engines' mistakes.
"""

from __future__ import annotations

import random
from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from ipaddress import ip_address

from kernelet.dataplane.routes import Backend, BackendFlag, Delta, Peer, Protocol, RouteTable, ServicePort, ServiceRoute

from ..proxy.topology import CONFIG

Row = tuple[bytes, int, int, bytes, int]
_FLAGS = (
    *(BackendFlag.READY,) * 6,
    BackendFlag.NONE,
    BackendFlag.SERVING | BackendFlag.TERMINATING,
    BackendFlag.TERMINATING,
    BackendFlag.READY | BackendFlag.SERVING,
)
_WITH_UDP, _UDP_RESTS = (0,), 0.7
"""A change of a UDP service looks for its flows among all of the host's, at a hundred times the cost of the change: few
services have UDP ports, and change seldom."""
_ZONES = ("east", "west")
_SHARED = tuple(ip_address(text).packed for text in ("198.51.100.7", "198.51.100.8", "2001:db8:1::7"))
_PREFIXES = ((ip_address("192.0.2.0").packed, 24), (ip_address("10.244.0.0").packed, 16), (ip_address("::").packed, 0))


class Walk:
    """`step` gives the next delta; `table` is what it leads to."""

    def __init__(self, seed: int, names: int = 40, most: int = 3) -> None:
        self._random = random.Random(seed)
        self._names, self._most = names, most
        self.table = RouteTable("walk")

    def step(self, *, snapshot: bool = False) -> Delta:
        """Up to `most` services made, changed or removed; now and then a zone."""
        dice = self._random
        chosen = dice.sample(range(self._names), dice.randint(1, self._most))
        if dice.random() < _UDP_RESTS:
            chosen = [number for number in chosen if number not in _WITH_UDP]
        removed = {f"default/s{number}" for number in chosen if dice.random() < 0.25}
        changed = [self._service(number) for number in chosen if f"default/s{number}" not in removed]
        peers = [Peer(dice.choice((CONFIG.node, "there")), (), "", "", dice.choice((*_ZONES, "north", "")))]
        gone = [CONFIG.node]
        chance = dice.random()
        delta = Delta(
            "walk",
            self.table.version + 1,
            self.table.version,
            changed,
            sorted(removed),
            peers if chance < 0.05 else [],
            gone if chance > 0.99 else [],
        )
        self.table = self.table.after(replace(delta, base_version=self.table.version or delta.base_version))
        return self.snapshot() if snapshot else delta

    def snapshot(self) -> Delta:
        table = self.table
        return Delta("walk", table.version, 0, list(table.services.values()), peers=list(table.peers.values()))

    def removal(self) -> Delta:
        """Everything goes."""
        delta = Delta("walk", self.table.version + 1, self.table.version, [], list(self.table.services))
        self.table = self.table.after(delta)
        return delta

    def _service(self, number: int) -> ServiceRoute:
        """Mostly what it was with other backends, as in a cluster; sometimes another service altogether."""
        held = self.table.services.get(f"default/s{number}")
        dice = self._random
        if held is None or dice.random() < 0.3:
            return self._fresh(number)
        ports = tuple(replace(port, backends=self._backends()) for port in held.ports)
        return replace(held, ports=ports)

    def _fresh(self, number: int) -> ServiceRoute:
        dice = self._random
        families = dice.choice(((4,), (16,), (4, 16)))
        own = {4: ip_address("10.96.9.0").packed, 16: ip_address("fd00:96::9:0").packed}
        ports = [
            (protocol, port, port + 30000 + number if dice.random() < 0.3 else 0)
            for protocol in Protocol
            for port in (80, 443)
            if protocol != Protocol.UDP or number in _WITH_UDP
        ]
        return ServiceRoute(
            f"default/s{number}",
            tuple(own[length][:-1] + bytes((number,)) for length in families),
            tuple(
                ServicePort(f"p{index}", protocol, port, node_port, self._backends())
                for index, (protocol, port, node_port) in enumerate(dice.sample(ports, dice.randint(0, 3)))
            ),
            self._some(_SHARED),
            external_local=dice.random() < 0.2,
            internal_local=dice.random() < 0.2,
            affinity_seconds=dice.choice((0, 0, 0, 10, 10800)),
            balancer_ips=self._some(_SHARED),
            source_ranges=_PREFIXES[: dice.randint(0, 3)] if dice.random() < 0.2 else (),
        )

    def _some(self, addresses: tuple[bytes, ...]) -> tuple[bytes, ...]:
        return tuple(address for address in addresses if self._random.random() < 0.15)

    def _backends(self) -> tuple[Backend, ...]:
        dice = self._random
        hinted, weighted = dice.random() < 0.2, dice.random() < 0.2
        networks = (ip_address("10.244.200.0").packed, ip_address("fd00:244::200:0").packed)
        return tuple(
            Backend(
                dice.choice(networks)[:-1] + bytes((dice.randrange(12),)),
                dice.choice((80, 8080)),
                dice.choice(_FLAGS),
                dice.choice((CONFIG.node, "there", "")),
                dice.randint(1, 9) if weighted else 1,
                (dice.choice(_ZONES),) if hinted else (),
            )
            for _ in range(dice.choice((0, 1, 2, 3, 3, 5, 8)))
        )


def expected(table: RouteTable, protocols: Container[Protocol] = tuple(Protocol)) -> frozenset[Row]:
    """What `Engine.restore` is to give: backends of cluster, external and balancer addresses."""
    taken: set[tuple[bytes, int, int]] = set()
    found: set[Row] = set()
    for name in sorted(table.services):
        service = table.services[name]
        for address, port, internal in _frontends(service):
            if (address, port.protocol, port.port) in taken or port.protocol not in protocols:
                continue
            taken.add((address, port.protocol, port.port))
            backends = [backend for backend in port.backends if len(backend.address) == len(address)]
            local = internal and service.internal_local
            for backend in _local(backends) if local else _anywhere(backends, table.zone_of(CONFIG.node)):
                found.add((address, port.protocol, port.port, backend.address, backend.port))
    return frozenset(found)


def _frontends(service: ServiceRoute) -> Iterator[tuple[bytes, ServicePort, bool]]:
    """Addresses and ports that clients use, and whether it is a cluster IP's."""
    others = [*service.external_ips]
    if service.source_ranges:
        families = {len(prefix) for prefix, _ in service.source_ranges}
        others += [address for address in service.balancer_ips if len(address) in families]
    else:
        others += service.balancer_ips
    for port in service.ports:
        for address in service.cluster_ips:
            yield address, port, True
        for address in others:
            yield address, port, False


def _usable(backends: Iterable[Backend]) -> list[Backend]:
    last_resort = BackendFlag.SERVING | BackendFlag.TERMINATING
    ready = [backend for backend in backends if BackendFlag.READY in backend.flags]
    return ready or [backend for backend in backends if last_resort in backend.flags]


def _local(backends: Iterable[Backend]) -> list[Backend]:
    return _usable([backend for backend in backends if backend.node == CONFIG.node])


def _anywhere(backends: Iterable[Backend], zone: str) -> list[Backend]:
    usable = _usable(backends)
    near = [backend for backend in usable if zone in backend.zones]
    return near if zone and near and all(backend.zones for backend in usable) else usable
