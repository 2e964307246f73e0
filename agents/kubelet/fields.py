"""fieldRef and resourceFieldRef: a pod's own fields as text, for environment variables and downwardAPI volumes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from lightkube.models.core_v1 import Container, ObjectFieldSelector, Pod, ResourceFieldSelector

from kernelet.core.api.resources import parse_quantity

from . import pods


class FieldError(Exception):
    """A reference that cannot be resolved; the message names the reference, the cause and the fix."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What of the node shows in pods."""

    name: str
    address: str
    cpu_millis: int
    memory: int
    """Bytes."""


_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")


def escaped(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def field_value(pod: Pod, selector: ObjectFieldSelector, node: NodeFacts, addresses: tuple[str, ...]) -> str:
    """The text of a field such as `metadata.name` or `status.podIP`. Raises FieldError for one that has no value."""
    path = selector.fieldPath
    metadata = pods.meta(pod)
    maps = {"labels": metadata.labels or {}, "annotations": metadata.annotations or {}}
    subscript = _SUBSCRIPT.fullmatch(path)
    if subscript:
        return str(maps[subscript[1]].get(subscript[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        return "\n".join(f"{key}={escaped(value)}" for key, value in sorted(maps[path.split(".")[1]].items()))
    simple = {
        "metadata.name": pods.name(pod),
        "metadata.namespace": pods.namespace(pod),
        "metadata.uid": pods.uid(pod),
        "spec.nodeName": node.name,
        "spec.serviceAccountName": pods.spec(pod).serviceAccountName or "default",
        "status.hostIP": node.address,
        "status.hostIPs": node.address,
        "status.podIP": addresses[0] if addresses else "",
        "status.podIPs": ",".join(addresses),
    }
    if path not in simple:
        raise FieldError(
            f"fieldRef {path!r} is not supported; known: {', '.join(sorted(simple))} and metadata.labels['x']"
        )
    return simple[path]


def resource_value(pod: Pod, container: Container | None, selector: ResourceFieldSelector, node: NodeFacts) -> str:
    """The text of `limits.cpu`, `requests.memory` and so on, divided by the divisor and rounded up.

    A limit that is not stated is the node's own amount. Raises FieldError naming the reference.
    """
    if selector.containerName:
        every = [*pods.spec(pod).containers, *(pods.spec(pod).initContainers or [])]
        container = next((c for c in every if c.name == selector.containerName), None)
    if container is None:
        raise FieldError(f"resourceFieldRef names container {selector.containerName!r}, which the pod does not have")
    what, _, resource = selector.resource.partition(".")
    if what not in ("limits", "requests") or not resource:
        raise FieldError(
            f"resourceFieldRef {selector.resource!r} is not supported; write limits.cpu or requests.memory"
        )
    amount = pods.limit(container, resource) if what == "limits" else pods.request(container, resource)
    if amount is None:
        everything = {"cpu": node.cpu_millis, "memory": node.memory}
        amount = everything.get(resource, 0) if what == "limits" else 0
    divisor = parse_quantity(str(selector.divisor)) if selector.divisor else parse_quantity("1")
    unit = divisor * 1000 if resource == "cpu" else divisor
    return str(math.ceil(amount / (unit or 1)))
