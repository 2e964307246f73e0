"""EndpointSlices of every service that has a selector."""

from __future__ import annotations

import functools

from lightkube.models.core_v1 import Node, Pod, Service
from lightkube.models.discovery_v1 import EndpointSlice

from kernelet.core.client.events import EventRecorder
from kernelet.core.client.informer import Change
from kernelet.core.controllers.access import (
    Key,
    annotations_of,
    controller_reference,
    deleting,
    key_of,
    name_of,
    reference_to,
)
from kernelet.core.controllers.endpoints_model import desired, given_up, slice_labels
from kernelet.core.controllers.informers import Informers, selected_pods, selecting_services
from kernelet.core.controllers.pods import node_name
from kernelet.core.controllers.runtime import Controller
from kernelet.core.controllers.slicewriter import SliceWriter, Wanted
from kernelet.core.controllers.topology import automatic, set_hints, zone_of, zones_of
from kernelet.core.controllers.weights import POD_ANNOTATION, weight_of, weighted, weights

MANAGER = "endpointslice-controller.k8s.io"


def has_endpoints(service: Service) -> bool:
    """Whether the service's endpoints are ours to find; without a selector they are somebody else's."""
    spec = service.spec
    return not deleting(service) and spec is not None and bool(spec.selector) and spec.type != "ExternalName"


class ServiceTrigger:
    """Wakes a controller for each service whose endpoints a change may touch.

    That is a change of the service, of a pod, of a node's zone, and a node that is given up.
    """

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
        before, after = zone_of(change.old), zone_of(change.new)
        if before != after:
            for service in filter(automatic, self._services.items()):
                self._controller.enqueue(key_of(service))
        if before == after and given_up(change.old) == given_up(change.new):
            return
        for pod in self._pods.by_index("node", name_of(change.object)):
            self._wake(pod)


class EndpointSliceController:
    """One reconcile per service takes in everything that happened since the last one; there is no delay to wait out."""

    def __init__(self, informers: Informers, recorder: EventRecorder, workers: int = 8) -> None:
        self._recorder = recorder
        self._services = informers.of(Service)
        self._pods = informers.of(Pod)
        self._nodes = informers.of(Node)
        slices = informers.of(EndpointSlice)
        self._writer = SliceWriter(informers.client, slices, MANAGER)
        self.controller = Controller("endpointslice", self.reconcile, workers)
        ServiceTrigger(informers, self.controller)
        self._pods.subscribe(self._check_weight)
        slices.subscribe(self._slice_changed)

    def _slice_changed(self, change: Change[EndpointSlice]) -> None:
        if key := self._writer.key_of(change.object):
            self.controller.enqueue(key)

    def _check_weight(self, change: Change[Pod]) -> None:
        """Tells of a wrong weight once, when it is first seen."""
        if change.new is None:
            return
        before = annotations_of(change.old).get(POD_ANNOTATION) if change.old else None
        if annotations_of(change.new).get(POD_ANNOTATION) != before:
            try:
                weight_of(change.new)
            except ValueError as error:
                self._recorder.event(reference_to(change.new, "v1", "Pod"), "Warning", "InvalidWeight", str(error))

    async def reconcile(self, key: Key) -> None:
        """One service. A service that is gone takes its slices along by owner reference."""
        service = self._services.get(*key)
        if service is None or not has_endpoints(service):
            self._writer.forget(key)
            return
        if self._writer.behind(key):
            # The timer is for a cache that is being listed anew.
            self.controller.enqueue_after(key, 0.5)
            return
        pods = selected_pods(self._pods, service)
        nodes = {name: node for pod in pods if (name := node_name(pod)) and (node := self._nodes.get("", name))}
        groups = desired(service, pods, nodes)
        set_hints(service, groups, zones_of(self._nodes.items()) if automatic(service) else ())
        carried = functools.partial(weighted, weights=weights(pods))
        owner = controller_reference(service, "v1", "Service")
        await self._writer.write(key, Wanted(groups, slice_labels(service), carried, owner))
