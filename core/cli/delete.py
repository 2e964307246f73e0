"""`kernelet delete`: objects by name, selector or file, and the wait until they are gone."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from kernelet.core.api.errors import JSON, ApiError, Expired, NotFound, ServiceUnavailable
from kernelet.core.api.kinds import Kind

from . import output as out
from .complete import complete_target
from .failures import CliError, explain, raise_all, reported
from .files import file_options, in_namespace, load
from .logs import duration
from .settings import Settings, cluster_options, pass_settings
from .targets import parse_targets, reference

if TYPE_CHECKING:
    from kernelet.core.client.raw import RawClient

_PROPAGATION = {"background": "Background", "foreground": "Foreground", "orphan": "Orphan"}
_RETRY_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Doomed:
    """One object to delete."""

    kind: Kind
    name: str
    namespace: str
    uid: str = ""

    def __str__(self) -> str:
        name = f"{self.kind.singular}.{self.kind.group}" if self.kind.group else self.kind.singular
        return f'{name} "{self.name}"'


@dataclass(frozen=True)
class How:
    wait: bool
    timeout: float
    grace_period: int | None
    force: bool
    cascade: str
    ignore_not_found: bool
    output: str


@click.command("delete")
@click.argument("targets", nargs=-1, metavar="TYPE [NAME]... | TYPE/NAME...", shell_complete=complete_target)
@file_options()
@click.option("-l", "--selector", "labels", default="", metavar="LABELS", help="Those with labels.")
@click.option("--field-selector", "fields", default="", metavar="FIELDS", help="Those with fields.")
@click.option("--all", "every", is_flag=True, help="All of the type in the namespace.")
@click.option("--wait/--no-wait", "wait", default=True, help="Return when the objects are gone (default).")
@click.option("--timeout", type=duration, default=0.0, metavar="DURATION", help="Longest wait; 0: none.")
@click.option("--grace-period", type=click.IntRange(min=0), default=None, metavar="SECONDS", help="Time to stop in.")
@click.option("--now", is_flag=True, help="One second to stop in.")
@click.option("--force", is_flag=True, help="Remove from the API at once, not waiting for the node.")
@click.option("--cascade", type=click.Choice([*_PROPAGATION]), default="background", help="What it owns.")
@click.option("--ignore-not-found", is_flag=True, help="What is not there is no error.")
@out.output_option("name")
@cluster_options(everywhere=True)
@pass_settings
def command(
    settings: Settings,
    targets: tuple[str, ...],
    files: tuple[str, ...],
    recursive: bool,
    labels: str,
    fields: str,
    every: bool,
    wait: bool,
    timeout: float,
    grace_period: int | None,
    now: bool,
    force: bool,
    cascade: str,
    ignore_not_found: bool,
    output: str | None,
) -> None:
    """Delete objects and wait until they are gone.

    \b
    kernelet delete pod web-1 web-2
    kernelet delete -f shop/
    kernelet delete deploy,svc -l app=web
    """
    if bool(targets) == bool(files):
        raise click.UsageError("say what to delete: either TYPE NAME, or -f FILE")
    if force:
        grace_period = 0
    elif now:
        grace_period = 1
    selected = bool(labels or fields or every)
    if files and selected:
        raise click.UsageError("files name their objects; leave out the selector")
    how = How(wait and not force, timeout, grace_period, force, _PROPAGATION[cascade], ignore_not_found, output or "")
    doomed = _of_files(settings, files, recursive) if files else []
    if targets:
        wanted = parse_targets(targets)
        if selected and any(target.name for target in wanted):
            raise click.UsageError("names and a selector exclude each other; leave out one of the two")
        if not selected and not all(target.name for target in wanted):
            raise click.UsageError("name the objects, select them by -l, or delete them all with --all")

    async def work(client: RawClient) -> None:
        found = doomed or await _select(client, settings, targets, labels, fields)
        if not found:
            click.echo("No resources found.", err=True)
        await _delete_all(client, found, how)

    settings.run(work)


def _of_files(settings: Settings, files: tuple[str, ...], recursive: bool) -> list[Doomed]:
    """Last first: a namespace stands before what is in it, and would take that away under the command's feet."""
    return [
        Doomed(manifest.kind, manifest.name, in_namespace(manifest, settings))
        for manifest in reversed(load(files, recursive=recursive))
    ]


async def _select(
    client: RawClient, settings: Settings, targets: tuple[str, ...], labels: str, fields: str
) -> list[Doomed]:
    found = []
    for target in parse_targets(targets):
        scope = settings.scope if target.kind.namespaced else ""
        if target.name:
            if target.kind.namespaced and not scope:
                raise CliError(f"{target}: an object is deleted by name within one namespace; leave out -A")
            found.append(Doomed(target.kind, target.name, scope))
            continue
        for item in (await client.list(target.kind, scope, labels=labels, fields=fields)).items:
            metadata = item["metadata"]
            found.append(Doomed(target.kind, metadata["name"], metadata.get("namespace", ""), metadata.get("uid", "")))
    return found


async def _delete_all(client: RawClient, doomed: list[Doomed], how: How) -> None:
    """Asks for every deletion before it waits for the first."""
    failures: list[CliError] = []
    waiting: list[tuple[Doomed, str]] = []
    for item in doomed:
        try:
            answer = await client.delete(
                item.kind,
                item.name,
                item.namespace,
                grace_period=how.grace_period,
                propagation=how.cascade,
                uid=item.uid,
            )
        except NotFound as error:
            if not how.ignore_not_found and not item.uid:
                failures.append(CliError(explain(error)))
            continue
        except ApiError as error:
            failures.append(CliError(explain(error)))
            continue
        place = f" from {item.namespace} namespace" if item.namespace else ""
        verb = "force deleted" if how.force else "deleted"
        click.echo(reference(item.kind, item.name) if how.output else f"{item} {verb}{place}")
        waiting.append((item, str((answer.get("metadata") or {}).get("uid") or item.uid)))
    if how.wait:
        with reported():
            await _wait_for(client, waiting, how.timeout)
    raise_all(failures)


async def _wait_for(client: RawClient, waiting: list[tuple[Doomed, str]], timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout or None):
            for item, uid in waiting:
                await _gone(client, item, uid)
    except TimeoutError:
        left = ", ".join(str(item) for item, _ in waiting)
        raise CliError(
            f"{left}: not gone after {timeout:g} s; finalizers or a node may hold it: `kernelet describe`"
        ) from None


async def _gone(client: RawClient, item: Doomed, uid: str) -> None:
    """Returns once the object of this uid is no more; rides out a server that restarts."""
    while True:
        try:
            current = await client.get(item.kind, item.name, item.namespace)
            if uid and current["metadata"].get("uid") != uid:
                return
            await _deleted_event(client, item, uid, current)
            return
        except NotFound:
            return
        except Expired:
            continue
        except ServiceUnavailable:
            await asyncio.sleep(_RETRY_SECONDS)


async def _deleted_event(client: RawClient, item: Doomed, uid: str, current: JSON) -> None:
    version = str(current["metadata"].get("resourceVersion", ""))
    fields = f"metadata.name={item.name}"
    async with aclosing(client.watch(item.kind, item.namespace, fields=fields, resource_version=version)) as events:
        async for event in events:
            if event.type == "DELETED" and event.object["metadata"].get("uid") in (uid, None):
                return
    raise ServiceUnavailable(f"{item}: the watch of its deletion ended")
