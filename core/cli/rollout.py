"""`kernelet rollout`: how a deployment's update goes, and its revisions."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import click

from kernelet.core.api import times
from kernelet.core.api.errors import JSON, Expired, NotFound, ServiceUnavailable
from kernelet.core.api.kinds import KINDS
from kernelet.core.api.patch import JSON_PATCH

from . import output as out
from . import yamlio
from .complete import complete_target
from .failures import CliError
from .logs import duration
from .settings import Settings, cluster_options, pass_settings
from .targets import Target, parse_named

if TYPE_CHECKING:
    from kernelet.core.client.raw import RawClient

DEPLOYMENT = KINDS.by_plural("apps", "v1", "deployments")
REPLICA_SET = KINDS.by_plural("apps", "v1", "replicasets")
REVISION = "deployment.kubernetes.io/revision"
CHANGE_CAUSE = "kubernetes.io/change-cause"
RESTARTED_AT = "kubectl.kubernetes.io/restartedAt"
HASH_LABEL = "pod-template-hash"
_RETRY_SECONDS = 0.5

_argument = click.argument(
    "arguments", nargs=-1, metavar="deployment NAME | deploy/NAME", shell_complete=complete_target
)


def _targets(arguments: tuple[str, ...]) -> list[Target]:
    targets = parse_named(arguments)
    for target in targets:
        if target.kind is not DEPLOYMENT:
            raise click.UsageError(f"a {target.kind.singular} has no rollouts; deployments have")
    return targets


@click.group("rollout")
@cluster_options()
def command() -> None:
    """Follow, restart, undo or pause deployments."""


@command.command("status")
@_argument
@click.option("-w/ ", "--watch/--no-watch", "watch", default=True, help="Wait until it is done (default).")
@click.option("--timeout", type=duration, default=0.0, metavar="DURATION", help="Longest wait; 0: none.")
@cluster_options()
@pass_settings
def status(settings: Settings, arguments: tuple[str, ...], watch: bool, timeout: float) -> None:
    """Tell how the rollout goes, until it is done; exit status 1 where it failed."""
    targets = _targets(arguments)

    async def work(client: RawClient) -> None:
        for target in targets:
            try:
                async with asyncio.timeout(timeout or None):
                    await _follow(client, target, settings.namespace, watch)
            except TimeoutError:
                raise CliError(f"{target}: not rolled out after {timeout:g} s; `kernelet describe {target}`") from None

    settings.run(work)


async def _follow(client: RawClient, target: Target, namespace: str, watch: bool) -> None:
    """Prints every step once; takes a lost connection up again."""
    said = ""
    while True:
        try:
            current = await client.get(DEPLOYMENT, target.name, namespace)
            text, done = progress(current)
            said = _say(text, said)
            if done or not watch:
                return
            version = str(current["metadata"]["resourceVersion"])
            fields = f"metadata.name={target.name}"
            stream = client.watch(DEPLOYMENT, namespace, fields=fields, resource_version=version)
            async with aclosing(stream) as events:
                async for event in events:
                    if event.type == "DELETED":
                        raise CliError(f"{target}: was deleted while its rollout was watched")
                    text, done = progress(event.object)
                    said = _say(text, said)
                    if done:
                        return
        except Expired:
            continue
        except ServiceUnavailable:
            await asyncio.sleep(_RETRY_SECONDS)


def _say(text: str, said: str) -> str:
    if text != said:
        click.echo(text)
    return text


def progress(deployment: JSON) -> tuple[str, bool]:
    """What kubectl says of a deployment's rollout, and whether it is done. Raises CliError where it failed."""
    name, spec, state = deployment["metadata"]["name"], deployment["spec"], deployment.get("status") or {}
    if deployment["metadata"].get("generation", 0) > state.get("observedGeneration", 0):
        return "Waiting for deployment spec update to be observed...", False
    for condition in state.get("conditions") or []:
        if condition.get("type") == "Progressing" and condition.get("reason") == "ProgressDeadlineExceeded":
            raise CliError(f'deployment "{name}": exceeded its progress deadline; `kernelet describe deploy/{name}`')
    wanted, total = spec.get("replicas", 1), state.get("replicas", 0)
    updated, available = state.get("updatedReplicas", 0), state.get("availableReplicas", 0)
    waiting = f'Waiting for deployment "{name}" rollout to finish: '
    if updated < wanted:
        return f"{waiting}{updated} out of {wanted} new replicas have been updated...", False
    if total > updated:
        return f"{waiting}{total - updated} old replicas are pending termination...", False
    if available < updated:
        return f"{waiting}{available} of {updated} updated replicas are available...", False
    return f'deployment "{name}" successfully rolled out', True


