"""Plots of a report: a panel a case. Needs matplotlib, and is imported only where a plot is asked for.

A case whose results have sizes is drawn as lines over the size, others as bars, both with the spread over the rounds;
distributions are drawn as one panel of percentile curves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from .report import Curve, Report, Result

_ONE_COLUMN = 4
"""More panels than this are drawn in two columns."""
_DOTS_PER_INCH = 120
_KERNEL, _USERSPACE, _REFERENCE = "#2b6cb0", "#dd8a2e", "#9aa3ad"


def draw(report: Report, path: Path) -> None:
    """Every case that is a comparison, and all distributions; where there is but one subject, all cases."""
    colours = {name: f"C{index % 10}" for index, name in enumerate(dict.fromkeys(r.subject for r in report.results))}
    cases = dict.fromkeys((result.case, result.unit) for result in report.results)
    panels = [_by_subject(report.results, case, unit) for case, unit in cases]
    panels = [panel for panel in panels if len(panel) > 1] or panels
    count = len(panels) + bool(report.curves)
    columns = 1 if count <= _ONE_COLUMN else 2
    sized = any(result.size is not None for result in report.results)
    tallest = 7 if sized else max((len(panel) for panel in panels), default=1)
    rows = math.ceil(count / columns)
    height = 0.5 + rows * (0.8 + 0.3 * tallest)
    figure, axes = pyplot.subplots(rows, columns, figsize=(7 * columns, height), squeeze=False)
    places = iter(axes.flat)
    for panel in panels:
        first = panel[0]
        axis = next(places)
        axis.set_title(f"{first.case} ({first.unit})", fontsize=9, loc="left")
        if any(result.size is not None for result in panel):
            _lines(axis, panel, colours)
        else:
            _bars(axis, panel, [colours[result.subject] for result in panel])
    if report.curves:
        _curves(next(places), report.curves, colours)
    for axis in places:
        axis.set_visible(False)
    _save(figure, f"kernelet bench {report.bench}", path)


def headline(title: str, panels: Mapping[str, Sequence[Result]], userspace: Sequence[str], path: Path) -> None:
    """What a reader is to see first: a panel of bars for each title, side by side, userspace in another colour."""
    figure, axes = pyplot.subplots(1, len(panels), figsize=(10, 1.6 + 0.32 * max(map(len, panels.values()))))
    for axis, (name, results) in zip(axes, panels.items(), strict=True):
        colours = [
            _USERSPACE if r.subject in userspace else _REFERENCE if r.subject in ("bare", "direct") else _KERNEL
            for r in results
        ]
        axis.set_title(name, fontsize=10, loc="left")
        _bars(axis, results, colours)
    figure.legend(
        [mpl.patches.Patch(color=colour) for colour in (_REFERENCE, _KERNEL, _USERSPACE)],
        ["the pods' own addresses", "service address, handled in the kernel", "service address, through a process"],
        loc="lower center",
        ncols=3,
        fontsize=8,
        frameon=False,
    )
    _save(figure, title, path, below=0.08)


def _save(figure: Figure, title: str, path: Path, below: float = 0.0) -> None:
    figure.suptitle(title, fontsize=11, y=1 - 0.1 / figure.get_figheight(), va="top")
    figure.tight_layout(rect=(0, below, 1, 1 - 0.25 / figure.get_figheight()))
    figure.savefig(path, dpi=_DOTS_PER_INCH)
    pyplot.close(figure)


def _by_subject(results: Sequence[Result], case: str, unit: str) -> list[Result]:
    """One result a subject and size, the first where there are several references."""
    found: dict[tuple[str, int | None], Result] = {}
    for result in results:
        if (result.case, result.unit) == (case, unit):
            found.setdefault((result.subject, result.size), result)
    return list(found.values())


def _whiskers(results: Sequence[Result]) -> list[list[float]]:
    """How far the spread goes below and above the medians, which are rounded."""
    return [[max(0.0, r.value - r.spread[0]) for r in results], [max(0.0, r.spread[1] - r.value) for r in results]]


def _bars(axis: Axes, results: Sequence[Result], colours: Sequence[str]) -> None:
    values = [result.value for result in results]
    drawn = axis.barh([result.name for result in results], values, color=colours, height=0.7)
    axis.errorbar(values, range(len(values)), xerr=_whiskers(results), fmt="none", ecolor="#222222", capsize=2.5)
    most = max((result.spread[1] for result in results), default=0) or 1
    for result, bar in zip(results, drawn, strict=True):
        right = max(result.value, result.spread[1]) + most / 60
        axis.text(right, bar.get_y() + bar.get_height() / 2, _label(result), va="center", fontsize=8)
    axis.set_xlim(0, 1.5 * most)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.invert_yaxis()
    axis.tick_params(labelsize=8)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)


def _label(result: Result) -> str:
    value = f"{result.value:,.0f}" if result.value >= 1000 else f"{result.value:.3g}"
    return value if result.ratio is None else f"{value}  ({result.ratio:.2f} of {result.reference})"


def _lines(axis: Axes, results: Sequence[Result], colours: dict[str, str]) -> None:
    """Both axes logarithmic: sizes and what they cost go over decades."""
    for subject in dict.fromkeys(result.subject for result in results):
        points = sorted((r for r in results if r.subject == subject), key=_size)
        axis.errorbar(
            [_size(point) for point in points],
            [point.value for point in points],
            _whiskers(points),
            label=subject,
            color=colours[subject],
            marker="o",
            ms=4,
            capsize=2.5,
        )
    for size in {_size(result) for result in results}:
        _values(axis, size, [result for result in results if _size(result) == size], colours)
    axis.set_xscale("log")
    axis.set_yscale("log")
    low, high = (pick(result.value for result in results) or 1e-3 for pick in (min, max))
    axis.set_ylim(low / 3, high * 3)
    axis.xaxis.set_major_locator(FixedLocator(sorted({_size(result) for result in results})))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("services", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axis.grid(alpha=0.3)


def _size(result: Result) -> int:
    return result.size or 0


def _values(axis: Axes, size: int, results: Sequence[Result], colours: dict[str, str]) -> None:
    """The values at one size: the highest above its point, the lowest below, others at the right."""
    ordered = sorted(results, key=lambda result: result.value)
    for result in ordered:
        place, side = ((0, 6), "center") if result is ordered[-1] else ((5, -3), "left")
        if result is ordered[0] and len(ordered) > 1:
            place, side = (0, -12), "center"
        axis.annotate(
            f"{result.value:,.3g}" if result.value < 1000 else f"{result.value:,.0f}",
            (size, result.value),
            place,
            textcoords="offset points",
            ha=side,
            fontsize=7,
            color=colours[result.subject],
            bbox={"pad": 0.5, "color": "white", "alpha": 0.7},
        )


def _curves(axis: Axes, curves: dict[str, Curve], colours: dict[str, str]) -> None:
    """Each nine of the share takes as much room as the one before."""
    for name, curve in curves.items():
        nines = [-math.log10(1 - percent / 100) for percent, _ in curve]
        axis.plot(nines, [value for _, value in curve], label=name, color=colours.get(name), marker=".", ms=4)
    ticks = (0, 50, 90, 99, 99.9, 99.99)
    axis.set_xticks([-math.log10(1 - percent / 100) for percent in ticks], [f"{percent:g}" for percent in ticks])
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_title("latency at a constant rate, all rounds (us)", fontsize=9, loc="left")
    axis.set_xlabel("percent of the requests that take no longer", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8, loc="lower right")
    axis.grid(alpha=0.3)
