"""`kernelet label`: sets and removes labels."""

from __future__ import annotations

import click

from .complete import complete_target
from .modify import change_metadata, check_label_values, chosen_targets, modify, split_changes
from .settings import Settings, cluster_options, pass_settings


@click.command("label")
@click.argument(
    "arguments", nargs=-1, required=True, metavar="TYPE NAME... KEY=VALUE... KEY-...", shell_complete=complete_target
)
@click.option("--overwrite", is_flag=True, help="Change values that are there.")
@click.option("-l", "--selector", "labels", default="", metavar="LABELS", help="Those with labels.")
@click.option("--all", "every", is_flag=True, help="All of the type.")
@cluster_options(everywhere=True)
@pass_settings
def command(settings: Settings, arguments: tuple[str, ...], overwrite: bool, labels: str, every: bool) -> None:
    """Set labels (KEY=VALUE) and remove them (KEY-)."""
    names, changes = split_changes(arguments)
    check_label_values(changes)
    targets = chosen_targets(names, labels, every)
    change = change_metadata("labels", changes, overwrite)
    settings.run(lambda client: modify(client, settings, targets, labels, change, "labeled"))
