"""What the userspace engine puts into nftables: maps from service addresses to the ports that its listeners have."""

from __future__ import annotations

from kernelet.ext.nft import Batch

from ..engine import EngineConfig
from ..nftables.ruleset import KINDS, NONE, REJECT, TABLE, Family, Kind, concatenation, key_fields, prefixes

REFUSED = "_refused"
"""`<frontends>_refused` says what happens to a frontend without backends."""
GUARDED = "_guarded"
"""`<frontends>_guarded` has the frontends that only the clients in the set of sources may use."""
PORT_TYPE = (13, 2)
"""inet_service, unpadded: a map's data of one field is as long as the field."""


def add_maps(batch: Batch, family: Family) -> None:
    """Makes the family's maps in a table that exists.

    They bear the names of the nftables engine's maps with other types, so that either engine notices the other's table
    and makes its own in its place.
    """
    for kind in KINDS[family]:
        key = concatenation(key_fields(kind))
        batch.add_set(TABLE, family.number, kind.frontends, *key, *PORT_TYPE)
        batch.add_set(TABLE, family.number, kind.frontends + REFUSED, *key, "verdict")
        if kind.addressed:
            ranges = (family.length, 1, 2, family.length)
            sources = concatenation([*key_fields(kind), key_fields(kind)[0]])
            batch.add_set(TABLE, family.number, kind.frontends + GUARDED, *key)
            batch.add_set(TABLE, family.number, kind.sources, *sources, ranges=ranges)


def names(kind: Kind) -> tuple[str, ...]:
    """The maps and sets of one sort of frontend."""
    guard = (kind.frontends + GUARDED, kind.sources) if kind.addressed else ()
    return (kind.frontends, kind.frontends + REFUSED, *guard)


def _dispatch(kind: Kind, where: str) -> str:
    """The rules for one sort of frontend, each of which begins with `where`."""
    guard = ""
    if kind.addressed:
        client = f"{kind.key} . {kind.family.name} saddr"
        guard = f"    {where}{kind.key} @{kind.frontends}{GUARDED} {client} != @{kind.sources} drop\n"
    return (
        f"{guard}    {where}meta l4proto {{ tcp, udp }} redirect to : {kind.key} map @{kind.frontends}\n"
        f"    {where}{kind.key} vmap @{kind.frontends}{REFUSED}\n"
    )


def text(family: Family, config: EngineConfig) -> str:
    """Replaces the table's rules in one transaction and keeps its elements; the maps must exist."""
    ip = family.name
    everyone, node, local, local_node = KINDS[family]
    cluster, services = prefixes(config, family)
    outside = f"{ip} saddr != {cluster} " if cluster else ""
    here = "fib daddr type local "
    unknown = f"    {ip} daddr {services} goto {REJECT}\n" if services else ""
    loopback = "" if ip == "ip" else f"{ip} daddr != {family.loopback} "
    for_everyone = f"{_dispatch(everyone, '')}{_dispatch(node, here + loopback)}{unknown}"
    first = f"{_dispatch(local, outside)}{_dispatch(local_node, outside + here)}"
    table = f"table {ip} {TABLE}"
    return f"""flush {table}
{table} {{
  chain {REJECT} {{
    meta l4proto tcp reject with tcp reset
    reject
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname != "lo" {ip} daddr {family.loopback} drop
{first}{for_everyone}  }}
  chain output {{
    type nat hook output priority -100; policy accept;
{for_everyone}  }}
}}
"""


def refusal(number: bytes) -> str:
    """The verdict on a frontend without backends, by what stands for their number."""
    return f"goto {REJECT}" if number == NONE else "drop"
