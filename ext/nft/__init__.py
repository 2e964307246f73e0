"""Netfilter's netlink interface: batched nftables elements, dumps, change events, and conntrack deletion.

Promises: many elements go to the kernel as one transaction, without a listing and without an `nft` process; a refusal
names the element; a dump is consistent or repeated. Depends on the kernel alone (CAP_NET_ADMIN in the network namespace
where a `Socket` is opened). Makes sets, but neither tables nor chains, and rules only where libnftables cannot put
them into messages (expressions.py). Never decides what an element means.

Elements are plain values. A key is the concatenation of its fields, each padded with zeros to four bytes (see
`pad`); data is `bytes` laid out in the same way, or a verdict as text: `"goto CHAIN"`, `"jump CHAIN"`, `"drop"`,
`"accept"`, `"return"`; None for the elements of a set that maps to nothing.
"""

from ._nft import (
    AF_INET,
    AF_INET6,
    Batch,
    BatchError,
    Change,
    ElementError,
    Events,
    Generation,
    NetlinkError,
    Overrun,
    Socket,
    pad,
)
from .conntrack import Flow, delete_flows

__all__ = [
    "AF_INET",
    "AF_INET6",
    "Batch",
    "BatchError",
    "Change",
    "ElementError",
    "Events",
    "Flow",
    "Generation",
    "NetlinkError",
    "Overrun",
    "Socket",
    "delete_flows",
    "pad",
]
