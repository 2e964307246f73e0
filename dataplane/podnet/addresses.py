"""Addresses of one node's pod subnet: which is taken, which comes next."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network


class AddressesExhausted(Exception):
    """Every address of the subnet is taken; the message names the subnet and how many pods hold addresses."""


class AddressPool:
    """Hands out addresses in turn, so that a released one rests for a whole round before it is used again.

    Connections that outlive a pod (TIME_WAIT entries, clients with a cached name) would otherwise reach a stranger.
    The network address, the gateway (first address) and the broadcast address are never handed out.
    """

    def __init__(self, subnet: IPv4Network) -> None:
        if subnet.prefixlen > 29:
            raise ValueError(f"pod subnet {subnet}: too small, at least a /29 is needed")
        self.subnet = subnet
        self.gateway = subnet.network_address + 1
        self._taken: set[IPv4Address] = set()
        self._next = subnet.network_address + 2

    def __len__(self) -> int:
        return len(self._taken)

    def take(self) -> IPv4Address:
        """The next free address. Raises AddressesExhausted."""
        last = self.subnet.broadcast_address - 1
        for _ in range(self.subnet.num_addresses - 3):
            candidate = self._next
            self._next = candidate + 1 if candidate < last else self.subnet.network_address + 2
            if candidate not in self._taken:
                self._taken.add(candidate)
                return candidate
        raise AddressesExhausted(
            f"pod subnet {self.subnet}: all {len(self._taken)} addresses are taken; "
            "delete pods of this node or give nodes larger subnets"
        )

    def reserve(self, address: IPv4Address) -> None:
        """Marks an address found in the kernel as taken, and continues after it."""
        if address not in self.subnet:
            raise ValueError(f"address {address} is not in the pod subnet {self.subnet}")
        self._taken.add(address)

    def resume_after(self, address: IPv4Address) -> None:
        """Continues after the highest address in use, so that those released just before a restart rest as well."""
        self._next = min(address + 1, self.subnet.broadcast_address - 1)

    def release(self, address: IPv4Address) -> None:
        self._taken.discard(address)
