"""One informer a kind, shared by all controllers of a process, with the indexes they look things up by."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

from lightkube.models.apps_v1 import ReplicaSet
from lightkube.models.core_v1 import Pod, Service
from lightkube.models.discovery_v1 import EndpointSlice

from kernelet.core.api.selectors import LabelSelector
from kernelet.core.client.client import Client
from kernelet.core.client.informer import Informer
from kernelet.core.controllers.access import HasMetadata, controller_of, labels_of, namespace_of

T = TypeVar("T")
Index = Callable[[Any], Iterable[str]]

SERVICE_LABEL = "kubernetes.io/service-name"


def owner_or_orphan(obj: HasMetadata) -> list[str]:
    """The uid of its controller, or `orphan/<namespace>`."""
    owner = controller_of(obj)
    return [owner.uid] if owner else [f"orphan/{namespace_of(obj)}"]


def by_node(pod: Pod) -> list[str]:
    return [pod.spec.nodeName] if pod.spec and pod.spec.nodeName else []


def by_namespace(obj: HasMetadata) -> list[str]:
    return [namespace_of(obj)]


def by_service(endpoints: EndpointSlice) -> list[str]:
    service = labels_of(endpoints).get(SERVICE_LABEL)
    return [f"{namespace_of(endpoints)}/{service}"] if service else []


def by_label(obj: HasMetadata) -> list[str]:
    """`<namespace>/<key>=<value>` of every label."""
    return [f"{namespace_of(obj)}/{key}={value}" for key, value in labels_of(obj).items()]


def by_selector(service: Service) -> list[str]:
    """The first term of its selector in the form of `by_label`: what a pod it selects must carry."""
    selector = (service.spec.selector if service.spec else None) or {}
    return [f"{namespace_of(service)}/{key}={selector[key]}" for key in sorted(selector)[:1]]


def selected_pods(pods: Informer[Pod], service: Service) -> list[Pod]:
    """The pods a service selects; none for a service without selector."""
    selector = LabelSelector.from_map((service.spec.selector if service.spec else None) or {})
    if selector.empty:
        return []
    return [
        pod for term in by_selector(service) for pod in pods.by_index("label", term) if selector.matches(labels_of(pod))
    ]


def selecting_services(services: Informer[Service], pod: Pod) -> list[Service]:
    """The services that select a pod, without looking at all services."""
    candidates = [service for label in by_label(pod) for service in services.by_index("selector", label)]
    return [
        service
        for service in candidates
        if service.spec and LabelSelector.from_map(service.spec.selector or {}).matches(labels_of(pod))
    ]


_INDEXES: Mapping[type[Any], Mapping[str, Index]] = {
    Pod: {"owner": owner_or_orphan, "node": by_node, "label": by_label},
    Service: {"selector": by_selector},
    ReplicaSet: {"owner": owner_or_orphan},
    EndpointSlice: {"service": by_service},
}


class Informers:
    """Made per leadership: all caches start empty, `start` fills them, the task group's end drops them."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._informers: dict[type[Any], Informer[Any]] = {}

    def of(self, model: type[T]) -> Informer[T]:
        """The shared informer of this model; ask before `start`."""
        if model not in self._informers:
            indexes = {"namespace": by_namespace, **_INDEXES.get(model, {})}
            self._informers[model] = Informer(self.client, model, indexes=indexes)
        return cast("Informer[T]", self._informers[model])

    def start(self, group: asyncio.TaskGroup) -> None:
        for informer in self._informers.values():
            informer.start(group)

    async def synced(self) -> None:
        """Waits until every cache holds its first full list."""
        await asyncio.gather(*(informer.synced() for informer in self._informers.values()))
