"""What a person means by `pods`, `pod web`, `deploy/web svc/web`, `pods,services` or `all`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import click

from kernelet.core.api.kinds import KINDS, Kind

_EXAMPLES = "write TYPE, TYPE NAME or TYPE/NAME, for instance `pods`, `pod web` or `deploy/web`"


@dataclass(frozen=True, slots=True)
class Target:
    """A kind, and one object of it, or all of them where `name` is ""."""

    kind: Kind
    name: str = ""

    def __str__(self) -> str:
        """`deployment.apps/web`, as kubectl prints it."""
        return reference(self.kind, self.name)


def reference(kind: Kind, name: str) -> str:
    """`pod/web`, `deployment.apps/web`."""
    return f"{kind.singular}.{kind.group}/{name}" if kind.group else f"{kind.singular}/{name}"


def parse_targets(arguments: Sequence[str]) -> list[Target]:
    """In the order given. Raises click.UsageError for a wrong form, NotFound for a kind there is none of."""
    if not arguments:
        raise click.UsageError(f"name what is meant: {_EXAMPLES}; `kernelet api-resources` lists the types")
    if any("/" in argument for argument in arguments):
        return [_slashed(argument) for argument in arguments]
    kinds, names = _kinds(arguments[0]), arguments[1:]
    if names and len(kinds) > 1:
        raise click.UsageError(f"{arguments[0]} means several types, which cannot share names: {_EXAMPLES}")
    return [Target(kind, name) for kind in kinds for name in names or [""]]


def parse_named(arguments: Sequence[str]) -> list[Target]:
    """As `parse_targets`, where names must be given."""
    targets = parse_targets(arguments)
    for target in targets:
        if not target.name:
            raise click.UsageError(f"name the {target.kind.singular}: {_EXAMPLES}")
    return targets


def _slashed(argument: str) -> Target:
    kind, slash, name = argument.partition("/")
    if not slash or not kind or not name or "/" in name:
        raise click.UsageError(f"{argument!r} is not TYPE/NAME; where one argument has a slash, all must")
    return Target(KINDS.resolve(kind), name)


def _kinds(text: str) -> list[Kind]:
    found: list[Kind] = []
    for part in filter(None, text.split(",")):
        named = [kind for kind in KINDS if part in kind.categories] or [KINDS.resolve(part)]
        found += [kind for kind in named if kind not in found]
    if not found:
        raise click.UsageError(f"{text!r} names no type: {_EXAMPLES}")
    return found
