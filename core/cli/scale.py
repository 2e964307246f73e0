"""`kernelet scale`: the number of replicas."""

from __future__ import annotations

import click

from kernelet.core.api.errors import JSON

from .complete import complete_target
from .failures import CliError
from .files import file_options, load
from .modify import modify
from .settings import Settings, cluster_options, pass_settings
from .targets import Target, parse_named


@click.command("scale")
@click.argument("arguments", nargs=-1, metavar="TYPE NAME | TYPE/NAME...", shell_complete=complete_target)
@file_options()
@click.option("--replicas", type=click.IntRange(min=0), required=True, metavar="N", help="How many there shall be.")
@click.option("--current-replicas", type=click.IntRange(min=0), metavar="N", help="Only where so many are.")
@cluster_options()
@pass_settings
def command(
    settings: Settings,
    arguments: tuple[str, ...],
    files: tuple[str, ...],
    recursive: bool,
    replicas: int,
    current_replicas: int | None,
) -> None:
    """Set the number of replicas of deployments, replica sets and replication controllers."""
    if files:
        targets = [Target(manifest.kind, manifest.name) for manifest in load(files, recursive=recursive)]
    else:
        targets = parse_named(arguments)
    for target in targets:
        if not target.kind.has("scale"):
            raise click.UsageError(f"a {target.kind.singular} cannot be scaled; deployments and replica sets can")

    def change(target: Target, obj: JSON) -> JSON:
        current = obj["spec"].get("replicas", 1)
        if current_replicas is not None and current != current_replicas:
            raise CliError(f"{target}: has {current} replicas, not {current_replicas}; nothing was changed")
        return {"spec": {"replicas": replicas}}

    settings.run(lambda client: modify(client, settings, targets, "", change, "scaled"))
