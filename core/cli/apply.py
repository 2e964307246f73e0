"""`kernelet apply`: three-way merge of what files say, what they said last time, and what is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from kernelet.core.api import codec
from kernelet.core.api.errors import JSON, NotFound
from kernelet.core.api.patch import STRATEGIC_MERGE_PATCH
from kernelet.core.api.threeway import LAST_APPLIED, three_way_patch

from . import output as out
from .failures import CliError, raise_all, reported
from .files import Manifest, file_options, in_namespace, load
from .settings import Settings, cluster_options, pass_settings
from .targets import reference

if TYPE_CHECKING:
    from kernelet.core.client.raw import RawClient

MANAGER = "kernelet-apply"


@click.command("apply")
@file_options(required=True)
@click.option("--dry-run", type=click.Choice(["none", "client", "server"]), default="none", help="Change nothing.")
@click.option("--validate", type=click.Choice(["strict", "warn", "ignore"]), default="strict", help="Unknown fields.")
@out.output_option("yaml", "json", "name")
@cluster_options()
@pass_settings
def command(
    settings: Settings, files: tuple[str, ...], recursive: bool, dry_run: str, validate: str, output: str | None
) -> None:
    """Make the cluster hold what files say.

    Fields a file names are set, fields it named at the last apply and names no longer are removed, all else stays.
    Objects are handled in the order of the files; one that is refused does not keep the others back.
    """
    manifests = load(files, recursive=recursive)
    settings.run(lambda client: _apply_all(client, settings, manifests, dry_run, validate.capitalize(), output or ""))


async def _apply_all(
    client: RawClient, settings: Settings, manifests: list[Manifest], dry_run: str, validation: str, output: str
) -> None:
    failures: list[CliError] = []
    applied: list[JSON] = []
    for manifest in manifests:
        try:
            with reported(manifest.source):
                obj, verb = await _apply(client, manifest, in_namespace(manifest, settings), dry_run, validation)
        except CliError as error:
            failures.append(error)
            continue
        applied.append(obj)
        if output in ("", "name"):
            note = "" if dry_run == "none" else f" ({'server ' if dry_run == 'server' else ''}dry run)"
            name = reference(manifest.kind, manifest.name)
            click.echo(name if output else f"{name} {verb}{note}")
    if output in ("yaml", "json"):
        out.print_objects(applied, output, single=len(manifests) == 1)
    raise_all(failures)


async def _apply(
    client: RawClient, manifest: Manifest, namespace: str, dry_run: str, validation: str
) -> tuple[JSON, str]:
    """The object as it is now, and what became of it."""
    from kernelet.core.client.calls import Options

    if not manifest.name:
        raise CliError(f"{manifest.source}: metadata.name not set; name it, or use `kernelet create`")
    kind, wanted = manifest.kind, with_last_applied(manifest.obj, namespace)
    options = Options(field_manager=MANAGER, dry_run=dry_run == "server", field_validation=validation)
    try:
        current = await client.get(kind, manifest.name, namespace)
    except NotFound:
        created = wanted if dry_run == "client" else await client.create(kind, wanted, namespace, options)
        return created, "created"
    patch = three_way_patch(kind.kind, last_applied(current), wanted, current)
    if not patch:
        return current, "unchanged"
    if dry_run == "client":
        return current, "configured"
    found = await client.patch(kind, manifest.name, patch, namespace, media_type=STRATEGIC_MERGE_PATCH, options=options)
    same = found["metadata"].get("resourceVersion") == current["metadata"].get("resourceVersion")
    return found, "unchanged" if same and dry_run == "none" else "configured"


def with_last_applied(obj: JSON, namespace: str) -> JSON:
    """The manifest with itself as its annotation, so that the next apply knows what it said."""
    metadata = dict(obj["metadata"])
    if namespace:
        metadata["namespace"] = namespace
    annotations = {key: value for key, value in (metadata.get("annotations") or {}).items() if key != LAST_APPLIED}
    manifest = {**obj, "metadata": {**metadata, "annotations": annotations}}
    manifest.pop("status", None)
    text = codec.encode(manifest).decode() + "\n"
    return {**manifest, "metadata": {**metadata, "annotations": {**annotations, LAST_APPLIED: text}}}


def last_applied(current: JSON) -> JSON:
    """What the object was applied with last; empty where it was not, or where that cannot be read."""
    text = ((current.get("metadata") or {}).get("annotations") or {}).get(LAST_APPLIED)
    try:
        found = msgspec.json.decode(text or "{}")
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}
