"""`kernelet describe`: all about an object, as a person reads it, with its events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from kernelet.core.api.errors import JSON
from kernelet.core.api.kinds import Kind

from . import yamlio
from .complete import complete_target
from .describe_kinds import deployment, node, pod, replicated, service
from .describe_text import Text, header, timestamp
from .events import EVENT, about_fields, by_time, row
from .pods import POD
from .settings import Settings, cluster_options, pass_settings
from .targets import Target, parse_targets

if TYPE_CHECKING:
    from kernelet.core.client.raw import RawClient

_BODIES: dict[str, Callable[[Text, JSON, Sequence[JSON]], None]] = {
    "Pod": lambda text, obj, _: pod(text, obj),
    "Node": node,
    "Service": service,
    "Deployment": lambda text, obj, _: deployment(text, obj),
    "ReplicaSet": lambda text, obj, _: replicated(text, obj),
    "ReplicationController": lambda text, obj, _: replicated(text, obj),
}


@click.command("describe")
@click.argument("targets", nargs=-1, metavar="TYPE [NAME]... | TYPE/NAME...", shell_complete=complete_target)
@click.option("-l", "--selector", "labels", default="", metavar="LABELS", help="Those with labels.")
@click.option("--show-events/--no-events", "with_events", default=True, help="With what happened to them.")
@cluster_options(everywhere=True)
@pass_settings
def command(settings: Settings, targets: tuple[str, ...], labels: str, with_events: bool) -> None:
    """Show all about objects, with their events."""
    wanted = parse_targets(targets)

    async def work(client: RawClient) -> None:
        texts = [text for target in wanted for text in await _describe(client, settings, target, labels, with_events)]
        if not texts:
            click.echo("No resources found.", err=True)
        click.echo("\n\n\n".join(texts), nl=bool(texts))

    settings.run(work)


async def _describe(client: RawClient, settings: Settings, target: Target, labels: str, with_events: bool) -> list[str]:
    kind, scope = target.kind, settings.scope if target.kind.namespaced else ""
    if target.name:
        objects = [await client.get(kind, target.name, scope)]
    else:
        objects = (await client.list(kind, scope, labels=labels)).items
    return [await _one(client, kind, obj, with_events) for obj in objects]


async def _one(client: RawClient, kind: Kind, obj: JSON, with_events: bool) -> str:
    metadata = obj["metadata"]
    events: list[JSON] = []
    if with_events:
        target = Target(kind, metadata["name"])
        # A node's events carry its name as uid, as the kubelet does not know better.
        uid = "" if kind.kind == "Node" else str(metadata.get("uid", ""))
        events = (await client.list(EVENT, metadata.get("namespace", ""), fields=about_fields(target, uid))).items
    related = await _related(client, kind, obj)
    return describe(kind, obj, related, events if with_events else None)


async def _related(client: RawClient, kind: Kind, obj: JSON) -> Sequence[JSON]:
    """What a description shows besides the object: a node's pods, a service's slices."""
    from kernelet.core.api.kinds import KINDS

    metadata = obj["metadata"]
    if kind.kind == "Node":
        return (await client.list(POD, fields=f"spec.nodeName={metadata['name']}")).items
    if kind.kind == "Service":
        slices = KINDS.by_plural("discovery.k8s.io", "v1", "endpointslices")
        labels = f"kubernetes.io/service-name={metadata['name']}"
        return (await client.list(slices, metadata.get("namespace", ""), labels=labels)).items
    return ()


def describe(kind: Kind, obj: JSON, related: Sequence[JSON] = (), events: Sequence[JSON] | None = None) -> str:
    """The description; `events` None leaves them out."""
    text = Text()
    header(text, obj)
    body = _BODIES.get(kind.kind)
    if body is not None:
        body(text, obj, related)
    else:
        timestamp(text, obj)
        rest = {key: value for key, value in obj.items() if key not in ("apiVersion", "kind", "metadata")}
        if kind.kind == "Secret":
            rest["data"] = dict.fromkeys(rest.get("data") or {}, "<hidden>")
        if rest:
            text.block(yamlio.dump(rest).rstrip())
    if events is not None:
        rows = [row(event) for event in by_time(events)]
        cells = [[kind_, reason, seen, message] for seen, kind_, reason, _, message in rows]
        text.table("Events", ["Type", "Reason", "Age", "Message"], cells)
    return text.render()
