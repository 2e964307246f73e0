"""Completion of kinds, names and namespaces. A cluster that does not answer at once completes nothing."""

from __future__ import annotations

import asyncio
import dataclasses

import click

from kernelet.core.api.errors import ApiError
from kernelet.core.api.kinds import KINDS, Kind

from .settings import Settings, settings_of

_PATIENCE = 2.0


def kinds(incomplete: str) -> list[str]:
    """What may be typed for a kind: plurals, and `all`."""
    plurals = sorted({kind.plural for kind in KINDS} | {"all"})
    done, comma, last = incomplete.rpartition(",")
    return [f"{done}{comma}{plural}" for plural in plurals if plural.startswith(last)]


def names(settings: Settings, kind: Kind, incomplete: str) -> list[str]:
    """Names of objects of a kind that begin so."""
    from kernelet.core.security.kubeconfig import KubeconfigError

    async def ask() -> list[str]:
        hasty = dataclasses.replace(settings, request_timeout=_PATIENCE)
        async with hasty.connect() as client:
            listing = await client.list(kind, settings.namespace if kind.namespaced else "")
            return [str(item["metadata"]["name"]) for item in listing.items]

    try:
        found = asyncio.run(ask())
    except (ApiError, KubeconfigError):
        return []
    return sorted(name for name in found if name.startswith(incomplete))


def namespaces(settings: Settings, incomplete: str) -> list[str]:
    return names(settings, KINDS.by_plural("", "v1", "namespaces"), incomplete)


def complete_target(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """TYPE, then NAME, or TYPE/NAME."""
    kind_text, slash, start = incomplete.partition("/")
    given = ctx.params.get(parameter.name or "") or ()
    try:
        if slash:
            kind = KINDS.resolve(kind_text)
            return [f"{kind_text}/{name}" for name in names(settings_of(ctx), kind, start)]
        if given:
            return names(settings_of(ctx), KINDS.resolve(given[0]), incomplete)
    except ApiError:
        return []
    return kinds(incomplete)


def complete_pod(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return names(settings_of(ctx), KINDS.by_plural("", "v1", "pods"), incomplete)
