"""The structure of the nftables tables: maps, chains and rules as text, applied through libnftables.

What is in here changes with the version of the program and with the node's configuration; what changes with services
are elements (elements.py).
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import nftables

from kernelet.ext.nft import Batch

from ..routes import Protocol
from .engine import EngineConfig, EngineError
from .untracked import BACKEND_PORTS, UNTRACKED, networks, raw_chain

TABLE = "kernelet"
MASQUERADE_MARK = 0x4000
"""The bit that Kubernetes' own proxy uses too: programs which set marks of their own already stay clear of it."""
INITIAL_CHAINS = 32
"""Chains for 1 to this many backends are made at start, more when a service needs them."""

SERVICES, BACKENDS = "services", "backends"
NODEPORTS, NODEPORT_BACKENDS = "nodeports", "nodeport_backends"
LOCAL = "local_"
HAIRPIN, TRAFFIC = "hairpin", "traffic"
REJECT = "reject_new"

NONE, DROP = (number.to_bytes(4, sys.byteorder) for number in (0, 0xFFFFFFFF))
"""In place of a number of backends: refuse, and drop."""

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
    """Map from a frontend's key to its number of backends, `NONE` or `DROP`."""
    backends: str
    """Map from a frontend's key and a slot to a backend."""
    chain: str
    """`<chain><N>` chooses one of N backends."""
    addressed: bool
    """The key begins with the destination address (service addresses) or not (node ports)."""

    @property
    def chains(self) -> str:
        """Map from a number of backends to the chain that chooses among so many."""
        return f"{self.chain}_chains"

    @property
    def translate(self) -> str:
        """The chain that translates to the chosen backend."""
        return f"{self.chain}_translate"

    @property
    def choose(self) -> str:
        """The rule that leaves for the frontend's chain, and does not match where there is no such frontend.

        The number rests in the packet's priority, which nobody has set yet for a connection's first packet and which
        the chain sets back to 0.
        """
        return f"meta priority set {self.key} map @{self.frontends} meta priority vmap @{self.chains}"

    @property
    def key(self) -> str:
        """The frontend's key as an nft expression."""
        ports = "meta l4proto . th dport"
        return f"{self.family.name} daddr . {ports}" if self.addressed else ports


Chooser = tuple[Kind, int]
"""The chain that chooses one of so many backends of a kind."""


def kinds(family: Family) -> tuple[Kind, Kind, Kind, Kind]:
    """Services and node ports, for everyone; then both for outside clients under the Local traffic policy."""
    return (
        Kind(family, SERVICES, BACKENDS, "lb", True),
        Kind(family, NODEPORTS, NODEPORT_BACKENDS, "np", False),
        Kind(family, LOCAL + SERVICES, LOCAL + BACKENDS, "llb", True),
        Kind(family, LOCAL + NODEPORTS, LOCAL + NODEPORT_BACKENDS, "lnp", False),
    )


KINDS = {family: kinds(family) for family in FAMILIES}


def families(config: EngineConfig) -> tuple[Family, ...]:
    """The families that the node's networks are of; IPv4 where none is configured."""
    networks = (*config.service_cidrs, *config.cluster_cidrs, *config.pod_cidrs)
    versions = {network.version for network in networks} or {4}
    return tuple(family for family, version in ((IP, 4), (IP6, 6)) if version in versions)


def chooser(kind: Kind, count: int) -> str:
    """The chain that sends a new connection to one of `count` backends, picked at random."""
    return (
        f"  chain {kind.chain}{count} {{\n    meta priority set numgen random mod {count} goto {kind.translate}\n  }}\n"
    )


def _translation(kind: Kind) -> str:
    """The chain that all choosers of a kind end in, which sends a new connection to the backend in the chosen slot.

    A packet that is on its way while a transaction is committed may see the old number of backends and the new slots.
    Slot 0 exists as long as there is any backend, so the second rule takes what the first one missed: no connection
    is lost to a change. It is one chain, as the kernel walks a whole map for every chain that comes to use it.
    """
    choose = f"meta l4proto {{ tcp, udp, sctp }} dnat {kind.family.name} to {kind.key} . meta priority"
    return (
        f"  chain {kind.translate} {{\n"
        f"    {choose} map @{kind.backends}\n"
        f"    meta priority set 0 {choose} map @{kind.backends}\n"
        f"    goto {REJECT}\n"
        "  }\n"
    )


