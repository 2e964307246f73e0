"""What is traced, as plain data: a Service's addresses and backends, and the nodes whose kernels are watched.

Addresses are packed network-order bytes, 4 for IPv4 and 16 for IPv6, as in the route table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import NamedTuple

Network = IPv4Network | IPv6Network


class Endpoint(NamedTuple):
    """One end of a flow; `protocol` is an IP protocol number."""

    address: bytes
    port: int
    protocol: int

    def __str__(self) -> str:
        host = str(ip_address(self.address))
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Subject:
    """One Service."""

    name: str
    """`namespace/name`"""
    backends: Mapping[Endpoint, Endpoint]
    """Backend -> the service's address that leads there."""
    frontends: frozenset[Endpoint]
    """All addresses that clients may use, backends or none behind them."""

    @property
    def watched(self) -> frozenset[Endpoint]:
        return self.frontends | frozenset(self.backends)


@dataclass(frozen=True, slots=True)
class Place:
    """A node on this machine."""

    node: str
    netns: Path
    """Its network namespace, whose connection tracking knows what became of a service's address."""
    networks: tuple[Network, ...] = field(default=())
    """Addresses of its own and of its pods."""
    redirects: bool = True
    """Sockets may be sent straight to backends here, as the ebpf engine does. Else one that is connected to a backend
    asked for that very address: a probe of the kubelet's, say, which is none of the service's connections."""

    def has(self, address: bytes) -> bool:
        return any(ip_address(address) in network for network in self.networks)
