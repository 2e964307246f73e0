"""Finding the pod and the container a command speaks to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kernelet.core.api.errors import JSON
from kernelet.core.api.kinds import KINDS
from kernelet.core.api.selectors import LabelSelector

from .failures import CliError
from .targets import Target, parse_named

if TYPE_CHECKING:
    from kernelet.core.client.raw import RawClient

POD = KINDS.by_plural("", "v1", "pods")
DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"


def pod_target(text: str) -> Target:
    """`web-1` is a pod; `deploy/web` whatever it says."""
    return parse_named([text])[0] if "/" in text else Target(POD, text)


async def find_pod(client: RawClient, target: Target, namespace: str) -> JSON:
    """The pod itself, or one of those a workload or service selects, a ready one first."""
    if target.kind is POD:
        return await client.get(POD, target.name, namespace)
    owner = await client.get(target.kind, target.name, namespace)
    pods = await selected_pods(client, target, owner, namespace)
    if not pods:
        raise CliError(f"{target}: has no pods; `kernelet describe {target}` may tell why")
    return min(pods, key=_preference)


async def selected_pods(client: RawClient, target: Target, owner: JSON, namespace: str) -> list[JSON]:
    """The pods that a workload or service selects."""
    selector = (owner.get("spec") or {}).get("selector")
    if not selector:
        raise click.UsageError(f"{target} selects no pods; name a pod, a workload or a service with a selector")
    plain = not ("matchLabels" in selector or "matchExpressions" in selector)
    chosen = LabelSelector.from_map(selector) if plain else LabelSelector.from_object(selector)
    return (await client.list(POD, namespace, labels=str(chosen))).items


def _preference(pod: JSON) -> tuple[bool, bool, str]:
    status = pod.get("status") or {}
    ready = any(c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or [])
    return not ready, status.get("phase") != "Running", pod["metadata"]["name"]


def choose_container(pod: JSON, wanted: str) -> str:
    """The container meant: the one named, the annotated default, or the first. Raises CliError."""
    spec = pod.get("spec") or {}
    names = [c["name"] for key in ("containers", "initContainers", "ephemeralContainers") for c in spec.get(key) or []]
    name = wanted or (pod["metadata"].get("annotations") or {}).get(DEFAULT_CONTAINER) or names[0]
    if name not in names:
        where = f"pod/{pod['metadata']['name']}"
        raise CliError(f"{where}: has no container {name}; choose one of {', '.join(names)} with -c")
    return str(name)
