"""VXLAN between nodes (RFC 7348), laid out as flannel's third design.

The designs weighed. Letting the kernel ask user space for each unknown destination (l2miss/l3miss) costs a round trip
through a daemon on first contact and breaks when the daemon is down. One big bridged segment floods ARP to everybody.
Here every node has one subnet and one tunnel endpoint, and for each other node the kernel holds three static entries:

    route       10.244.2.0/24 via 10.244.2.0 dev klvx0 onlink      which node a pod address belongs to
    neighbour   10.244.2.0 lladdr <MAC of that node's endpoint>     permanent, so never any ARP
    FDB entry   <MAC> dst 172.30.0.12                               where to send the outer packet

Nothing is learned and nothing expires, so it works with every daemon dead. Cost: three entries a node, none a pod.

The endpoint's MAC is derived from the node's address: a device that had to be made anew is the one its peers know.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from typing import Any, TypeVar

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ..repair import keep_repaired
from ..routes import Peer
from ..rtevents import RTM_DELADDR, RTM_NEWADDR, KernelEvents, Notice
from .backend import Attachment, OverlayConfig, OverlayError

log = logging.getLogger(__name__)

DEVICE = "klvx0"
OVERHEAD = 50
"""Bytes of outer Ethernet, IPv4, UDP and VXLAN headers."""
_IPV4 = 2
_MAIN_TABLE = 254
_NUD_PERMANENT = 0x80
_NTF_SELF = 0x02
_GONE = (2, 3, 19)  # ENOENT, ESRCH, ENODEV
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")

T = TypeVar("T")


def vtep_mac(address: IPv4Address) -> str:
    """Locally administered, unicast, the same for the same underlay address."""
    digest = hashlib.sha256(address.packed).digest()
    return "0e:" + ":".join(f"{byte:02x}" for byte in digest[:5])


class Vxlan:
    """The overlay of this process's network namespace. Needs CAP_NET_ADMIN."""

    name = "vxlan"

    def __init__(self, config: OverlayConfig) -> None:
        self._config = config
        self._mac = vtep_mac(config.address.ip)
        self._vtep = config.pod_cidr.network_address
        self._gateway = str(config.pod_cidr.network_address + 1)
        self._ipr: AsyncIPRoute | None = None
        self._index = 0
        self._underlay_index = 0
        self._mtu = 0
        self._peers: dict[str, Peer] = {}
        self._prefixes: frozenset[str] = frozenset()
        self._lock = asyncio.Lock()

    @property
    def mtu(self) -> int:
        """Of the tunnel device, and so of the pods; known after start()."""
        return self._mtu

    async def start(self) -> Attachment:
        """Ensures device and address. Raises OverlayError where no link has the node's address or VXLAN is missing."""
        await self._locked(self._ensure_device)
        return Attachment(str(self._config.address.ip), self._mac)

    async def _locked(self, work: Callable[[], Awaitable[T]]) -> T:
        """One at a time, with an open socket. Raises OverlayError for whatever netlink refuses."""
        async with self._lock:
            try:
                if self._ipr is None:
                    self._ipr = await AsyncIPRoute().__aenter__()
                return await work()
            except NetlinkError as error:
                raise OverlayError(
                    f"node {self._config.node}: the kernel refused a change of {DEVICE}: {error}"
                ) from error
            except OSError as error:
                # pyroute2 keeps an error for good: this socket is of no use any more, the next call opens another.
                await self._release()
                raise OverlayError(f"node {self._config.node}: netlink failed: {error}") from error

    async def _release(self) -> None:
        ipr, self._ipr = self._ipr, None
        if ipr is not None:
            with suppress(OSError):
                await ipr.__aexit__(None, None, None)

    @property
    def _netlink(self) -> AsyncIPRoute:
        if self._ipr is None:
            raise OverlayError("the overlay is not started: call start() first")
        return self._ipr

    async def _underlay(self) -> tuple[int, int]:
        """Index and MTU of the link that holds the node's address."""
        wanted = str(self._config.address.ip)
        for entry in [entry async for entry in await self._netlink.get_addr(family=_IPV4)]:
            if entry.get("local") == wanted or entry.get("address") == wanted:
                link = (await self._netlink.link("get", index=entry["index"]))[0]
                return entry["index"], link.get("mtu")
        raise OverlayError(
            f"node {self._config.node}: no link has the node's address {wanted}; give the address of a link that is up"
        )

    async def _ensure_device(self) -> int:
        """Creates the device, or recreates it where a field differs that cannot be changed; returns changes made."""
        underlay, mtu = await self._underlay()
        self._underlay_index, self._mtu = underlay, mtu - OVERHEAD
        found = await self._netlink.link_lookup(ifname=DEVICE)
        changes = 0
        if found:
            link = (await self._netlink.link("get", index=found[0]))[0]
            differing = self._differing(link, underlay)
            if differing:
                log.info("recreating the overlay device link=%s differs=%s", DEVICE, ",".join(differing))
                await self._netlink.link("del", index=found[0])
                found = ()
        if not found:
            changes += 1
            await self._create(underlay)
            found = await self._netlink.link_lookup(ifname=DEVICE)
        self._index = found[0]
        return changes + await self._ensure_up()

    def _differing(self, link: Any, underlay: int) -> list[str]:
        data = dict((link.get("linkinfo") or {}).get("attrs") or []).get("IFLA_INFO_DATA")
        got = dict(data["attrs"]) if data else {}
        wanted = {
            "IFLA_VXLAN_ID": self._config.vni,
            "IFLA_VXLAN_LINK": underlay,
            "IFLA_VXLAN_LOCAL": str(self._config.address.ip),
            "IFLA_VXLAN_PORT": self._config.port,
            "IFLA_VXLAN_LEARNING": 0,
        }
        return [
            f"{name}: {got.get(name)} instead of {value}" for name, value in wanted.items() if got.get(name) != value
        ]

    async def _create(self, underlay: int) -> None:
        try:
            await self._netlink.link(
                "add",
                ifname=DEVICE,
                kind="vxlan",
                address=self._mac,
                vxlan_id=self._config.vni,
                vxlan_link=underlay,
                vxlan_local=str(self._config.address.ip),
                vxlan_port=self._config.port,
                vxlan_learning=0,
            )
        except NetlinkError as error:
            raise OverlayError(
                f"link {DEVICE}: the kernel refused a VXLAN device with id {self._config.vni} on port "
                f"{self._config.port}: {error}; load the vxlan module, or remove what else uses that id and port"
            ) from error

    async def _ensure_up(self) -> int:
        changes = 0
        link = (await self._netlink.link("get", index=self._index))[0]
        if link.get("address") != self._mac:
            await self._netlink.link("set", index=self._index, address=self._mac)
            changes += 1
        if link.get("mtu") != self._mtu or not link["flags"] & 1:
            await self._netlink.link("set", index=self._index, mtu=self._mtu, state="up")
            changes += 1
        held = [entry.get("address") async for entry in await self._netlink.get_addr(family=_IPV4, index=self._index)]
        if str(self._vtep) not in held:
            await self._netlink.addr("add", index=self._index, address=str(self._vtep), prefixlen=32)
            changes += 1
        return changes

    async def apply(self, peers: Iterable[Peer]) -> int:
        """Makes routes, neighbours and FDB entries equal to `peers`; returns how many entries were changed.

        A peer that cannot be written (it has not published its endpoint, or nonsense) is left out, the others are not.
        Raises OverlayError.
        """
        self._peers = {peer.node: peer for peer in peers if peer.node != self._config.node and _usable(peer)}
        self._prefixes = frozenset(str(cidr) for peer in self._peers.values() for cidr in _cidrs(peer))
        return await self._locked(self._ensure_peers)

    async def repair(self) -> int:
        """Puts back what differs from the peers last applied; returns how many entries were changed."""
        return await self._locked(self._ensure_peers)

    async def _ensure_peers(self) -> int:
        changes = await self._ensure_device()
        source = await self._source()
        routes: dict[str, tuple[str, str]] = {}
        neighbours: dict[str, str] = {}
        fdb: set[tuple[str, str]] = set()
        for peer in self._peers.values():
            for cidr in _cidrs(peer):
                gateway = str(cidr.network_address)
                routes[str(cidr)] = (gateway, source)
                neighbours[gateway] = peer.vtep_mac
                fdb.add((peer.vtep_mac, peer.address))
        # In this order, so that a route leads nowhere at no time.
        changes += await self._sync_fdb(fdb)
        changes += await self._sync_neighbours(neighbours)
        return changes + await self._sync_routes(routes)

    async def _sync_fdb(self, wanted: set[tuple[str, str]]) -> int:
        entries = [entry async for entry in await self._netlink.fdb("dump", ifindex=self._index)]
        # Entries of other devices and the all-zero default entry are not ours.
        held = {
            (entry.get("lladdr"), entry.get("dst"))
            for entry in entries
            if entry["ifindex"] == self._index and entry.get("lladdr") != "00:00:00:00:00:00"
        }
        for mac, address in held - wanted:
            await _ignore_gone(self._netlink.fdb("del", ifindex=self._index, lladdr=mac, dst=address))
        for mac, address in wanted - held:
            await self._netlink.fdb(
                "replace", ifindex=self._index, lladdr=mac, dst=address, state=_NUD_PERMANENT, flags=_NTF_SELF
            )
        return len({mac for mac, _ in held ^ wanted})

    async def _sync_neighbours(self, wanted: dict[str, str]) -> int:
        entries = [entry async for entry in await self._netlink.get_neighbours(family=_IPV4, ifindex=self._index)]
        held = {
            entry.get("dst"): entry.get("lladdr")
            for entry in entries
            if entry["ifindex"] == self._index and entry["state"] & _NUD_PERMANENT
        }
        for address in held.keys() - wanted.keys():
            await _ignore_gone(self._netlink.neigh("del", ifindex=self._index, dst=address))
        for address, mac in wanted.items() - held.items():
            await self._netlink.neigh("replace", ifindex=self._index, dst=address, lladdr=mac, state="permanent")
        return len({address for address, _ in held.items() ^ wanted.items()})

    async def _sync_routes(self, wanted: dict[str, tuple[str, str]]) -> int:
        routes = [
            route async for route in await self._netlink.get_routes(family=_IPV4, table=_MAIN_TABLE, oif=self._index)
        ]
        held = {
            f"{route.get('dst')}/{route['dst_len']}": (route.get("gateway"), route.get("prefsrc"))
            for route in routes
            if route.get("oif") == self._index and route.get("gateway")
        }
        for cidr in held.keys() - wanted.keys():
            await _ignore_gone(self._netlink.route("del", dst=cidr, oif=self._index))
        for cidr, (gateway, source) in wanted.items() - held.items():
            await self._netlink.route(
                "replace", dst=cidr, gateway=gateway, oif=self._index, flags=["onlink"], prefsrc=source
            )
        return len({cidr for cidr, _ in held.items() ^ wanted.items()})

    async def _source(self) -> str:
        """The node's address among the pods where the pod network has set it, else that of the tunnel device."""
        held = [entry.get("address") async for entry in await self._netlink.get_addr(family=_IPV4)]
        return self._gateway if self._gateway in held else str(self._vtep)

    def _concerns(self, notice: Notice) -> bool:
        """Whether a notification may be about what this backend keeps: its device, the underlay, its prefixes."""
        return (
            notice.type in (RTM_NEWADDR, RTM_DELADDR)
            or notice.index in (self._index, self._underlay_index)
            or notice.destination in self._prefixes
        )

    async def watch(self) -> None:
        """Repairs whatever someone else changes, told by netlink, until cancelled.

        Compares once at the beginning: what was changed before it listened was told to nobody. What cannot be repaired
        is tried again with the next change, and after a growing pause without one.
        """
        changed = asyncio.Event()
        changed.set()
        with KernelEvents(self._concerns, changed.set):
            await keep_repaired("the overlay", changed, self.repair, OverlayError)

    async def close(self, *, keep: bool = True) -> None:
        """Releases netlink sockets; with keep=False also removes device and routes."""
        if not keep:
            await self._locked(self._remove)
        async with self._lock:
            await self._release()

    async def _remove(self) -> None:
        # Its routes, neighbours and FDB entries go with it.
        for index in await self._netlink.link_lookup(ifname=DEVICE):
            await _ignore_gone(self._netlink.link("del", index=index))


async def _ignore_gone(request: Awaitable[object]) -> None:
    try:
        await request
    except NetlinkError as error:
        if error.code not in _GONE:
            raise


def _cidrs(peer: Peer) -> list[IPv4Network]:
    return [IPv4Network(text) for text in peer.pod_cidrs if ":" not in text]


def _usable(peer: Peer) -> bool:
    """Whether a peer's entries can be written; a wrong one is logged, since an annotation may hold anything."""
    if not peer.vtep_mac or not peer.pod_cidrs:
        return False
    try:
        IPv4Address(peer.address)
        _cidrs(peer)
        if _MAC.fullmatch(peer.vtep_mac):
            return True
        error: object = f"{peer.vtep_mac!r} is no MAC address in lower case"
    except ValueError as found:
        error = found
    log.warning("peer left out of the overlay node=%s: %s", peer.node, error)
    return False
