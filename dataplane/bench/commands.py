"""`kernelet bench proxy` and `kernelet bench scale`, for the command line that gathers all benchmarks."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType

import click

from .report import Report

Finish = Callable[[Report, Path | None, Path | None], None]
Options = Callable[[Callable[..., None]], Callable[..., None]]


def _say(text: str) -> None:
    click.echo(text, err=True)


def _end_on_terminate(number: int, frame: FrameType | None) -> None:
    """As an exception, so that everything is removed."""
    sys.exit(128 + number)


def _measure(work: Callable[[], Report]) -> Report:
    """Runs a benchmark; Ctrl-C and SIGTERM end it tidily, and what it cannot do is told in one line."""
    from .topology import BenchError

    signal.signal(signal.SIGTERM, _end_on_terminate)
    try:
        return work()
    except BenchError as error:
        raise click.ClickException(str(error)) from error


def _names(text: str, default: Callable[[], list[str]]) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()] or default()


def add_to(group: click.Group, options: Options, finish: Finish) -> None:
    """Adds the commands; `options` is what every benchmark takes, `finish` writes its results."""

    @group.command("proxy")
    @click.option("--engines", default="", help="Which to compare, with commas between; all that there are.")
    @click.option("--rounds", type=click.IntRange(1, 100), help="Rounds of each measurement.")
    @click.option("--seconds", type=click.IntRange(1, 600), help="Seconds of each measurement.")
    @click.option(
        "--headline",
        "headline_file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Draw userspace against kernel alone into this PNG.",
    )
    @options
    def proxy(
        engines: str,
        rounds: int | None,
        seconds: int | None,
        headline_file: Path | None,
        quick: bool,
        json_file: Path | None,
        plot_file: Path | None,
    ) -> None:
        """Requests through the engines and haproxy, against the pods' own addresses."""
        from . import proxy as bench
        from .subjects import available

        extent = bench.QUICK if quick else bench.FULL
        extent = replace(extent, rounds=rounds or extent.rounds, seconds=seconds or extent.seconds)
        names = _names(engines, available)
        report = _measure(lambda: bench.bench_proxy(names, extent, _say))
        finish(report, json_file, plot_file)
        if headline_file is not None:
            bench.headline(report, headline_file)

    @group.command("scale")
    @click.option("--engines", default="", help="Which to measure, with commas between; all that there are.")
    @click.option("--sizes", default="", help="Numbers of services, with commas between.")
    @click.option("--rounds", type=click.IntRange(1, 100), help="Rounds of each measurement.")
    @options
    def scale(
        engines: str, sizes: str, rounds: int | None, quick: bool, json_file: Path | None, plot_file: Path | None
    ) -> None:
        """What 10 to 50,000 services of 10 endpoints cost an engine: starts, changes, connections, memory."""
        from . import scale as bench
        from .subjects import available

        extent = bench.QUICK if quick else bench.FULL
        extent = replace(extent, rounds=rounds or extent.rounds)
        if sizes:
            try:
                extent = replace(extent, sizes=tuple(sorted(int(size) for size in sizes.split(","))))
            except ValueError:
                raise click.BadParameter(
                    f"{sizes!r} is not numbers with commas between", param_hint="--sizes"
                ) from None
        names = _names(engines, lambda: [name for name in available() if name != "haproxy"])
        finish(_measure(lambda: bench.bench_scale(names, extent, _say)), json_file, plot_file)
