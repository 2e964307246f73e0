"""The structure of the nftables tables: the address families, the sorts of frontends, and the sets of both.

What is in here changes with the version of the program and with the node's configuration, as do the chains (chains.py);
what changes with services are elements (elements.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import nftables

from kernelet.ext.nft import Batch

from ..engine import EngineConfig, EngineError
from .numbers import DROP, NONE
from .untracked import BACKEND_PORTS, UNTRACKED, networks

__all__ = ["DROP", "KINDS", "NONE", "TABLE", "Family", "Kind", "Nft", "families"]

TABLE = "kernelet"
MASQUERADE_MARK = 0x4000
"""The bit that Kubernetes' own proxy uses too: programs which set marks of their own already stay clear of it."""
MOST_CLIENTS = 1 << 17
"""Clients that each affinity map keeps at a time."""

SERVICES, BACKENDS = "services", "backends"
NODEPORTS, NODEPORT_BACKENDS = "nodeports", "nodeport_backends"
LOCAL = "local_"
HAIRPIN, TRAFFIC = "hairpin", "traffic"
REJECT = "reject_new"

_TYPE_IP, _TYPE_IP6, _TYPE_SERVICE = 7, 8, 13
"""nft's datatype numbers (include/datatype.h of nftables)."""
_PROTOCOL, _COUNT = (12, 4), (23, 4)
"""inet_proto, and classid: what nft takes a packet's priority for."""


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """What differs between the address families; compared by identity, since hashing fields costs much at scale."""

    name: str
    """As nft spells it: a table's family and a header's name."""
    number: int
    """AF_INET or AF_INET6."""
    length: int
    """Bytes of an address."""
    loopback: str


IP = Family("ip", 2, 4, "127.0.0.0/8")
IP6 = Family("ip6", 10, 16, "::1")
FAMILIES = (IP, IP6)


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """One sort of frontend: where its verdicts and backends are kept, and which chains choose among them."""

    family: Family
    frontends: str
    """Map from a frontend's key to its number (numbers.py), `NONE` or `DROP`."""
    backends: str
    """Map from a frontend's key and a slot, or an id, to a backend."""
    chain: str
    """`<chain><N>` chooses one of N slots."""
    addressed: bool
    """The key begins with the destination address (service addresses) or not (node ports)."""

    traffic: str
    """Set of the frontends' keys that counts their connections; "" where another kind's counts them."""

    @property
    def scope(self) -> str:
        """What the names of the kind's sets begin with."""
        return self.backends.removesuffix(BACKENDS)

    @property
    def ids(self) -> str:
        """Map from the key of a frontend with affinity and a slot to the id of the backend that is there."""
        return f"{self.scope}backend_ids"

    @property
    def affinity(self) -> str:
        """Map from a client's address and a frontend's key to the id of the backend that the client keeps."""
        return f"{self.scope}affinity"

    @property
    def sources(self) -> str:
        """Set of a guarded frontend's key and the range of addresses that may use it; for addressed kinds."""
        return f"{self.scope}sources"

    @property
    def sets(self) -> tuple[str, ...]:
        """The sets whose elements' keys begin with a frontend's key."""
        more = (self.sources,) if self.addressed else ()
        return (self.frontends, self.backends, self.ids, *more, *((self.traffic,) if self.traffic else ()))

    @property
    def size(self) -> int:
        """Bytes of a frontend's key."""
        return self.family.length + 8 if self.addressed else 8

    @property
    def chains(self) -> str:
        """Map from a number to the chain that does what it says."""
        return f"{self.chain}_chains"

    @property
    def translate(self) -> str:
        """The chain that translates to the chosen backend."""
        return f"{self.chain}_translate"

    @property
    def guard(self) -> str:
        """The chain that drops clients which may not use a guarded frontend."""
        return f"{self.chain}_guard"

    @property
    def choose(self) -> str:
        """The rule that leaves for the frontend's chain, and does not match where there is no such frontend.

        The number rests in the packet's priority, which nobody has set yet for a connection's first packet and which
        the chain sets back to 0.
        """
        return f"meta priority set {self.key} map @{self.frontends} meta priority vmap @{self.chains}"

    @property
    def destination_nat(self) -> str:
        """The statement that translates to the backend of the slot or the id in the packet's priority; ends there."""
        choose = f"{self.key} . meta priority map @{self.backends}"
        return f"meta l4proto {{ tcp, udp, sctp }} dnat {self.family.name} to {choose}"

    @property
    def key(self) -> str:
        """The frontend's key as an nft expression."""
        ports = "meta l4proto . th dport"
        return f"{self.family.name} daddr . {ports}" if self.addressed else ports


