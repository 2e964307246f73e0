"""Results of a benchmark as a table, JSON and a plot."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


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
        """Horizontal bars with the spread as whiskers; one panel a unit. Raises ImportError without matplotlib."""
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot

        units = list(dict.fromkeys(result.unit for result in self.results))
        heights = [sum(1 for result in self.results if result.unit == unit) for unit in units]
        figure, axes = pyplot.subplots(
            len(units), 1, figsize=(9, 1.2 + 0.42 * sum(heights)), squeeze=False, height_ratios=heights
        )
        for unit, axis in zip(units, axes[:, 0], strict=True):
            chosen = [result for result in self.results if result.unit == unit]
            names = [f"{result.case}: {result.subject}" for result in chosen]
            values = [result.value for result in chosen]
            low = [result.value - result.spread[0] for result in chosen]
            high = [result.spread[1] - result.value for result in chosen]
            axis.barh(names, values, xerr=[low, high], color="#3a6ea5", ecolor="#222222", capsize=3)
            axis.invert_yaxis()
            axis.set_xlabel(unit)
            axis.grid(axis="x", alpha=0.3)
        figure.suptitle(f"kernelet bench {self.bench}")
        figure.tight_layout()
        figure.savefig(path, dpi=120)
        pyplot.close(figure)


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    return {
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
