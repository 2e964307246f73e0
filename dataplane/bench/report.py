"""Results of a benchmark as a table, JSON and a plot."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

Curve = list[tuple[float, float]]
"""(share of the requests in percent, what none of them exceeds), rising."""
CURVE_PERCENTILES = (0, 10, 25, 50, 75, 90, 95, 98, 99, 99.5, 99.8, 99.9, 99.95, 99.99)


@dataclass(frozen=True, slots=True)
class Result:
    """One case: the median over rounds and its spread, and the same of what it is compared with."""

    case: str
    subject: str
    value: float
    unit: str
    spread: tuple[float, float]
    """Lowest and highest of the rounds."""
    rounds: int
    reference: str | None = None
    reference_value: float | None = None
    ratio: float | None = None
    size: int | None = None
    """The number of services it was measured with, where that is what a benchmark varies."""

    @property
    def name(self) -> str:
        return self.subject if self.size is None else f"{self.subject}, {self.size:,} services"

    @classmethod
    def of(cls, case: str, subject: str, samples: Sequence[float], unit: str) -> Result:
        """A case without a reference. Raises statistics.StatisticsError for no samples."""
        spread = (round(min(samples), 4), round(max(samples), 4))
        return cls(case, subject, round(statistics.median(samples), 4), unit, spread, len(samples))

    @classmethod
    def versus(
        cls, case: str, subject: str, samples: Sequence[float], unit: str, reference: str, references: Sequence[float]
    ) -> Result:
        """A case with a reference. The ratio is the median of the rounds' own ratios where both have the same rounds.

        Raises statistics.StatisticsError for no samples.
        """
        base = statistics.median(references)
        if len(samples) == len(references):
            ratio = statistics.median(value / other for value, other in zip(samples, references, strict=True))
        else:
            ratio = statistics.median(samples) / base
        alone = cls.of(case, subject, samples, unit)
        return replace(alone, reference=reference, reference_value=round(base, 4), ratio=round(ratio, 4))


def quantile(samples: Sequence[float], part: float) -> float:
    """The smallest sample that at least `part` (0..1) of them do not exceed. Raises IndexError for no samples."""
    return sorted(samples)[_rank(len(samples), part)]


def _rank(count: int, part: float) -> int:
    return min(count - 1, max(0, math.ceil(part * count) - 1))


def curve(ordered: Sequence[float]) -> Curve:
    """The distribution of samples that are sorted already. Raises IndexError for no samples."""
    return [(percent, ordered[_rank(len(ordered), percent / 100)]) for percent in CURVE_PERCENTILES]


@dataclass(slots=True)
class Report:
    bench: str
    version: str
    results: list[Result] = field(default_factory=list)
    curves: dict[str, Curve] = field(default_factory=dict)
    """Latency in microseconds by subject."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the figures must know besides them: what could not be measured, and why."""

    def table(self) -> str:
        rows = [("CASE", "SUBJECT", "MEDIAN", "SPREAD", "ROUNDS", "RATIO")]
        for result in self.results:
            spread = f"{result.spread[0]:g} - {result.spread[1]:g}"
            ratio = "" if result.ratio is None else f"{result.ratio:.3f} of {result.reference}"
            median = f"{result.value:g} {result.unit}"
            rows.append((result.case, result.name, median, spread, str(result.rounds), ratio))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join([*(line.rstrip() for line in lines), *(f"Note: {note}" for note in self.notes)])

    def write_json(self, path: Path) -> None:
        data = {
            "bench": self.bench,
            "version": self.version,
            "machine": machine(),
            "results": [asdict(result) for result in self.results],
            "curves": self.curves,
            "notes": self.notes,
        }
        path.write_text(json.dumps(data, indent=2) + "\n")

    def plot(self, path: Path) -> None:
        """All cases as a PNG (plots.py). Raises ImportError without matplotlib."""
        from . import plots

        plots.draw(self, path)


def minutes(seconds: float) -> str:
    """A duration to be announced."""
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    return {
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
