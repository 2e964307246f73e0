"""Wiring of pods: one veth a pod, routed, no bridge.

The designs weighed. A bridge, as flannel's CNI chain uses it, sends packets between two pods of a node past the
routing hooks, so a reply to a translated connection never meets its conntrack entry unless br_netfilter is loaded; and
every new pod floods ARP. Routed veths keep each packet on the one path that NAT, policy and the eBPF programs look at.
A pod has its address as /32 and one default route to 169.254.1.1, which no one else has: a permanent neighbour entry
gives it the MAC that every host side has, so there is no ARP at all. The node has one /32 route and one permanent
neighbour a pod. Cost: one route, one neighbour, one link a pod; nothing grows with the number of nodes.

The host side is named by a hash of the pod's id, so the kernel alone says which pod holds which address.

What others take away (a flushed ruleset, a route, neighbour or address) is put back by `watch`, which is told by
rtnetlink and nftables; a pod's own links are not made anew, since a pod without its link needs a new sandbox.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import AsyncIPRoute, IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from kernelet.ext import netns

from ..repair import keep_repaired
from ..rtevents import RTM_DELADDR, RTM_DELNEIGH, RTM_DELROUTE, KernelEvents, Notice
from . import ruleset
from .addresses import AddressPool

log = logging.getLogger(__name__)

LINK_PREFIX = "kl"
GATEWAY = "169.254.1.1"
HOST_MAC = "ee:ee:ee:ee:ee:ee"
POD_LINK = "eth0"
GATEWAY_LABEL = "lo:kernelet"
"""By which the node's own address among the pods is found and removed when nothing else is known any more."""
DEFAULT_MTU = 1450
"""1500 less the 50 bytes of VXLAN over IPv4."""
_HASH_DIGITS = 11
_ENODEV = 19
_SCOPE_LINK = 253
_IPV4, _MAIN_TABLE = 2, 254
_NUD_PERMANENT = 0x80

T = TypeVar("T")


class PodNetworkError(Exception):
    """A pod could not be wired; the message names the pod, the cause and, where there is one, the fix."""


@dataclass(frozen=True, slots=True)
class PodNetConfig:
    pod_cidr: IPv4Network
    """This node's pod subnet; its first address is the node's own among the pods."""
    cluster_cidr: IPv4Network
    """All pods' addresses: traffic to them is not masqueraded."""
    mtu: int = DEFAULT_MTU


@dataclass(frozen=True, slots=True)
class Attached:
    """What a pod got."""

    addresses: tuple[str, ...]
    gateway: str


def link_name(pod_id: str) -> str:
    """The host side of a pod's veth: `kl` and 11 hex digits (link names have at most 15 characters)."""
    return LINK_PREFIX + hashlib.sha256(pod_id.encode()).hexdigest()[:_HASH_DIGITS]


def is_pod_link(name: str) -> bool:
    digits = name.removeprefix(LINK_PREFIX)
    return len(digits) == _HASH_DIGITS and name != digits and all(c in "0123456789abcdef" for c in digits)


def pod_mac(address: IPv4Address) -> str:
    """Locally administered, derived from the address: known without asking."""
    return "0a:58:" + ":".join(f"{byte:02x}" for byte in address.packed)