def add_sets(batch: Batch, family: Family) -> None:
    """Makes the family's sets and maps in a table that exists; a set of that name and another type fails with EEXIST.

    Slots have the type of a packet's priority, in which the random number rests: a number without a type of its own
    (`typeof ... . numgen random mod 2`) is one that nft 1.0.6 can declare, but neither use in a later rule nor list.
    """
    address, port = _address(family), (_TYPE_SERVICE, 4)
    for kind in KINDS[family]:
        key = key_fields(kind)
        batch.add_set(TABLE, family.number, kind.frontends, *concatenation(key), *_COUNT)
        batch.add_set(TABLE, family.number, kind.chains, *_COUNT, "verdict")
        batch.add_set(
            TABLE, family.number, kind.backends, *concatenation([*key, _COUNT]), *concatenation([address, port])
        )
    batch.add_set(TABLE, family.number, HAIRPIN, *concatenation([address, address]))
    batch.add_set(TABLE, family.number, TRAFFIC, *concatenation([address, _PROTOCOL, port]), counter=True)
    batch.add_set(TABLE, family.number, BACKEND_PORTS, *concatenation([_PROTOCOL, port]))
    batch.add_set(TABLE, family.number, UNTRACKED, _PROTOCOL[0], 1)


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


def _chains(family: Family, config: EngineConfig, *, beside_sockets: bool) -> str:
    """The fixed chains. But for `raw` all are of type nat: only the first packet of a connection runs through them."""
    ip = family.name
    everyone, node, local, local_node = KINDS[family]
    cluster, services = prefixes(config, family)
    outside = f"{ip} saddr != {cluster} " if cluster else ""
    count = f"{everyone.key} @{TRAFFIC}"
    mark = f"meta mark set meta mark | {MASQUERADE_MARK:#x}"
    unmark = f"meta mark set meta mark & {0xFFFFFFFF ^ MASQUERADE_MARK:#x}"
    # Only IPv4 can leave a host from its loopback address (route_localnet), so only it is open there.
    loopback = "" if family is IP else f"    {ip} daddr {family.loopback} return\n"
    unknown = f"    {ip} daddr {services} goto {REJECT}\n" if services else ""
    # Replies to what sockets have no part in must come back to this node, though it does not track pods' packets.
    masquerade = f"    meta l4proto != {int(Protocol.SCTP)} {mark}\n" if beside_sockets and cluster else ""
    raw = raw_chain(ip, cluster, masqueraded=beside_sockets)
    return f"""{raw}
  chain {REJECT} {{
    meta l4proto tcp reject with tcp reset
    reject
  }}
  chain nodeport {{
{loopback}    {mark}
    {node.choose}
  }}
  chain dispatch {{
    {outside}{mark}
{masquerade}    {everyone.choose}
    fib daddr type local jump nodeport
{unknown}    {unmark}
  }}
  chain outside {{
    {local.choose}
    fib daddr type local {local_node.choose}
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname != "lo" {ip} daddr {family.loopback} drop
    {count}
    {outside}jump outside
    jump dispatch
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    {count}
    jump dispatch
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ct status dnat meta priority set 0
    meta mark & {MASQUERADE_MARK:#x} != 0 {unmark} masquerade fully-random
    {ip} saddr . {ip} daddr @{HAIRPIN} masquerade fully-random
  }}
"""


def base_text(
    family: Family, config: EngineConfig, choosers: Collection[Chooser], *, beside_sockets: bool = False
) -> str:
    """Replaces all rules of the table in one transaction and keeps its elements.

    The sets must exist, and every chooser that elements point to must be among `choosers`.
    """
    table = f"table {family.name} {TABLE}"
    chains = _chains(family, config, beside_sockets=beside_sockets)
    ends = "".join(map(_translation, KINDS[family]))
    chosen = "".join(chooser(kind, count) for kind, count in sorted(choosers, key=_by_name))
    return f"flush {table}\n{table} {{{chains}{ends}{chosen}}}\n"


def chain_elements(kind: Kind, counts: Iterable[int]) -> dict[bytes, str]:
    """The elements of the map from a number of backends to a chain."""
    found = {count.to_bytes(4, sys.byteorder): f"goto {kind.chain}{count}" for count in counts}
    return found | {NONE: f"goto {REJECT}", DROP: "drop"}


def choosers_text(wanted: Iterable[Chooser]) -> str:
    """Adds chains to tables that exist."""
    return "".join(
        f"table {kind.family.name} {TABLE} {{\n{chooser(kind, count)}}}\n"
        for kind, count in sorted(wanted, key=_by_name)
    )


def _by_name(item: Chooser) -> tuple[int, str, int]:
    return item[0].family.number, item[0].chain, item[1]


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
