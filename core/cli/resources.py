"""`kernelet api-resources`: the kinds of objects."""

from __future__ import annotations

import click

from kernelet.core.api.kinds import KINDS

from . import output as out
from .settings import cluster_options


@click.command("api-resources")
@out.output_option("name", "wide")
@click.option("--namespaced", type=bool, default=None, help="Only those of namespaces (true), or of the cluster.")
@click.option("--no-headers", is_flag=True, help="No header line.")
@cluster_options()
def command(output: str | None, namespaced: bool | None, no_headers: bool) -> None:
    """List the kinds of objects, with the names they go by."""
    shown = [kind for kind in KINDS if namespaced is None or kind.namespaced is namespaced]
    shown.sort(key=lambda kind: (kind.group, kind.plural))
    if output == "name":
        click.echo("\n".join(kind.resource_name for kind in shown))
        return
    header = ["NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND"]
    rows = [
        [kind.plural, ",".join(kind.short_names), kind.api_version, str(kind.namespaced).lower(), kind.kind]
        for kind in shown
    ]
    if output == "wide":
        header += ["SUBRESOURCES", "CATEGORIES"]
        rows = [
            [*row, ",".join(kind.subresources), ",".join(kind.categories)]
            for row, kind in zip(rows, shown, strict=True)
        ]
    text = out.columns_of_text(header, rows)
    click.echo(text.partition("\n")[2] if no_headers else text)