class PodNet:
    """The pod network in this process's network namespace. Needs CAP_NET_ADMIN and CAP_SYS_ADMIN."""

    def __init__(self, config: PodNetConfig) -> None:
        self._config = config
        self._pool = AddressPool(config.pod_cidr)
        self._attached: dict[str, IPv4Address] = {}  # by link name
        self._lock = asyncio.Lock()
        self._ipr: AsyncIPRoute | None = None

    @property
    def gateway(self) -> str:
        return str(self._pool.gateway)

    async def start(self) -> None:
        """Makes the node a router for its pods and learns from the kernel which addresses are taken.

        Raises PodNetworkError where the kernel refuses.
        """
        await self._locked(self._start)

    async def _start(self) -> None:
        await self._ensure_router()
        await self._recover()

    async def _ensure_router(self) -> None:
        _write_sysctls()
        ruleset.apply(ruleset.ruleset(self._config.pod_cidr, self._config.cluster_cidr))
        loopback = (await self._netlink.link_lookup(ifname="lo"))[0]
        await self._netlink.link("set", index=loopback, state="up")
        # On lo, since pods have no common link: the source address of what the node itself sends to pods.
        await self._netlink.addr("replace", index=loopback, address=self.gateway, prefixlen=32, label=GATEWAY_LABEL)

    async def _locked(self, work: Callable[[], Awaitable[T]]) -> T:
        """One at a time, with an open socket. Raises PodNetworkError for whatever the kernel refuses."""
        async with self._lock:
            try:
                if self._ipr is None:
                    self._ipr = await AsyncIPRoute().__aenter__()
                return await work()
            except (NetlinkError, ruleset.RulesetError) as error:
                raise PodNetworkError(f"pod subnet {self._config.pod_cidr}: the kernel refused: {error}") from error
            except OSError as error:
                # pyroute2 keeps an error for good: this socket is of no use any more, the next call opens another.
                await self._release()
                raise PodNetworkError(f"pod subnet {self._config.pod_cidr}: {error}") from error

    async def _release(self) -> None:
        ipr, self._ipr = self._ipr, None
        if ipr is not None:
            with suppress(OSError):
                await ipr.__aexit__(None, None, None)

    async def _recover(self) -> None:
        names = {index: name for name, index in (await self._links()).items()}
        async for route in await self._netlink.get_routes(family=_IPV4, table=_MAIN_TABLE):
            name = names.get(route.get("oif") or 0)
            if name is None or route["dst_len"] != 32:
                continue
            address = IPv4Address(route.get("dst"))
            if address in self._config.pod_cidr:
                self._pool.reserve(address)
                self._attached[name] = address
        if self._attached:
            self._pool.resume_after(max(self._attached.values()))

    @property
    def _netlink(self) -> AsyncIPRoute:
        if self._ipr is None:
            raise PodNetworkError("the pod network is not started: call start() first")
        return self._ipr

    async def _links(self) -> dict[str, int]:
        links = [link async for link in await self._netlink.get_links()]
        return {link.get("ifname"): link["index"] for link in links if is_pod_link(link.get("ifname") or "")}

    async def attach(self, pod_id: str, pid: int) -> Attached:
        """Wires the network namespace of process `pid` for a pod; what is wired already is returned as it is.

        Raises PodNetworkError when the process is gone or shares this node's namespace, and AddressesExhausted.
        """
        return await self._locked(lambda: self._attach(pod_id, pid))

    async def _attach(self, pod_id: str, pid: int) -> Attached:
        name = link_name(pod_id)
        known = self._attached.get(name)
        index = (await self._links()).get(name)
        if known is not None and index is not None and await asyncio.to_thread(_holds, pid, known):
            await self._wire_node_side(index, known)
            return self._result(known)
        await self._drop(name)
        address = self._pool.take()
        try:
            await self._wire(name, pid, address)
        except BaseException as error:
            # Also when cancelled: half a wire would hold the name.
            await self._delete_link(name)
            self._pool.release(address)
            if isinstance(error, NetlinkError | OSError):
                raise PodNetworkError(f"pod {pod_id}: cannot wire the network of process {pid}: {error}") from error
            raise
        self._attached[name] = address
        return self._result(address)

    def _result(self, address: IPv4Address) -> Attached:
        return Attached((str(address),), self.gateway)

    async def _wire(self, name: str, pid: int, address: IPv4Address) -> None:
        fd = netns.open_of_pid(pid)
        try:
            if os.path.samestat(os.fstat(fd), Path("/proc/thread-self/ns/net").stat()):
                raise PodNetworkError(f"process {pid} shares this node's own network namespace and cannot be wired")
            await self._netlink.link(
                "add",
                ifname=name,
                kind="veth",
                address=HOST_MAC,
                mtu=self._config.mtu,
                peer={"ifname": POD_LINK, "net_ns_fd": fd, "address": pod_mac(address), "mtu": self._config.mtu},
            )
        finally:
            os.close(fd)
        index = (await self._netlink.link_lookup(ifname=name))[0]
        await asyncio.to_thread(_in_namespace_of, pid, lambda: _configure_pod_side(address))
        await self._wire_node_side(index, address)

    async def _wire_node_side(self, index: int, address: IPv4Address) -> None:
        """Idempotent."""
        await self._netlink.link("set", index=index, state="up")
        await self._netlink.neigh(
            "replace", ifindex=index, dst=str(address), lladdr=pod_mac(address), state="permanent"
        )
        await self._netlink.route("replace", dst=f"{address}/32", oif=index, scope=_SCOPE_LINK, prefsrc=self.gateway)

    async def detach(self, pod_id: str) -> None:
        """Removes the pod's link and releases its address; no error when it is gone already."""
        await self._locked(lambda: self._drop(link_name(pod_id)))

    async def _drop(self, name: str) -> None:
        await self._delete_link(name)
        address = self._attached.pop(name, None)
        if address is not None:
            self._pool.release(address)

    async def _delete_link(self, name: str) -> None:
        for index in await self._netlink.link_lookup(ifname=name):
            try:
                await self._netlink.link("del", index=index)
            except NetlinkError as error:
                if error.code != _ENODEV:  # it went with the pod's namespace meanwhile
                    raise

    async def reconcile(self, pod_ids: Iterable[str]) -> None:
        """Releases what belongs to none of these pods."""
        wanted = {link_name(pod_id) for pod_id in pod_ids}
        await self._locked(lambda: self._keep_only(wanted))

    async def _keep_only(self, wanted: set[str]) -> None:
        for name in (set(await self._links()) | set(self._attached)) - wanted:
            log.info("removing the link of a pod that is gone link=%s", name)
            await self._drop(name)

    async def repair(self) -> int:
        """Puts back the ruleset, the node's address and the node's side of every pod; returns how many pods lacked it.

        Raises PodNetworkError.
        """
        return await self._locked(self._repair)

    async def _repair(self) -> int:
        await self._ensure_router()
        routes = [route async for route in await self._netlink.get_routes(family=_IPV4, table=_MAIN_TABLE)]
        routed = {(route.get("oif"), route.get("dst")) for route in routes if route["dst_len"] == 32}
        entries = [entry async for entry in await self._netlink.get_neighbours(family=_IPV4)]
        known = {(entry["ifindex"], entry.get("dst")) for entry in entries if entry["state"] & _NUD_PERMANENT}
        count = 0
        for name, index in (await self._links()).items():
            address = self._attached.get(name)
            if address is not None and not {(index, str(address))} <= routed & known:
                await self._wire_node_side(index, address)
                count += 1
        return count

    def _concerns(self, notice: Notice) -> bool:
        """Removals only: whatever this node itself adds needs no look."""
        return notice.type in (RTM_DELADDR, RTM_DELNEIGH) or (
            notice.type == RTM_DELROUTE and notice.destination.endswith("/32")
        )

    async def watch(self) -> None:
        """Puts back what others remove, told by rtnetlink and nftables, until cancelled.

        What cannot be put back is tried again with the next removal, and after a growing pause without one.
        """
        changed = asyncio.Event()
        changed.set()
        with KernelEvents(self._concerns, changed.set), ruleset.Watch(changed.set):
            await keep_repaired("the pod network", changed, self.repair, PodNetworkError)

    def status(self) -> dict[str, str]:
        """Link name -> address of what is attached."""
        return {name: str(address) for name, address in self._attached.items()}

    async def close(self, *, keep: bool = True) -> None:
        """Releases sockets; with keep=False also removes links, address and ruleset."""
        if not keep:
            await self._locked(self._remove)
        async with self._lock:
            await self._release()

    async def _remove(self) -> None:
        await self._keep_only(set())
        ruleset.remove()
        loopback = (await self._netlink.link_lookup(ifname="lo"))[0]
        try:
            await self._netlink.addr("del", index=loopback, address=self.gateway, prefixlen=32)
        except NetlinkError as error:
            log.info("the node's pod gateway address was gone already: %s", error)