def kinds(family: Family) -> tuple[Kind, Kind, Kind, Kind]:
    """Services and node ports, for everyone; then both for outside clients under the Local traffic policy."""
    return (
        Kind(family, SERVICES, BACKENDS, "lb", True, TRAFFIC),
        Kind(family, NODEPORTS, NODEPORT_BACKENDS, "np", False, f"nodeport_{TRAFFIC}"),
        Kind(family, LOCAL + SERVICES, LOCAL + BACKENDS, "llb", True, ""),
        Kind(family, LOCAL + NODEPORTS, LOCAL + NODEPORT_BACKENDS, "lnp", False, f"{LOCAL}nodeport_{TRAFFIC}"),
    )


KINDS = {family: kinds(family) for family in FAMILIES}


def families(config: EngineConfig) -> tuple[Family, ...]:
    """The families that the node's networks are of; IPv4 where none is configured."""
    networks = (*config.service_cidrs, *config.cluster_cidrs, *config.pod_cidrs)
    versions = {network.version for network in networks} or {4}
    return tuple(family for family, version in ((IP, 4), (IP6, 6)) if version in versions)


def add_sets(batch: Batch, family: Family) -> None:
    """Makes the family's sets and maps in a table that exists; a set of that name and another type fails with EEXIST.

    Slots have the type of a packet's priority, in which the random number rests: a number without a type of its own
    (`typeof ... . numgen random mod 2`) is one that nft 1.0.6 can declare, but neither use in a later rule nor list.
    """
    address, port, number = _address(family), (_TYPE_SERVICE, 4), family.number
    for kind in KINDS[family]:
        key = key_fields(kind)
        slot, backend = concatenation([*key, _COUNT]), concatenation([address, port])
        batch.add_set(TABLE, number, kind.frontends, *concatenation(key), *_COUNT)
        batch.add_set(TABLE, number, kind.chains, *_COUNT, "verdict")
        batch.add_set(TABLE, number, kind.backends, *slot, *backend)
        batch.add_set(TABLE, number, kind.ids, *slot, *_COUNT)
        batch.add_set(TABLE, number, kind.affinity, *concatenation([address, *key]), *_COUNT, dynamic=MOST_CLIENTS)
        if kind.addressed:
            lengths = (family.length, 1, 2, family.length)
            batch.add_set(TABLE, number, kind.sources, *concatenation([*key, address]), ranges=lengths)
        if kind.traffic:
            batch.add_set(TABLE, number, kind.traffic, *concatenation(key), counter=True)
    batch.add_set(TABLE, number, HAIRPIN, *concatenation([address, address]))
    batch.add_set(TABLE, number, BACKEND_PORTS, *concatenation([_PROTOCOL, port]))
    batch.add_set(TABLE, number, UNTRACKED, _PROTOCOL[0], 1)


def _address(family: Family) -> tuple[int, int]:
    return _TYPE_IP if family is IP else _TYPE_IP6, family.length


def key_fields(kind: Kind) -> list[tuple[int, int]]:
    """The fields of a frontend's key, each with nft's number of its type and its length."""
    ports = [_PROTOCOL, (_TYPE_SERVICE, 4)]
    return [_address(kind.family), *ports] if kind.addressed else ports


def concatenation(fields: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """The number and the length of the type that is made of these."""
    number = length = 0
    for type_, size in fields:
        number, length = number << 6 | type_, length + size
    return number, length


def prefixes(config: EngineConfig, family: Family) -> tuple[str, str]:
    """The cluster's and the services' networks of a family as nft expressions; "" where there are none."""
    bits = family.length * 8
    cluster, services = (
        networks([str(network) for network in group if network.max_prefixlen == bits])
        for group in (config.cluster_cidrs, config.service_cidrs)
    )
    return cluster, services


class Nft:
    """libnftables in the network namespace the calling thread is in when this is made."""

    def __init__(self) -> None:
        self._nft = nftables.Nftables()

    def run(self, text: str, purpose: str) -> None:
        """Runs commands as one transaction. Raises EngineError with nft's words."""
        code, _, error = self._nft.cmd(text)
        if code:
            raise EngineError(
                f"cannot {purpose}: nft says: {error.strip()}; check that nf_tables and nf_nat are available and "
                "that the process has CAP_NET_ADMIN in its network namespace"
            )

    def add_tables(self, which: Iterable[Family]) -> None:
        """Makes the tables, empty, where they do not exist. Raises EngineError."""
        self.run("".join(f"add table {family.name} {TABLE}\n" for family in which), f"make the nftables table {TABLE}")

    def delete_tables(self, which: Iterable[Family]) -> None:
        """Removes the tables with all they hold; a missing one is well. Raises EngineError."""
        # nft before 1.0.7 has no `destroy`: adding first makes the deletion succeed always.
        text = "".join(f"add table {f.name} {TABLE}\ndelete table {f.name} {TABLE}\n" for f in which)
        self.run(text, f"delete the nftables table {TABLE}")
