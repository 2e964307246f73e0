"""Session affinity (ClientIP): a client that comes back in time is sent where it was sent before, by the kernel alone.

Three maps beside a frontend's slots, which are numbered anew whenever a backend comes or goes::

    backend_ids  10.96.0.1 . tcp . 80 . 2           : 0xe03a...     who is in slot 2: an id made of address and port
    backends     10.96.0.1 . tcp . 80 . 0xe03a...   : 10.244.1.7 . 8080
    affinity     10.244.0.9 . 10.96.0.1 . tcp . 80  : 0xe03a...       times out; written by rules

`lb_stuck<T>` looks the client up in `affinity`, sets its time to T again, and translates to the backend with that id.
Where the backend has left the frontend, its id leads nowhere as of the very transaction that removed it: the client is
forgotten and falls through to the ordinary choice, whose outcome `lb_choose<T>` keeps. So nothing is ever purged from
outside, no change costs more for the clients there are, and nothing can race. A map that is full keeps no more clients
until some time out; their connections are routed like any other's.

Two statements are not text. nft 1.0.6 cannot make a dynamic map's key longer than sixteen bytes (IPv6 has forty here),
nor `delete` one without data that means nothing, so `lb_keep<T>` and `lb_forget` are written as expressions. Both do
nothing while they are still empty: a client that is not kept is balanced.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Collection

from kernelet.ext.nft import Batch
from kernelet.ext.nft.expressions import FIRST_REGISTER, META_L4PROTO, META_PRIORITY, dynset, meta, payload

from .ruleset import IP, TABLE, Kind

_IDS = 0xC0000000
"""Ids begin here: beyond any slot, and beyond any number of a frontend, in whose place an id is looked for."""


def backend_ids(slots: Collection[bytes]) -> dict[bytes, bytes]:
    """Backend -> id. It follows from the backend alone, unless two of one frontend would have the same."""
    made: dict[bytes, bytes] = {}
    taken: set[int] = set()
    for data in sorted(set(slots)):
        number = zlib.crc32(data) | _IDS
        while number in taken:
            number = number + 1 | _IDS if number < 0xFFFFFFFF else _IDS
        taken.add(number)
        made[data] = number.to_bytes(4, sys.byteorder)
    return made


def chains(kind: Kind, seconds: int) -> str:
    """The chains that all frontends of a kind with this timeout share."""
    client = f"{kind.family.name} saddr . {kind.key}"
    keep = f"{kind.chain}_keep{seconds}"
    return (
        f"  chain {keep} {{\n  }}\n"
        f"  chain {kind.chain}_stuck{seconds} {{\n"
        f"    meta priority set {client} map @{kind.affinity} jump {keep}\n"
        f"    {kind.destination_nat}\n"
        f"    jump {kind.chain}_forget\n"
        "  }\n"
        f"  chain {kind.chain}_choose{seconds} {{\n"
        f"    meta priority set {kind.key} . meta priority map @{kind.ids} jump {keep}\n"
        f"    goto {kind.translate}\n"
        "  }\n"
    )


def forget_chain(kind: Kind) -> str:
    """The chain that deletes what is kept of a client, without its rule."""
    return f"  chain {kind.chain}_forget {{\n  }}\n"


def add_keep_rule(batch: Batch, kind: Kind, seconds: int) -> None:
    """The rule of the `keep` chain of this timeout, which is empty."""
    load, key, data = _registers(kind)
    rule = [*load, dynset("update", kind.affinity, key, data, seconds * 1000)]
    batch.add_rule(TABLE, kind.family.number, f"{kind.chain}_keep{seconds}", rule)


def add_forget_rule(batch: Batch, kind: Kind) -> None:
    """The rule of the `forget` chain, which is empty."""
    load, key, data = _registers(kind)
    rule = [*load, dynset("delete", kind.affinity, key, data)]
    batch.add_rule(TABLE, kind.family.number, f"{kind.chain}_forget", rule)


def _registers(kind: Kind) -> tuple[list[bytes], int, int]:
    """Loads a client's key and the id in the packet's priority; also the registers of both."""
    length = kind.family.length
    source = 12 if kind.family is IP else 8
    words = length // 4
    register = FIRST_REGISTER
    load = [payload("network", source, length, register)]
    register += words
    if kind.addressed:
        load.append(payload("network", source + length, length, register))
        register += words
    load += [meta(META_L4PROTO, register), payload("transport", 2, 2, register + 1)]
    load.append(meta(META_PRIORITY, register + 2))
    return load, FIRST_REGISTER, register + 2