def _write_sysctls() -> None:
    for name, value in (
        ("net/ipv4/ip_forward", "1"),
        # A pod that reaches itself through its service leaves by the link it came from: no ICMP redirect for that.
        ("net/ipv4/conf/all/send_redirects", "0"),
        ("net/ipv4/conf/default/send_redirects", "0"),
    ):
        path = Path("/proc/sys") / name
        if path.read_text().strip() != value:
            path.write_text(value)


def _configure_pod_side(address: IPv4Address) -> None:
    with IPRoute() as ipr:
        loopback = ipr.link_lookup(ifname="lo")[0]
        ipr.link("set", index=loopback, state="up")
        index = ipr.link_lookup(ifname=POD_LINK)[0]
        ipr.addr("add", index=index, address=str(address), prefixlen=32)
        ipr.link("set", index=index, state="up")
        ipr.neigh("replace", ifindex=index, dst=GATEWAY, lladdr=HOST_MAC, state="permanent")
        ipr.route("replace", dst="default", gateway=GATEWAY, oif=index, flags=["onlink"])


def _holds(pid: int, address: IPv4Address) -> bool:
    """Whether the namespace of `pid` has this address: false once a pod got a new sandbox."""

    def look() -> bool:
        with IPRoute() as ipr:
            found: Any = [entry.get("address") for entry in ipr.get_addr(family=2)]
        return str(address) in found

    try:
        return _in_namespace_of(pid, look)
    except FileNotFoundError:
        return False


def _in_namespace_of(pid: int, work: Callable[[], T]) -> T:
    """Runs `work` in the process's network namespace; blocks. Raises FileNotFoundError once it is gone.

    Opens the namespace itself: a cancelled caller must not close a descriptor under the thread that uses it.
    """
    fd = netns.open_of_pid(pid)
    try:
        return netns.run_in(fd, work)
    finally:
        os.close(fd)
