"""EndpointSlices of every service that has a selector."""

from __future__ import annotations

import logging

from lightkube.models.core_v1 import Node, Pod, Service
from lightkube.models.discovery_v1 import Endpoint, EndpointSlice
from lightkube.models.meta_v1 import ObjectMeta

from kernelet.core.api.errors import NotFound
from kernelet.core.client.informer import Change
from kernelet.core.controllers.access import (
    Key,
    controller_reference,
    deleting,
    key_of,
    labels_of,
    meta,
    name_of,
    namespace_of,
    to_json,
    uid_of,
)
from kernelet.core.controllers.endpoints_model import (
    Group,
    Plan,
    desired,
    given_up,
    plan,
    slice_labels,
    slice_ports,
)
from kernelet.core.controllers.informers import SERVICE_LABEL, Informers, selected_pods, selecting_services
from kernelet.core.controllers.pods import node_name
from kernelet.core.controllers.runtime import Controller, bounded

log = logging.getLogger(__name__)

MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
MANAGER = "endpointslice-controller.k8s.io"


def has_endpoints(service: Service) -> bool:
    """Whether the service's endpoints are ours to find; without a selector they are somebody else's."""
    spec = service.spec
    return not deleting(service) and spec is not None and bool(spec.selector) and spec.type != "ExternalName"


class ServiceTrigger:
    """Wakes a controller for each service whose endpoints a change may touch: pods, the service, nodes given up."""

    def __init__(self, informers: Informers, controller: Controller) -> None:
        self._controller = controller
        self._services = informers.of(Service)
        self._pods = informers.of(Pod)
        self._services.subscribe(lambda change: controller.enqueue(key_of(change.object)))
        self._pods.subscribe(self._pod_changed)
        informers.of(Node).subscribe(self._node_changed)

    def _pod_changed(self, change: Change[Pod]) -> None:
        for pod in (change.old, change.new):
            if pod is not None:
                self._wake(pod)

    def _wake(self, pod: Pod) -> None:
        for service in selecting_services(self._services, pod):
            self._controller.enqueue(key_of(service))

    def _node_changed(self, change: Change[Node]) -> None:
        before, after = given_up(change.old), given_up(change.new)
        if before == after:
            return
        for pod in self._pods.by_index("node", name_of(change.object)):
            self._wake(pod)


class EndpointSliceController:
    """One reconcile per service takes in everything that happened since the last one; there is no delay to wait out."""

    def __init__(self, informers: Informers, workers: int = 8) -> None:
        self._client = informers.client
        self._services = informers.of(Service)
        self._pods = informers.of(Pod)
        self._nodes = informers.of(Node)
        self._slices = informers.of(EndpointSlice)
        self._newest: dict[Key, int] = {}
        self.controller = Controller("endpointslice", self.reconcile, workers)
        ServiceTrigger(informers, self.controller)
        self._slices.subscribe(self._slice_changed)

    def _slice_changed(self, change: Change[EndpointSlice]) -> None:
        obj = change.object
        service = labels_of(obj).get(SERVICE_LABEL)
        if service and _managed(obj):
            self.controller.enqueue((namespace_of(obj), service))

    async def reconcile(self, key: Key) -> None:
        """One service. A service that is gone takes its slices along by owner reference."""
        service = self._services.get(*key)
        if service is None or not has_endpoints(service):
            self._newest.pop(key, None)
            return
        existing = [entry for entry in self._slices.by_index("service", "/".join(key)) if _managed(entry)]
        if self._slices.revision < self._newest.get(key, 0):
            # The cache does not show our own last write yet, whose arrival wakes this service again; the timer is for
            # a cache that is being listed anew.
            self.controller.enqueue_after(key, 0.5)
            return
        pods = selected_pods(self._pods, service)
        nodes = {name: node for pod in pods if (name := node_name(pod)) and (node := self._nodes.get("", name))}
        labels = slice_labels(service)
        todo = plan(existing, desired(service, pods, nodes))
        written = {name_of(entry) for entry, _ in todo.update} | {name_of(entry) for entry in todo.delete}
        for entry in existing:
            if name_of(entry) not in written and labels_of(entry) != labels:
                todo.update.append((entry, list(entry.endpoints or [])))
        if not todo.empty:
            await self._write(service, todo, labels)

    def _wrote(self, service: Service, written: EndpointSlice) -> None:
        key = key_of(service)
        self._newest[key] = max(self._newest.get(key, 0), int(meta(written).resourceVersion or 0))

    async def _write(self, service: Service, todo: Plan, labels: dict[str, str]) -> None:
        """Updates first: they hold the endpoints that left."""
        await bounded(lambda each: self._update(service, *each, labels), todo.update)
        await bounded(lambda each: self._create(service, *each, labels), todo.create)
        await bounded(self._delete, todo.delete)

    async def _update(
        self, service: Service, entry: EndpointSlice, endpoints: list[Endpoint], labels: dict[str, str]
    ) -> None:
        gone = dict.fromkeys(set(labels_of(entry)) - set(labels))
        patch = {
            "metadata": {"resourceVersion": meta(entry).resourceVersion, "labels": labels | gone},
            "endpoints": [to_json(endpoint) for endpoint in endpoints],
        }
        self._wrote(service, await self._client.patch(EndpointSlice, name_of(entry), patch, namespace_of(entry)))

    async def _create(self, service: Service, group: Group, endpoints: list[Endpoint], labels: dict[str, str]) -> None:
        made = await self._client.create(
            EndpointSlice(
                apiVersion="discovery.k8s.io/v1",
                kind="EndpointSlice",
                metadata=ObjectMeta(
                    generateName=f"{name_of(service)}-",
                    namespace=namespace_of(service),
                    labels=labels,
                    ownerReferences=[controller_reference(service, "v1", "Service")],
                ),
                addressType=group[0],
                endpoints=endpoints,
                ports=slice_ports(group),
            )
        )
        self._wrote(service, made)
        log.debug("slice made name=%s/%s endpoints=%d", namespace_of(made), name_of(made), len(endpoints))

    async def _delete(self, entry: EndpointSlice) -> None:
        try:
            await self._client.delete(EndpointSlice, name_of(entry), namespace_of(entry), uid=uid_of(entry))
        except NotFound:
            log.debug("slice is gone already name=%s/%s", namespace_of(entry), name_of(entry))


def _managed(entry: EndpointSlice) -> bool:
    return labels_of(entry).get(MANAGED_BY) == MANAGER
