"""`kernelet events`: what happened, oldest first."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

import click

from kernelet.core.api import table, times
from kernelet.core.api.errors import JSON
from kernelet.core.api.kinds import KINDS

from . import output as out
from .complete import complete_target
from .settings import Settings, cluster_options, pass_settings
from .targets import Target, parse_named

if TYPE_CHECKING:
    from kernelet.core.client.raw import RawClient

EVENT = KINDS.by_plural("", "v1", "events")
_HEADER = ["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"]
_WIDTHS = (9, 7, 20, 30, 0)


@click.command("events")
@click.option(
    "--for", "about", default="", metavar="TYPE/NAME", shell_complete=complete_target, help="About one object."
)
@click.option("--types", default="", metavar="TYPES", help="Normal, Warning, or both.")
@click.option("-w", "--watch", is_flag=True, help="Go on with what happens.")
@out.output_option("yaml", "json")
@cluster_options(everywhere=True)
@pass_settings
def command(settings: Settings, about: str, types: str, watch: bool, output: str | None) -> None:
    """Show what happened, oldest first."""
    target = parse_named([about])[0] if about else None
    kinds = [kind.strip().capitalize() for kind in types.split(",") if kind.strip()]
    settings.run(lambda client: _show(client, settings, target, kinds, watch, output or ""))


async def _show(
    client: RawClient, settings: Settings, target: Target | None, types: Sequence[str], watch: bool, output: str
) -> None:
    fields = about_fields(target) if target else ""
    listing = await client.list(EVENT, settings.scope, fields=fields)
    found = [event for event in by_time(listing.items) if not types or event.get("type") in types]
    if output:
        out.print_objects([{"apiVersion": "v1", "kind": "Event"} | event for event in found], output, single=False)
        return
    if not found and not watch:
        click.echo(f"No events found{f' in {settings.scope} namespace' if settings.scope else ''}.", err=True)
        return
    spaces = settings.all_namespaces
    click.echo(event_table(found, spaces))
    if not watch:
        return
    version = str(listing.revision)
    async with aclosing(client.watch(EVENT, settings.scope, fields=fields, resource_version=version)) as events:
        async for event in events:
            if event.type in ("ADDED", "MODIFIED") and (not types or event.object.get("type") in types):
                click.echo(out.align(row(event.object, spaces), [*([12] if spaces else []), *_WIDTHS]))


def about_fields(target: Target, uid: str = "") -> str:
    """The field selector of events about an object."""
    fields = f"involvedObject.kind={target.kind.kind},involvedObject.name={target.name}"
    return f"{fields},involvedObject.uid={uid}" if uid else fields


def by_time(events: Sequence[JSON]) -> list[JSON]:
    return sorted(events, key=lambda event: str(table.event_times(event)[1] or ""))


def row(event: JSON, with_namespace: bool = False) -> list[str]:
    first, last, count = table.event_times(event)
    now = times.now()
    seen = table.since(last, now)
    if count > 1:
        seen = f"{seen} (x{count} over {table.since(first, now)})"
    cells = [seen, event.get("type", ""), event.get("reason", ""), table.event_object(event), event.get("message", "")]
    space = [str(event["metadata"].get("namespace", ""))] if with_namespace else []
    return [*space, *(str(cell) for cell in cells)]


def event_table(events: Sequence[JSON], with_namespace: bool = False) -> str:
    header = [*(["NAMESPACE"] if with_namespace else []), *_HEADER]
    return out.columns_of_text(header, [row(event, with_namespace) for event in events])
