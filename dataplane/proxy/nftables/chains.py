"""The chains of the nftables tables as text, applied through libnftables.

Fixed ones that tell frontends, and one for each number that a frontend has (numbers.py), which are made when they are
first needed. A transaction replaces all rules and keeps the elements.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable

from kernelet.ext.nft import Batch

from ...routes import Protocol
from ..engine import EngineConfig
from . import affinity
from .numbers import DROP, NONE, chain_suffix, encode, guarded, seconds_of, slots_of
from .ruleset import HAIRPIN, IP, KINDS, MASQUERADE_MARK, REJECT, TABLE, Family, Kind, prefixes
from .untracked import raw_chain

INITIAL_CHAINS = 32
"""Chains for 1 to this many backends are made at start, more when a service needs them."""

Chooser = tuple[Kind, int]
"""The chain of a kind that does what a number says."""


def initial_choosers(family: Family) -> set[Chooser]:
    services, nodeports, *_ = KINDS[family]
    return {(kind, count) for kind in (services, nodeports) for count in range(1, INITIAL_CHAINS + 1)}


def choosers_among(family: Family, chains: Iterable[str]) -> set[Chooser]:
    """Those among the names of a table's chains."""
    known = {kind.chain: kind for kind in KINDS[family]}
    matches = [match for name in chains if (match := re.fullmatch(r"([a-z]+)([0-9]+)(?:t([0-9]+))?(g?)", name))]
    return {
        (known[match[1]], encode(int(match[2]), int(match[3] or 0), guarded=bool(match[4])))
        for match in matches
        if match[1] in known
    }


def _chooser(chosen: Chooser) -> str:
    """The chain that sends a new connection to one of a frontend's slots, picked at random."""
    kind, number = chosen
    seconds = seconds_of(number)
    guard = f"    jump {kind.guard}\n" if guarded(number) else ""
    stuck = f"    jump {kind.chain}_stuck{seconds}\n" if seconds else ""
    then = f"{kind.chain}_choose{seconds}" if seconds else kind.translate
    return (
        f"  chain {kind.chain}{chain_suffix(number)} {{\n{guard}{stuck}"
        f"    meta priority set numgen random mod {slots_of(number)} goto {then}\n  }}\n"
    )


def _translation(kind: Kind) -> str:
    """The chain that all choosers of a kind end in, which sends a new connection to the backend in the chosen slot.

    A packet that is on its way while a transaction is committed may see the old number of backends and the new slots.
    Slot 0 exists as long as there is any backend, so the second rule takes what the first one missed: no connection
    is lost to a change. It is one chain, as the kernel walks a whole map for every chain that comes to use it.
    """
    return (
        f"  chain {kind.translate} {{\n"
        f"    {kind.destination_nat}\n"
        f"    meta priority set 0 {kind.destination_nat}\n"
        f"    goto {REJECT}\n"
        "  }\n"
    )


def _guard(kind: Kind) -> str:
    """The chain that drops the clients that may not use a guarded frontend."""
    if not kind.addressed:
        return ""
    source = f"{kind.family.name} saddr"
    return f"  chain {kind.guard} {{\n    {kind.key} . {source} @{kind.sources} return\n    drop\n  }}\n"


def _chains(family: Family, config: EngineConfig, *, beside_sockets: bool) -> str:
    """The fixed chains. But for `raw` all are of type nat: only the first packet of a connection runs through them."""
    ip = family.name
    everyone, node, local, local_node = KINDS[family]
    cluster, services = prefixes(config, family)
    outside = f"{ip} saddr != {cluster} " if cluster else ""
    count = f"{everyone.key} @{everyone.traffic}"
    mark = f"meta mark set meta mark | {MASQUERADE_MARK:#x}"
    unmark = f"meta mark set meta mark & {0xFFFFFFFF ^ MASQUERADE_MARK:#x}"
    # Only IPv4 can leave a host from its loopback address (route_localnet), so only it is open there.
    loopback = "" if family is IP else f"    {ip} daddr {family.loopback} return\n"
    unknown = f"    {ip} daddr {services} goto {REJECT}\n" if services else ""
    # Replies to what sockets have no part in must come back to this node, though it does not track pods' packets.
    masquerade = f"    meta l4proto != {int(Protocol.SCTP)} {mark}\n" if beside_sockets and cluster else ""
    own = [str(address) for address in config.own_addresses if address.max_prefixlen == family.length * 8]
    raw = raw_chain(ip, cluster, own, masqueraded=beside_sockets)
    return f"""{raw}
  chain {REJECT} {{
    meta l4proto tcp reject with tcp reset
    reject
  }}
  chain nodeport {{
{loopback}    {mark}
    {node.key} @{node.traffic}
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
    fib daddr type local jump outside_nodeport
  }}
  chain outside_nodeport {{
    {local_node.key} @{local_node.traffic}
    {local_node.choose}
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


def base_text(family: Family, config: EngineConfig, choosers: Collection[Chooser], *, beside_sockets: bool) -> str:
    """Replaces all rules of the table in one transaction and keeps its elements.

    The sets must exist, and every chooser that elements point to must be among `choosers`. What cannot be told as text
    `add_rules` adds.
    """
    table = f"table {family.name} {TABLE}"
    chains = _chains(family, config, beside_sockets=beside_sockets)
    shared = "".join(_translation(kind) + _guard(kind) + affinity.forget_chain(kind) for kind in KINDS[family])
    sticky = "".join(affinity.chains(kind, seconds) for kind, seconds in sorted(times(choosers), key=_by_name))
    chosen = "".join(map(_chooser, sorted(choosers, key=_by_name)))
    return f"flush {table}\n{table} {{{chains}{shared}{sticky}{chosen}}}\n"


def base_rules(batch: Batch, family: Family, choosers: Collection[Chooser]) -> None:
    """What `base_text` leaves for netlink."""
    for kind in KINDS[family]:
        affinity.add_forget_rule(batch, kind)
    for kind, seconds in times(choosers):
        affinity.add_keep_rule(batch, kind, seconds)


def chain_elements(kind: Kind, numbers: Iterable[int]) -> dict[bytes, str]:
    """The elements of the map from a number to a chain."""
    found = {number.to_bytes(4, sys.byteorder): f"goto {kind.chain}{chain_suffix(number)}" for number in numbers}
    return found | {NONE: f"goto {REJECT}", DROP: "drop"}


def choosers_text(wanted: Iterable[Chooser], present: Collection[Chooser]) -> str:
    """Adds chains to tables that exist and have the `present` ones."""
    text = "".join(
        f"table {chosen[0].family.name} {TABLE} {{\n{_chooser(chosen)}}}\n" for chosen in sorted(wanted, key=_by_name)
    )
    return (
        "".join(
            f"table {kind.family.name} {TABLE} {{\n{affinity.chains(kind, seconds)}}}\n"
            for kind, seconds in sorted(times(wanted) - times(present), key=_by_name)
        )
        + text
    )


def choosers_rules(batch: Batch, wanted: Iterable[Chooser], present: Collection[Chooser]) -> None:
    """What `choosers_text` leaves for netlink."""
    for kind, seconds in times(wanted) - times(present):
        affinity.add_keep_rule(batch, kind, seconds)


def times(choosers: Iterable[Chooser]) -> set[tuple[Kind, int]]:
    """The affinity timeouts of each kind."""
    return {(kind, seconds_of(number)) for kind, number in choosers if seconds_of(number)}


def _by_name(item: Chooser) -> tuple[int, str, int]:
    return item[0].family.number, item[0].chain, item[1]
