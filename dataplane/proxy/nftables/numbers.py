"""The number that a frontend has in its map: how many slots, and what comes before the choice among them.

Thirty-two bits: the seconds that a client stays with its backend (session affinity; 0: no affinity), one bit for a
frontend that only some sources may use, and the count. Each number has a chain of its own, which does just that.
"""

from __future__ import annotations

import sys
from typing import Final

MOST_SLOTS: Final = (1 << 14) - 1
MOST_SECONDS: Final = 86400
"""Kubernetes' own limit of timeoutSeconds."""
_GUARDED, _SECONDS = 1 << 14, 15

NONE, DROP = (number.to_bytes(4, sys.byteorder) for number in (0, 0xFFFFFFFF))
"""In place of a number: refuse, and drop."""


def encode(slots: int, seconds: int = 0, *, guarded: bool = False) -> int:
    return slots | guarded << 14 | min(seconds, MOST_SECONDS) << _SECONDS


def slots_of(number: int) -> int:
    return number & MOST_SLOTS


def seconds_of(number: int) -> int:
    return number >> _SECONDS


def guarded(number: int) -> bool:
    return bool(number & _GUARDED)


def chain_suffix(number: int) -> str:
    """`3`, with affinity `3t10800`, and `g` at the end where the source is looked at."""
    seconds = seconds_of(number)
    return f"{slots_of(number)}{f't{seconds}' if seconds else ''}{'g' if guarded(number) else ''}"
