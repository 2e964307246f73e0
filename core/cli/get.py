"""`kernelet get`: objects as tables, YAML, JSON or names, once or as they change."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from kernelet.core.api.errors import JSON, ApiError, Expired, ServiceUnavailable
from kernelet.core.api.kinds import Kind

from . import output as out
from .complete import complete_target
from .settings import Settings, cluster_options, pass_settings
from .targets import Target, parse_targets, reference

if TYPE_CHECKING:
    from kernelet.core.client.raw import RawClient

_RECONNECT_SECONDS = 0.5


@dataclass(frozen=True)
class Query:
    """What to show and how, besides the targets."""

    output: str
    labels: str
    fields: str
    show_labels: bool
    label_columns: tuple[str, ...]
    sort_by: str
    headers: bool


@click.command("get")
@click.argument("targets", nargs=-1, metavar="TYPE[,TYPE] [NAME]... | TYPE/NAME...", shell_complete=complete_target)
@out.output_option()
@click.option(
    "-l", "--selector", "labels", default="", metavar="LABELS", help="Only those with labels: a=b,c!=d,e in (f)."
)
@click.option(
    "--field-selector", "fields", default="", metavar="FIELDS", help="Only those with fields: status.phase=Running."
)
@click.option("-w", "--watch", is_flag=True, help="Go on showing changes.")
@click.option("--watch-only", is_flag=True, help="Show changes only.")
@click.option("--show-labels", is_flag=True, help="A column with all labels.")
@click.option("-L", "--label-columns", multiple=True, metavar="LABEL", help="A column for a label.")
@click.option("--sort-by", default="", metavar="PATH", help="For instance .metadata.creationTimestamp.")
@click.option("--no-headers", is_flag=True, help="No header line.")
@click.option("--ignore-not-found", is_flag=True, help="What is not there is no error.")
@cluster_options(everywhere=True)
@pass_settings
def command(
    settings: Settings,
    targets: tuple[str, ...],
    output: str | None,
    labels: str,
    fields: str,
    watch: bool,
    watch_only: bool,
    show_labels: bool,
    label_columns: tuple[str, ...],
    sort_by: str,
    no_headers: bool,
    ignore_not_found: bool,
) -> None:
    """Show objects as a table, or as YAML or JSON.

    \b
    kernelet get pods -A
    kernelet get deploy,svc -l app=web -o wide
    kernelet get pod/web -o yaml
    kernelet get nodes -w
    """
    wanted = parse_targets(targets)
    query = Query(output or "", labels, fields, show_labels, label_columns, sort_by, not no_headers)
    if any(target.name for target in wanted):
        if labels or fields:
            raise click.UsageError("a selector cannot be combined with names; leave out one of the two")
        if settings.all_namespaces:
            raise click.UsageError("an object is found by name within one namespace; leave out -A")
    if watch or watch_only:
        if len(wanted) != 1:
            raise click.UsageError("-w watches one type, or one object of it")
        settings.run(lambda client: _watch(client, settings, wanted[0], query, quiet_start=watch_only))
    else:
        settings.run(lambda client: _show(client, settings, wanted, query, ignore_not_found))


async def _show(
    client: RawClient, settings: Settings, targets: Sequence[Target], query: Query, ignore_not_found: bool
) -> None:
    """Prints what there is; what is missing becomes the error, after the rest was printed."""
    answers = await asyncio.gather(
        *(_fetch(client, settings, target, query) for target in targets), return_exceptions=True
    )
    found: dict[str, tuple[Kind, list[JSON]]] = {}
    failures: list[BaseException] = []
    for target, answer in zip(targets, answers, strict=True):
        if isinstance(answer, BaseException):
            if not (ignore_not_found and isinstance(answer, ApiError) and answer.code == 404):
                failures.append(answer)
        else:
            found.setdefault(target.kind.resource_name, (target.kind, []))[1].extend(answer)
    groups = [(kind, _sorted(objects, query.sort_by)) for kind, objects in found.values()]
    named = bool(targets and targets[0].name)
    if any(objects for _, objects in groups) or (query.output in ("yaml", "json") and not failures):
        _print(groups, settings, query, single=named and len(targets) == 1)
    elif not failures and not (ignore_not_found and named):
        place = f" in {settings.scope} namespace" if settings.scope and targets[0].kind.namespaced else ""
        click.echo(f"No resources found{place}.", err=True)
    if failures:
        raise failures[0]


async def _fetch(client: RawClient, settings: Settings, target: Target, query: Query) -> list[JSON]:
    if target.name:
        return [await client.get(target.kind, target.name, _scope(settings, target.kind))]
    listing = await client.list(target.kind, _scope(settings, target.kind), labels=query.labels, fields=query.fields)
    return [_typed(target.kind, item) for item in listing.items]


def _scope(settings: Settings, kind: Kind) -> str:
    return settings.scope if kind.namespaced else ""


def _typed(kind: Kind, obj: JSON) -> JSON:
    """Items of a list may leave out what they are."""
    return {"apiVersion": kind.api_version, "kind": kind.kind} | obj


def _print(groups: list[tuple[Kind, list[JSON]]], settings: Settings, query: Query, *, single: bool) -> None:
    if query.output in ("yaml", "json"):
        out.print_objects([obj for _, objects in groups for obj in objects], query.output, single=single)
        return
    shown = [(kind, objects) for kind, objects in groups if objects]
    if query.output == "name":
        for kind, objects in shown:
            for obj in objects:
                click.echo(reference(kind, obj["metadata"]["name"]))
        return
    texts = [
        _view(kind, settings, query, with_kind=len(groups) > 1).render(objects, header=query.headers)
        for kind, objects in shown
    ]
    click.echo("\n\n".join(texts))


def _view(kind: Kind, settings: Settings, query: Query, *, with_kind: bool = False) -> out.TableView:
    spaces = settings.all_namespaces and kind.namespaced
    return out.TableView(kind, query.output == "wide", spaces, with_kind, query.show_labels, query.label_columns)


def _sorted(objects: list[JSON], path: str) -> list[JSON]:
    if not path:
        return objects

    def key(obj: JSON) -> tuple[int, float, str]:
        value: Any = obj
        for part in path.strip("{}").strip(".").split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, (int, float)):
            return 0, value, ""
        return (2, 0, "") if value is None else (1, 0, str(value))

    return sorted(objects, key=key)


async def _watch(client: RawClient, settings: Settings, target: Target, query: Query, *, quiet_start: bool) -> None:
    """Shows what there is, then every change; a lost connection or an expired version is taken up where it was left."""
    kind, scope = target.kind, _scope(settings, target.kind)
    fields = f"metadata.name={target.name}" if target.name else query.fields
    printer = _ChangePrinter(_view(kind, settings, query), query)
    listing = await client.list(kind, scope, labels=query.labels, fields=fields)
    if target.name and not listing.items:
        await client.get(kind, target.name, scope)
    if not quiet_start:
        printer.show([_typed(kind, item) for item in listing.items])
    revision, lost = listing.revision, False
    while True:
        try:
            stream = client.watch(
                kind, scope, labels=query.labels, fields=fields, resource_version=str(revision), bookmarks=True
            )
            async with aclosing(stream) as events:
                async for event in events:
                    revision, lost = event.revision or revision, False
                    if event.type != "BOOKMARK":
                        printer.show([_typed(kind, event.object)])
        except Expired:
            revision = (await client.list(kind, scope, labels=query.labels, fields=fields)).revision
        except ServiceUnavailable as error:
            if not lost:
                click.echo(f"{error.message}; trying again", err=True)
            lost = True
            await asyncio.sleep(_RECONNECT_SECONDS)


class _ChangePrinter:
    """Prints objects as they come, the header once."""

    def __init__(self, view: out.TableView, query: Query) -> None:
        self._view = view
        self._query = query
        self._header = query.headers

    def show(self, objects: list[JSON]) -> None:
        if not objects:
            return
        if self._query.output in ("yaml", "json"):
            for obj in objects:
                if self._query.output == "yaml":
                    click.echo("---")
                out.print_objects([obj], self._query.output, single=True)
        elif self._query.output == "name":
            for obj in objects:
                click.echo(reference(self._view.kind, obj["metadata"]["name"]))
        else:
            click.echo(self._view.render(objects, header=self._header))
            self._header = False
