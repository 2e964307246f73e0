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

_COLUMN = 4
"""More panels than this are drawn in two columns."""


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
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(part * len(ordered)) - 1))]


@dataclass(slots=True)
class Report:
    bench: str
    version: str
    results: list[Result] = field(default_factory=list)

    def table(self) -> str:
        rows = [("CASE", "SUBJECT", "MEDIAN", "SPREAD", "ROUNDS", "RATIO")]
        for result in self.results:
            spread = f"{result.spread[0]:g} - {result.spread[1]:g}"
            ratio = "" if result.ratio is None else f"{result.ratio:.3f} of {result.reference}"
            median = f"{result.value:g} {result.unit}"
            rows.append((result.case, result.subject, median, spread, str(result.rounds), ratio))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)

    def write_json(self, path: Path) -> None:
        data = {
            "bench": self.bench,
            "version": self.version,
            "machine": machine(),
            "results": [asdict(result) for result in self.results],
        }
        path.write_text(json.dumps(data, indent=2) + "\n")

    def plot(self, path: Path) -> None:
        """A panel a case: a bar a subject, with the spread as whiskers. Raises ImportError without matplotlib."""
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot

        cases = list(dict.fromkeys((result.case, result.unit) for result in self.results))
        panels = [_bars(self.results, case) for case in cases]
        columns = 1 if len(cases) <= _COLUMN else 2
        rows = math.ceil(len(cases) / columns)
        height = 0.6 + rows * (0.7 + 0.3 * max(len(bars) for bars in panels))
        figure, axes = pyplot.subplots(rows, columns, figsize=(9 * columns**0.6, height), squeeze=False)
        for axis in list(axes.flat)[len(cases) :]:
            axis.set_visible(False)
        subjects = list(dict.fromkeys(result.subject for result in self.results))
        colours = {subject: f"C{index % 10}" for index, subject in enumerate(subjects)}
        for (case, unit), axis, bars in zip(cases, axes.flat, panels, strict=False):
            values = [bar.value for bar in bars]
            spread = [[max(0.0, v - bar.spread[0]) for v, bar in zip(values, bars, strict=True)]]
            spread += [[max(0.0, bar.spread[1] - v) for v, bar in zip(values, bars, strict=True)]]
            drawn = axis.barh(
                [bar.subject for bar in bars],
                values,
                xerr=spread,
                color=[colours[bar.subject] for bar in bars],
                ecolor="#222222",
                capsize=2.5,
                height=0.7,
            )
            axis.bar_label(drawn, [_label(bar) for bar in bars], padding=6, fontsize=8)
            axis.set_xlim(0, 1.5 * max((bar.spread[1] for bar in bars), default=1) or 1)
            axis.invert_yaxis()
            axis.set_title(f"{case} ({unit})", fontsize=9, loc="left")
            axis.tick_params(labelsize=8)
            axis.grid(axis="x", alpha=0.3)
            axis.set_axisbelow(True)
        figure.suptitle(f"kernelet bench {self.bench}", fontsize=11)
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.1 / height))
        figure.savefig(path, dpi=120)
        pyplot.close(figure)


def _bars(results: Sequence[Result], case: tuple[str, str]) -> list[Result]:
    """One result a subject, the first where there are several references."""
    found: dict[str, Result] = {}
    for result in results:
        if (result.case, result.unit) == case:
            found.setdefault(result.subject, result)
    return list(found.values())


def _label(result: Result) -> str:
    value = f"{result.value:,.0f}" if result.value >= 1000 else f"{result.value:.3g}"
    return value if result.ratio is None else f"{value}  ({result.ratio:.2f} of {result.reference})"


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    return {
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
