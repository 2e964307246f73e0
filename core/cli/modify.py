"""Changing one thing of many objects: what `scale`, `label` and `annotate` have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from kernelet.core.api.errors import JSON, ApiError
from kernelet.core.api.names import label_value_problem, qualified_name_problem

from .failures import CliError, explain, raise_all
from .settings import Settings
from .targets import Target, parse_targets

if TYPE_CHECKING:
    from kernelet.core.client.raw import RawClient

USAGE = "TYPE NAME... KEY=VALUE... KEY-..."
Change = Callable[[Target, JSON], JSON | None]
"""The merge patch for an object, or None where nothing is to change; raises CliError to refuse."""


async def modify(
    client: RawClient, settings: Settings, targets: Sequence[Target], labels: str, change: Change, done: str
) -> None:
    """Patches every object meant and says so; those refused become errors after the rest is done."""
    failures: list[CliError] = []
    for target in targets:
        namespace = settings.scope if target.kind.namespaced else ""
        try:
            if target.name:
                objects = [await client.get(target.kind, target.name, namespace)]
            else:
                objects = (await client.list(target.kind, namespace, labels=labels)).items
            for obj in objects:
                await _patch(client, target, obj, change, done)
        except ApiError as error:
            failures.append(CliError(explain(error)))
        except CliError as error:
            failures.append(error)
    raise_all(failures)


async def _patch(client: RawClient, target: Target, obj: JSON, change: Change, done: str) -> None:
    metadata = obj["metadata"]
    named = Target(target.kind, metadata["name"])
    patch = change(named, obj)
    if patch is None:
        click.echo(f"{named} not {done}")
        return
    await client.patch(target.kind, metadata["name"], patch, metadata.get("namespace", ""))
    click.echo(f"{named} {done}")


def split_changes(arguments: Sequence[str]) -> tuple[list[str], dict[str, str | None]]:
    """`pod web a=b c-` -> ([pod, web], {a: b, c: None}). Raises click.UsageError."""
    targets: list[str] = []
    changes: dict[str, str | None] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals:
            changes[key] = value
        elif argument.endswith("-") and targets:
            changes[argument[:-1]] = None
        else:
            targets.append(argument)
    if not changes:
        raise click.UsageError("say what to set: KEY=VALUE, or KEY- to remove")
    for key in changes:
        if problem := qualified_name_problem(key):
            raise click.UsageError(f"{key!r}: {problem}")
    return targets, changes


def change_metadata(field: str, changes: dict[str, str | None], overwrite: bool) -> Change:
    """The change of labels or annotations; a value that differs is refused without `overwrite`."""

    def change(target: Target, obj: JSON) -> JSON | None:
        current = obj["metadata"].get(field) or {}
        needed = {key: value for key, value in changes.items() if current.get(key) != value}
        if not overwrite:
            for key, value in needed.items():
                if value is not None and key in current:
                    raise CliError(
                        f"{target}: {field[:-1]} {key} is {current[key]!r} already; change it with --overwrite"
                    )
        return {"metadata": {field: needed}} if needed else None

    return change


def chosen_targets(arguments: Sequence[str], labels: str, every: bool) -> list[Target]:
    """What names, a selector or --all mean. Raises click.UsageError where nothing was meant."""
    targets = parse_targets(arguments)
    if any(not target.name for target in targets) and not labels and not every:
        raise click.UsageError("name the objects, select them by -l, or take all of the type with --all")
    return targets


def check_label_values(changes: dict[str, str | None]) -> None:
    for key, value in changes.items():
        if value and (problem := label_value_problem(value)):
            raise click.UsageError(f"{key}={value}: {problem}")
