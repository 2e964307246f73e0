"""Hands out subnets of one cluster network; none twice. No I/O."""

from __future__ import annotations

import ipaddress

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Exhausted(Exception):
    """Every subnet is taken."""


class Subnets:
    """Subnets of `prefix` bits in `cluster`, each free or taken. Raises ValueError for a prefix that cannot be."""

    def __init__(self, cluster: str, prefix: int) -> None:
        self.network: Network = ipaddress.ip_network(cluster)
        if not self.network.prefixlen <= prefix <= self.network.max_prefixlen:
            raise ValueError(
                f"node mask size /{prefix} does not fit the cluster CIDR {cluster}: "
                f"choose one from /{self.network.prefixlen} to /{self.network.max_prefixlen}"
            )
        self._shift = self.network.max_prefixlen - prefix
        self._prefix = prefix
        self._count = 1 << (prefix - self.network.prefixlen)
        self._taken: set[int] = set()
        self._next = 0

    def __len__(self) -> int:
        return self._count

    @property
    def free(self) -> int:
        return self._count - len(self._taken)

    def occupy(self, subnet: str) -> bool:
        """Takes every subnet that overlaps a given one; False when it lies outside the cluster network."""
        indexes = self._indexes(subnet)
        self._taken.update(indexes)
        return bool(indexes)

    def release(self, subnet: str) -> None:
        self._taken.difference_update(self._indexes(subnet))

    def allocate(self) -> str:
        """Takes the next free one after the last, so that a released subnet is not in use again at once.

        Raises Exhausted.
        """
        for step in range(self._count):
            index = (self._next + step) % self._count
            if index not in self._taken:
                self._taken.add(index)
                self._next = (index + 1) % self._count
                return f"{self.network.network_address + (index << self._shift)}/{self._prefix}"
        raise Exhausted(f"all {self._count} subnets /{self._prefix} of {self.network} are taken")

    def _indexes(self, subnet: str) -> range:
        """Which of our subnets a network overlaps."""
        other = ipaddress.ip_network(subnet, strict=False)
        if other.version != self.network.version:
            return range(0)
        base = int(self.network.network_address)
        first = max(int(other.network_address), base) - base
        last = min(int(other.broadcast_address), int(self.network.broadcast_address)) - base
        return range(first >> self._shift, (last >> self._shift) + 1) if first <= last else range(0)
