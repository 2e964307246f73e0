"""A rule's expressions as the kernel takes them, for the few rules that libnftables cannot make from text.

Layouts: linux/netfilter/nf_tables.h. Registers are the kernel's 32-bit ones, `FIRST_REGISTER` and up, sixteen in all; a
value of several words takes as many registers in a row. nft 1.0.6 gives a dynamic map's key sixteen bytes whatever its
length, and ends itself (an assertion) where that does not do: so keys with two IPv6 addresses need this.
"""

from __future__ import annotations

import struct
from typing import Final, Literal

FIRST_REGISTER: Final = 8
META_PRIORITY, META_L4PROTO = 2, 16
"""What `meta` loads."""
_NETWORK, _TRANSPORT = 1, 2
_OPERATIONS: Final = {"add": 0, "update": 1, "delete": 2}
_NESTED = 0x8000


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) & 3)


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack(">I", value))


def _expression(name: str, content: bytes) -> bytes:
    return _attribute(1, name.encode() + b"\0") + _attribute(2 | _NESTED, content)


def payload(base: Literal["network", "transport"], offset: int, length: int, register: int) -> bytes:
    """Loads bytes of a header."""
    header = _NETWORK if base == "network" else _TRANSPORT
    content = _number(1, register) + _number(2, header) + _number(3, offset) + _number(4, length)
    return _expression("payload", content)


def meta(key: int, register: int) -> bytes:
    """Loads a property of the packet."""
    return _expression("meta", _number(1, register) + _number(2, key))


def dynset(
    operation: Literal["add", "update", "delete"], name: str, key: int, data: int, milliseconds: int = 0
) -> bytes:
    """Adds an element to the map, or refreshes it there, or deletes it; `key` and `data` are registers.

    A key that is there keeps its data. A full map ends the rule.
    """
    content = _attribute(1, name.encode() + b"\0") + _number(3, _OPERATIONS[operation])
    content += _number(4, key) + _number(5, data)
    if milliseconds:
        content += _attribute(6, struct.pack(">Q", milliseconds))
    return _expression("dynset", content)
