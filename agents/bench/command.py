"""`kernelet bench NAME`: benchmarks, each with a table, JSON and a plot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kernelet.dataplane.bench.commands import add_to

if TYPE_CHECKING:
    from kernelet.dataplane.bench import Report


def options(function: Callable[..., None]) -> Callable[..., None]:
    """What every benchmark takes."""
    file = click.Path(dir_okay=False, path_type=Path)
    function = click.option("--plot", "plot_file", type=file, help="Draw the results into this PNG.")(function)
    function = click.option("--json", "json_file", type=file, help="Write the results as JSON.")(function)
    return click.option("--quick", is_flag=True, help="A smoke check: few rounds, under a minute.")(function)


def finish(report: Report, json_file: Path | None, plot_file: Path | None) -> None:
    """Prints the table and writes what was asked for."""
    click.echo(report.table())
    if json_file is not None:
        report.write_json(json_file)
    if plot_file is not None:
        report.plot(plot_file)


@click.group("bench")
def command() -> None:
    """Benchmarks: each prints a table, and writes JSON and a plot where asked."""


@command.command("start")
@options
def start(quick: bool, json_file: Path | None, plot_file: Path | None) -> None:
    """From nothing to a Ready node, and from a created pod to a running one, by phase."""
    from kernelet.agents.bench.start import bench_start
    from kernelet.agents.cluster.command import need_root, run, say

    need_root("bench start")
    rounds, pods = (1, 5) if quick else (7, 20)
    say(f"{rounds} cold starts with {pods} pods each, about {rounds * 12} seconds")
    finish(run(bench_start(rounds, pods, say)), json_file, plot_file)


add_to(command, options, finish)
