"""`kernelet create`: objects that must not exist yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kernelet.core.api.errors import JSON
from kernelet.core.api.kinds import KINDS

from . import output as out
from .failures import CliError, raise_all, reported
from .files import Manifest, file_options, in_namespace, load
from .settings import Settings, cluster_options, pass_settings
from .targets import reference

if TYPE_CHECKING:
    from kernelet.core.client.raw import RawClient

_BY_NAME = ("Namespace", "ServiceAccount", "ConfigMap")


@click.command("create")
@click.argument("named", nargs=-1, metavar="[TYPE NAME]")
@file_options()
@click.option("--dry-run", type=click.Choice(["none", "client", "server"]), default="none", help="Change nothing.")
@click.option("--validate", type=click.Choice(["strict", "warn", "ignore"]), default="strict", help="Unknown fields.")
@click.option("--from-literal", "literals", multiple=True, metavar="KEY=VALUE", help="An entry of a configmap.")
@out.output_option("yaml", "json", "name")
@cluster_options()
@pass_settings
def command(
    settings: Settings,
    named: tuple[str, ...],
    files: tuple[str, ...],
    recursive: bool,
    dry_run: str,
    validate: str,
    literals: tuple[str, ...],
    output: str | None,
) -> None:
    """Create objects from files; or a namespace, service account or configmap by name.

    \b
    kernelet create -f web.yaml
    kernelet create namespace shop
    kernelet create configmap conf --from-literal colour=green
    """
    if bool(named) == bool(files):
        raise click.UsageError("say what to create: either -f FILE, or TYPE NAME such as `namespace shop`")
    manifests = load(files, recursive=recursive) if files else [_by_name(named, literals)]
    settings.run(lambda client: _create(client, settings, manifests, dry_run, validate.capitalize(), output or ""))


def _by_name(named: tuple[str, ...], literals: tuple[str, ...]) -> Manifest:
    if len(named) != 2:
        raise click.UsageError("TYPE and NAME, for instance `namespace shop`")
    kind = KINDS.resolve(named[0])
    if kind.kind not in _BY_NAME:
        raise click.UsageError(f"a {kind.singular} needs more than a name: write it into a file and use -f")
    obj: JSON = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"name": named[1]}}
    if literals:
        if kind.kind != "ConfigMap":
            raise click.UsageError("--from-literal is for configmaps")
        if any("=" not in literal for literal in literals):
            raise click.UsageError("--from-literal takes KEY=VALUE")
        obj["data"] = dict(literal.split("=", 1) for literal in literals)
    return Manifest(kind, obj, "")


async def _create(
    client: RawClient, settings: Settings, manifests: list[Manifest], dry_run: str, validation: str, output: str
) -> None:
    from kernelet.core.client.calls import Options

    options = Options(field_manager="kernelet-create", dry_run=dry_run == "server", field_validation=validation)
    failures: list[CliError] = []
    created: list[JSON] = []
    for manifest in manifests:
        try:
            with reported(manifest.source):
                namespace = in_namespace(manifest, settings)
                obj = manifest.obj
                if dry_run != "client":
                    obj = await client.create(manifest.kind, obj, namespace, options)
        except CliError as error:
            failures.append(error)
            continue
        created.append(obj)
        if output in ("", "name"):
            name = reference(manifest.kind, obj["metadata"].get("name") or obj["metadata"]["generateName"])
            note = "" if dry_run == "none" else f" ({'server ' if dry_run == 'server' else ''}dry run)"
            click.echo(name if output else f"{name} created{note}")
    if output in ("yaml", "json"):
        out.print_objects(created, output, single=len(manifests) == 1)
    raise_all(failures)
