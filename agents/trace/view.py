"""What a trace shows: a line an event, tables of what has been seen so far, and the same as JSON."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from kernelet.core.cli.output import columns_of_text

from .tracer import DroppedPacket, Record

_STEPS = 16
"""Latency buckets a factor of two: a percentile is exact to 4.5 %, and a long trace needs no more memory."""
_BAR = 40


@dataclass
class Latencies:
    """Microseconds, counted in logarithmic buckets."""

    buckets: Counter[int] = field(default_factory=Counter)

    def add(self, microseconds: float) -> None:
        self.buckets[math.floor(math.log2(max(microseconds, 1.0)) * _STEPS)] += 1

    def percentile(self, share: float) -> float | None:
        """The upper edge of the bucket that this share of all values does not exceed; None without values."""
        rank = math.ceil(share * self.buckets.total())
        for bucket in sorted(self.buckets):
            rank -= self.buckets[bucket]
            if rank <= 0:
                return float(2 ** ((bucket + 1) / _STEPS))
        return None

    def powers(self) -> dict[int, int]:
        """How many lie in [2^n, 2^(n+1)), by n, without gaps."""
        found: Counter[int] = Counter()
        for bucket, count in self.buckets.items():
            found[bucket // _STEPS] += count
        return {power: found[power] for power in range(min(found), max(found) + 1)} if found else {}


@dataclass
class Tally:
    """One backend's connections."""

    connections: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    latencies: Latencies = field(default_factory=Latencies)


class Summary:
    """Everything seen so far."""

    def __init__(self) -> None:
        self.backends: dict[tuple[str, str], Tally] = {}
        """By service address and backend; "" for a connection without one."""
        self.drops: Counter[tuple[str, str, str]] = Counter()
        """By reason, function and node."""
        self.latencies = Latencies()
        self.events = 0

    def add(self, record: Record) -> None:
        self.events += 1
        if isinstance(record, DroppedPacket):
            self.drops[record.drop.reason, record.drop.function, record.node] += 1
            return
        key = (str(record.service), str(record.backend or ""))
        tally = self.backends.setdefault(key, Tally())
        if record.error:
            tally.failures[record.error] += 1
            return
        tally.connections += 1
        tally.latencies.add(record.microseconds)
        self.latencies.add(record.microseconds)

    def render(self, lost: int) -> str:
        """The tables as text."""
        parts = [self._backend_table()]
        if self.latencies.buckets:
            parts.append(histogram(self.latencies))
        if self.drops:
            rows = [(count, reason, where or "-", node or "-") for (reason, where, node), count in _most(self.drops)]
            parts.append(columns_of_text(("DROPS", "REASON", "FUNCTION", "NODE"), rows))
        if lost:
            parts.append(f"{lost} events came faster than they were shown, and are not counted above")
        return "\n\n".join(parts)

    def _backend_table(self) -> str:
        if not self.backends:
            return "no connections"
        rows = [
            (
                service,
                backend or "-",
                tally.connections,
                " ".join(f"{count} {name}" for name, count in _most(tally.failures)) or "0",
                _microseconds(tally.latencies.percentile(0.5)),
                _microseconds(tally.latencies.percentile(0.99)),
            )
            for (service, backend), tally in sorted(self.backends.items())
        ]
        return columns_of_text(("SERVICE", "BACKEND", "CONNECTIONS", "FAILURES", "P50", "P99"), rows)

    def to_json(self, lost: int) -> dict[str, Any]:
        """Latencies in microseconds; histogram bounds are inclusive below, exclusive above."""
        return {
            "type": "summary",
            "backends": [
                {
                    "service": service,
                    "backend": backend or None,
                    "connections": tally.connections,
                    "failures": dict(tally.failures),
                    "p50_us": _rounded(tally.latencies.percentile(0.5)),
                    "p99_us": _rounded(tally.latencies.percentile(0.99)),
                }
                for (service, backend), tally in sorted(self.backends.items())
            ],
            "latency_us": [[2**power, 2 ** (power + 1), count] for power, count in self.latencies.powers().items()],
            "drops": [
                {"reason": reason, "function": function, "node": node, "count": count}
                for (reason, function, node), count in _most(self.drops)
            ],
            "lost": lost,
        }


def histogram(latencies: Latencies) -> str:
    """One line a power of two, as bcc's and perf's histograms are drawn."""
    powers = latencies.powers()
    most = max(powers.values())
    rows = [
        (f"{2**power} -> {2 ** (power + 1) - 1}", count, "*" * math.ceil(_BAR * count / most))
        for power, count in powers.items()
    ]
    return columns_of_text(("MICROSECONDS", "COUNT", "CONNECT LATENCY"), rows)


def is_telling(record: Record) -> bool:
    """Worth a line: not a drop without a reason, as the last packets of ordinary connections are."""
    return not (isinstance(record, DroppedPacket) and record.drop.reason.endswith("_NOT_SPECIFIED"))


def line(record: Record) -> str:
    """`10.244.1.5:41234 -> 10.96.0.10:80 -> 10.244.2.7:8080  153 us  node-1`"""
    if isinstance(record, DroppedPacket):
        drop = record.drop
        where = f" in {drop.function}" if drop.function else ""
        return f"{drop.source} -> {drop.destination}  dropped: {drop.reason}{where}  {_where(record.node, drop.netns)}"
    outcome = (
        f"{record.microseconds:.0f} us" if not record.error else f"{record.error} after {record.microseconds:.0f} us"
    )
    ways = f"{record.client} -> {record.service} -> {record.backend or '-'}"
    return f"{ways}  {outcome}  {_where(record.node, record.netns)}"


def event_json(record: Record, now: float) -> dict[str, Any]:
    """`now`: seconds since the epoch."""
    if isinstance(record, DroppedPacket):
        drop = record.drop
        return {
            "type": "drop",
            "time": now,
            "protocol": drop.source.protocol,
            "source": str(drop.source),
            "destination": str(drop.destination),
            "reason": drop.reason,
            "function": drop.function or None,
            "node": record.node or None,
            "netns": drop.netns,
        }
    return {
        "type": "connection",
        "time": now,
        "client": str(record.client),
        "service": str(record.service),
        "backend": str(record.backend) if record.backend else None,
        "translated": record.translated,
        "latency_us": round(record.microseconds, 1),
        "error": record.error or None,
        "node": record.node or None,
        "netns": record.netns,
    }


def _where(node: str, netns: int) -> str:
    return node or f"netns {netns}"


def _most(counter: Counter[Any]) -> list[tuple[Any, int]]:
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))


def _microseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} us"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
