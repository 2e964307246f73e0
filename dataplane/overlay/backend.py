"""The overlay contract: how packets reach the pods of other nodes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from typing import Protocol

from ..routes import Peer


class OverlayError(Exception):
    """The kernel refused a change or lacks a feature; the message names the link or route, the cause and the fix."""


@dataclass(frozen=True, slots=True)
class OverlayConfig:
    """What a backend needs to know of its node."""

    node: str
    address: IPv4Interface
    """The node's own address on the underlay, with its prefix length."""
    pod_cidr: IPv4Network
    cluster_cidr: IPv4Network
    vni: int = 1
    port: int = 8472
    """UDP port of VXLAN, as flannel's."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """What other nodes must know of this one, published on its Node."""

    address: str
    vtep_mac: str


class OverlayBackend(Protocol):
    """Coroutine methods of one event loop; each is idempotent."""

    name: str

    async def start(self) -> Attachment:
        """Ensures the device: creates it, or compares it field by field and recreates it only where it differs."""
        ...

    async def apply(self, peers: Iterable[Peer]) -> int:
        """Makes routes, neighbours and FDB entries equal to `peers` (this node left out).

        Returns how many were changed.
        """
        ...

    async def close(self, *, keep: bool = True) -> None:
        """Releases netlink sockets; with keep=False also removes device and routes."""
        ...
