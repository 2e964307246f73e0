"""Quantities (`100m`, `1.5`, `64Mi`, `1e3`) as exact numbers, and the quality-of-service class they give a pod.

Source: Kubernetes' apimachinery resource.Quantity. Numbers are exact fractions, so that 0.1 is 0.1.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from .errors import JSON

_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_DECIMAL = {"n": -3, "u": -2, "m": -1, "": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}
_FORM = re.compile(r"([+-]?)(\d+\.?\d*|\.\d+)(?:([KMGTPE]i)|[eE]([+-]?\d+)|([numkMGTPE]?))", re.ASCII)
_MAX_EXPONENT = 30
_MAX_LENGTH = 64


@lru_cache(maxsize=4096)
def parse_quantity(text: str) -> Fraction:
    """The exact value of a quantity. Raises ValueError naming the text and the forms allowed."""
    match = _FORM.fullmatch(text) if len(text) <= _MAX_LENGTH else None
    if match is None:
        raise ValueError(f"{text[:_MAX_LENGTH]!r} is not a quantity; write a number such as 0.5, 100m, 64Mi or 1e3")
    sign, digits, binary, exponent, suffix = match.groups()
    number = Fraction(digits)
    if binary:
        number *= 1024 ** _BINARY[binary]
    elif exponent is not None:
        power = int(exponent)
        if abs(power) > _MAX_EXPONENT:
            raise ValueError(f"{text!r} is out of range; the exponent of a quantity is at most {_MAX_EXPONENT}")
        number *= Fraction(10) ** power
    else:
        number *= Fraction(1000) ** _DECIMAL[suffix]
    return -number if sign == "-" else number


def cpu_millis(text: str) -> int:
    """Thousandths of a core, rounded up: `0.5` -> 500, `1m` -> 1."""
    return math.ceil(parse_quantity(text) * 1000)


def bytes_of(text: str) -> int:
    """Bytes (or any whole amount), rounded up: `64Mi` -> 67108864."""
    return math.ceil(parse_quantity(text))


def canonical(value: str | int | float) -> str:
    """The form Kubernetes stores: `0.5` -> `500m`, `1000m` -> `1`, `1024Mi` -> `1Gi`, 2 -> `2`. Raises ValueError."""
    return _canonical(str(value))


@lru_cache(maxsize=4096)
def _canonical(text: str) -> str:
    number = parse_quantity(text)
    if not number:
        return "0"
    match = _FORM.fullmatch(text)
    if match is not None and match[3] and number.denominator == 1:
        for suffix, power in reversed(_BINARY.items()):
            if number % 1024**power == 0:
                return f"{number // 1024**power}{suffix}"
        return str(number)
    rounded = Fraction(math.ceil(number * 10**9), 10**9)
    exponent = match is not None and match[4] is not None
    for suffix, power in reversed(_DECIMAL.items()):
        unit = Fraction(1000) ** power
        if (rounded / unit).denominator == 1:
            count = (rounded / unit).numerator
            if not exponent:
                return f"{count}{suffix}"
            return f"{count}e{3 * power}" if power else str(count)
    return text


def qos_class(spec: JSON) -> str:
    """`Guaranteed`, `Burstable` or `BestEffort` of a pod's spec with defaults applied."""
    requested, guaranteed = False, True
    for container in [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]:
        resources = container.get("resources") or {}
        limits, requests = _compute(resources.get("limits")), _compute(resources.get("requests"))
        requested = requested or bool(limits or requests)
        guaranteed = guaranteed and len(limits) == 2 and requests in ({}, limits)
    if not requested:
        return "BestEffort"
    return "Guaranteed" if guaranteed else "Burstable"


def _compute(amounts: Any) -> dict[str, Fraction]:
    parsed = {name: parse_quantity(str(amounts[name])) for name in ("cpu", "memory") if name in (amounts or {})}
    return {name: amount for name, amount in parsed.items() if amount}
