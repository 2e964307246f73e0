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
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink import rtnl
from pyroute2.netlink.exceptions import NetlinkError

from ..routes import Peer
from .backend import Attachment, OverlayConfig, OverlayError

log = logging.getLogger(__name__)

DEVICE = "klvx0"
OVERHEAD = 50
"""Bytes of outer Ethernet, IPv4, UDP and VXLAN headers."""
_BRIDGE_FAMILY = 7
_IPV4 = 2
_MAIN_TABLE = 254
_NUD_PERMANENT = 0x80
_NTF_SELF = 0x02
_GROUPS = rtnl.RTMGRP_LINK | rtnl.RTMGRP_NEIGH | rtnl.RTMGRP_IPV4_ROUTE | rtnl.RTMGRP_IPV4_IFADDR


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
        self._peers: dict[str, Peer] = {}
        self._lock = asyncio.Lock()

    @property
    def mtu(self) -> int:
        """Of the tunnel device, and so of the pods; known after start()."""
        return self._mtu

    async def start(self) -> Attachment:
        """Ensures device and address. Raises OverlayError where no link has the node's address or VXLAN is missing."""
        if self._ipr is None:
            self._ipr = await AsyncIPRoute().__aenter__()
        async with self._lock:
            await self._ensure_device()
        return Attachment(str(self._config.address.ip), self._mac)

    @property
    def _netlink(self) -> AsyncIPRoute:
        if self._ipr is None:
            raise OverlayError("the overlay is not started: call start() first")
        return self._ipr

    async def _underlay(self) -> tuple[int, int]:
        """Index and MTU of the link that holds the node's address."""
        wanted = str(self._config.address.ip)
        async for entry in await self._netlink.get_addr(family=_IPV4):
            if entry.get("local") == wanted or entry.get("address") == wanted:
                link = (await self._netlink.link("get", index=entry["index"]))[0]
                return entry["index"], link.get("mtu")
        raise OverlayError(
            f"node {self._config.node}: no link has the node's address {wanted}; give the address of a link that is up"
        )

    async def _ensure_device(self) -> int:
        """Creates the device, or recreates it where a field differs that cannot be changed; returns changes made."""
        underlay, mtu = await self._underlay()
        self._mtu = mtu - OVERHEAD
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
        """Makes routes, neighbours and FDB entries equal to `peers`; returns how many entries were changed."""
        self._peers = {
            peer.node: peer for peer in peers if peer.node != self._config.node and peer.vtep_mac and peer.pod_cidrs
        }
        async with self._lock:
            return await self._ensure_peers()

    async def _ensure_peers(self) -> int:
        changes = await self._ensure_device()
        wanted_routes: dict[str, str] = {}
        wanted_neighbours: dict[str, str] = {}
        wanted_fdb: dict[str, str] = {}
        for peer in self._peers.values():
            for cidr in (IPv4Network(text) for text in peer.pod_cidrs if ":" not in text):
                wanted_routes[str(cidr)] = str(cidr.network_address)
                wanted_neighbours[str(cidr.network_address)] = peer.vtep_mac
                wanted_fdb[peer.vtep_mac] = peer.address
        changes += await self._sync_fdb(wanted_fdb)
        changes += await self._sync_neighbours(wanted_neighbours)
        return changes + await self._sync_routes(wanted_routes)

    async def _sync_fdb(self, wanted: dict[str, str]) -> int:
        held = {}
        async for entry in await self._netlink.fdb("dump", ifindex=self._index):
            # Dumps of other devices and the all-zero default entry are not ours.
            if entry["ifindex"] == self._index and entry.get("lladdr") != "00:00:00:00:00:00":
                held[entry.get("lladdr")] = entry.get("dst")
        for mac, address in held.items() - wanted.items():
            await self._ignore_gone(self._netlink.fdb("del", ifindex=self._index, lladdr=mac, dst=address))
        for mac, address in wanted.items() - held.items():
            await self._netlink.fdb(
                "replace", ifindex=self._index, lladdr=mac, dst=address, state=_NUD_PERMANENT, flags=_NTF_SELF
            )
        return len(held.items() ^ wanted.items())

    async def _sync_neighbours(self, wanted: dict[str, str]) -> int:
        held = {}
        async for entry in await self._netlink.get_neighbours(family=_IPV4, ifindex=self._index):
            if entry["ifindex"] == self._index and entry["state"] & _NUD_PERMANENT:
                held[entry.get("dst")] = entry.get("lladdr")
        for address in held.keys() - wanted.keys():
            await self._ignore_gone(self._netlink.neigh("del", ifindex=self._index, dst=address))
        for address, mac in wanted.items() - held.items():
            await self._netlink.neigh("replace", ifindex=self._index, dst=address, lladdr=mac, state="permanent")
        return len(held.items() ^ wanted.items())

    async def _sync_routes(self, wanted: dict[str, str]) -> int:
        held = {}
        async for entry in await self._netlink.get_routes(family=_IPV4, table=_MAIN_TABLE, oif=self._index):
            if entry.get("oif") == self._index and entry.get("gateway"):
                held[f"{entry.get('dst')}/{entry['dst_len']}"] = entry.get("gateway")
        for cidr in held.keys() - wanted.keys():
            await self._ignore_gone(self._netlink.route("del", dst=cidr, oif=self._index))
        for cidr, gateway in wanted.items() - held.items():
            await self._netlink.route(
                "replace", dst=cidr, gateway=gateway, oif=self._index, flags=["onlink"], prefsrc=await self._source()
            )
        return len(held.items() ^ wanted.items())

    async def _source(self) -> str:
        """The node's address among the pods where the pod network has set it, else that of the tunnel device."""
        async for entry in await self._netlink.get_addr(family=_IPV4, address=self._gateway):
            if entry.get("address") == self._gateway:
                return self._gateway
        return str(self._vtep)

    @staticmethod
    async def _ignore_gone(request: Any) -> None:
        try:
            await request
        except NetlinkError as error:
            if error.code not in (2, 3, 19):  # ENOENT, ESRCH, ENODEV: gone already
                raise

    async def repair(self) -> int:
        """Puts back what differs from the peers last applied; returns how many entries were changed."""
        async with self._lock:
            return await self._ensure_peers()

    async def watch(self) -> None:
        """Repairs whatever someone else changes, told by netlink, until cancelled."""
        changed = asyncio.Event()
        async with AsyncIPRoute() as listener, asyncio.TaskGroup() as tasks:
            await listener.bind(groups=_GROUPS)
            tasks.create_task(_note_changes(listener, changed))
            while True:
                await changed.wait()
                # Cleared first: what happens during the repair is looked at again, a burst only once.
                changed.clear()
                await self._repair_or_warn()

    async def _repair_or_warn(self) -> None:
        try:
            count = await self.repair()
        except (NetlinkError, OverlayError) as error:
            log.warning("overlay not repaired, next try with the next change: %s", error)
            return
        if count:
            log.warning("repaired the overlay entries=%d", count)

    async def close(self, *, keep: bool = True) -> None:
        """Releases netlink sockets; with keep=False also removes device and routes."""
        if self._ipr is None:
            return
        if not keep:
            for index in await self._ipr.link_lookup(ifname=DEVICE):
                await self._ipr.link("del", index=index)
        await self._ipr.__aexit__(None, None, None)
        self._ipr = None


async def _note_changes(listener: AsyncIPRoute, changed: asyncio.Event) -> None:
    while True:
        async for _ in listener.get():
            changed.set()