@command.command("restart")
@_argument
@cluster_options()
@pass_settings
def restart(settings: Settings, arguments: tuple[str, ...]) -> None:
    """Replace all pods, by the deployment's own update strategy."""
    annotations = {RESTARTED_AT: times.now_rfc3339()}
    patch: JSON = {"spec": {"template": {"metadata": {"annotations": annotations}}}}
    _patch_all(settings, arguments, patch, "restarted")


@command.command("pause")
@_argument
@cluster_options()
@pass_settings
def pause(settings: Settings, arguments: tuple[str, ...]) -> None:
    """Stop rolling out changes until resumed."""
    _patch_all(settings, arguments, {"spec": {"paused": True}}, "paused")


@command.command("resume")
@_argument
@cluster_options()
@pass_settings
def resume(settings: Settings, arguments: tuple[str, ...]) -> None:
    """Roll out changes again."""
    _patch_all(settings, arguments, {"spec": {"paused": None}}, "resumed")


def _patch_all(settings: Settings, arguments: tuple[str, ...], patch: JSON, done: str) -> None:
    targets = _targets(arguments)

    async def work(client: RawClient) -> None:
        for target in targets:
            await client.patch(DEPLOYMENT, target.name, patch, settings.namespace)
            click.echo(f"{target} {done}")

    settings.run(work)


@command.command("history")
@_argument
@click.option(
    "--revision", type=click.IntRange(min=0), default=0, metavar="N", help="Show this revision's pod template."
)
@cluster_options()
@pass_settings
def history(settings: Settings, arguments: tuple[str, ...], revision: int) -> None:
    """List a deployment's revisions."""
    targets = _targets(arguments)

    async def work(client: RawClient) -> None:
        for target in targets:
            revisions = await _revisions(client, target, settings.namespace)
            if revision:
                template = _template(_pick(target, revisions, revision))
                click.echo(f"{target} with revision #{revision}")
                click.echo(yamlio.dump(template), nl=False)
                continue
            rows = [
                [number, (item["metadata"].get("annotations") or {}).get(CHANGE_CAUSE) or "<none>"]
                for number, item in sorted(revisions.items())
            ]
            click.echo(str(target))
            click.echo(out.columns_of_text(["REVISION", "CHANGE-CAUSE"], rows))

    settings.run(work)


@command.command("undo")
@_argument
@click.option("--to-revision", type=click.IntRange(min=0), default=0, metavar="N", help="Default: the one before.")
@cluster_options()
@pass_settings
def undo(settings: Settings, arguments: tuple[str, ...], to_revision: int) -> None:
    """Go back to an earlier revision."""
    targets = _targets(arguments)

    async def work(client: RawClient) -> None:
        for target in targets:
            revisions = await _revisions(client, target, settings.namespace)
            earlier = sorted(revisions)[:-1]
            if not to_revision and not earlier:
                raise CliError(f"{target}: has no earlier revision; nothing was changed")
            template = _template(_pick(target, revisions, to_revision or earlier[-1]))
            operations: list[JSON] = [{"op": "replace", "path": "/spec/template", "value": template}]
            await client.patch(DEPLOYMENT, target.name, operations, settings.namespace, media_type=JSON_PATCH)
            click.echo(f"{target} rolled back")

    settings.run(work)


async def _revisions(client: RawClient, target: Target, namespace: str) -> dict[int, JSON]:
    """The deployment's replica sets by revision."""
    deployment = await client.get(DEPLOYMENT, target.name, namespace)
    uid = deployment["metadata"]["uid"]
    found = {}
    for item in (await client.list(REPLICA_SET, namespace)).items:
        metadata = item["metadata"]
        owned = any(owner.get("uid") == uid for owner in metadata.get("ownerReferences") or [])
        number = (metadata.get("annotations") or {}).get(REVISION, "")
        if owned and number.isascii() and number.isdigit():
            found[int(number)] = item
    if not found:
        raise NotFound(f"{target} has no revisions yet", resource="replicasets", group="apps", name=target.name)
    return found


def _pick(target: Target, revisions: dict[int, JSON], number: int) -> JSON:
    if number not in revisions:
        known = ", ".join(str(revision) for revision in sorted(revisions))
        raise CliError(f"{target}: has no revision {number}; it has {known}")
    return revisions[number]


def _template(replica_set: JSON) -> JSON:
    """A revision's pod template as the deployment had it."""
    template: JSON = dict(replica_set["spec"]["template"])
    metadata = dict(template.get("metadata") or {})
    labels = {key: value for key, value in (metadata.get("labels") or {}).items() if key != HASH_LABEL}
    return {**template, "metadata": {**metadata, "labels": labels}}
