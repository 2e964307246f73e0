"""EndpointSlices of Endpoints that people keep by hand, for services without a selector (KEP-752).

As Kubernetes' endpointslicemirroring controller: addresses that are ready and those that are not, a slice for each
family and set of ports, the object's labels and annotations. An address of neither family is left out, and of each
subset no more than 1,000 are taken. Who writes slices of their own labels the Endpoints
endpointslice.kubernetes.io/skip-mirror: "true".
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterator, Sequence

from lightkube.models.core_v1 import EndpointAddress, Endpoints, EndpointSubset, Service
from lightkube.models.discovery_v1 import Endpoint, EndpointConditions, EndpointSlice

from kernelet.core.client.informer import Change
from kernelet.core.controllers.access import (
    Key,
    annotations_of,
    controller_reference,
    deleting,
    key_of,
    labels_of,
    name_of,
    namespace_of,
)
from kernelet.core.controllers.endpoints_model import Group
from kernelet.core.controllers.informers import Informers
from kernelet.core.controllers.runtime import Controller
from kernelet.core.controllers.slicewriter import SliceWriter, Wanted

log = logging.getLogger(__name__)

MANAGER = "endpointslicemirroring-controller.k8s.io"
SKIP_LABEL = "endpointslice.kubernetes.io/skip-mirror"
LEADER_ANNOTATION = "control-plane.alpha.kubernetes.io/leader"
"""On Endpoints that are no endpoints but a lock of old clients."""
CAPACITY = 1000
"""Addresses taken of one subset."""
_NOT_COPIED = frozenset(
    {"kubectl.kubernetes.io/last-applied-configuration", "endpoints.kubernetes.io/last-change-trigger-time"}
)


class EndpointSliceMirroringController:
    """Its slices belong to the Endpoints, and go with them, with the service, and once the service has a selector."""

    def __init__(self, informers: Informers, workers: int = 2) -> None:
        self._services = informers.of(Service)
        self._endpoints = informers.of(Endpoints)
        slices = informers.of(EndpointSlice)
        self._writer = SliceWriter(informers.client, slices, MANAGER)
        self.controller = Controller("endpointslicemirroring", self.reconcile, workers)
        self._services.subscribe(lambda change: self.controller.enqueue(key_of(change.object)))
        self._endpoints.subscribe(lambda change: self.controller.enqueue(key_of(change.object)))
        slices.subscribe(self._slice_changed)

    def _slice_changed(self, change: Change[EndpointSlice]) -> None:
        if key := self._writer.key_of(change.object):
            self.controller.enqueue(key)

    async def reconcile(self, key: Key) -> None:
        """One service and the Endpoints of its name."""
        service, endpoints = self._services.get(*key), self._endpoints.get(*key)
        if self._writer.behind(key):
            # The timer is for a cache that is being listed anew.
            self.controller.enqueue_after(key, 0.5)
            return
        if service is None or endpoints is None or not is_mirrored(service, endpoints):
            await self._writer.delete(self._writer.existing(key))
            self._writer.forget(key)
            return
        owner = controller_reference(endpoints, "v1", "Endpoints")
        copied = {name: text for name, text in annotations_of(endpoints).items() if name not in _NOT_COPIED}
        await self._writer.write(key, Wanted(mirrored(endpoints), labels_of(endpoints), lambda *_: copied, owner))


def is_mirrored(service: Service, endpoints: Endpoints) -> bool:
    """Whether nobody else says what the service's endpoints are."""
    return not (
        deleting(service)
        or deleting(endpoints)
        or (service.spec and service.spec.selector)
        or labels_of(endpoints).get(SKIP_LABEL) == "true"
        or LEADER_ANNOTATION in annotations_of(endpoints)
    )


def mirrored(endpoints: Endpoints) -> dict[Group, list[Endpoint]]:
    """The addresses of all subsets by family and ports, each once."""
    groups: dict[Group, dict[str, Endpoint]] = {}
    for subset in endpoints.subsets or []:
        ports = tuple(
            sorted((p.name or "", p.protocol or "TCP", p.port, p.appProtocol or "") for p in subset.ports or [])
        )
        for address, ready in _taken(endpoints, subset):
            try:
                family = f"IPv{ipaddress.ip_address(address.ip).version}"
            except ValueError:
                log.warning(
                    "address left out of the mirrored slices endpoints=%s/%s address=%r: give an IPv4 or IPv6 address",
                    namespace_of(endpoints), name_of(endpoints), address.ip,
                )  # fmt: skip
                continue
            groups.setdefault((family, ports), {}).setdefault(address.ip, _endpoint(address, ready=ready))
    return {group: list(found.values()) for group, found in groups.items()}


def _taken(endpoints: Endpoints, subset: EndpointSubset) -> Iterator[tuple[EndpointAddress, bool]]:
    """Ready ones first: they are what is kept where there are too many."""
    listed: Sequence[tuple[EndpointAddress, bool]] = [
        *((address, True) for address in subset.addresses or []),
        *((address, False) for address in subset.notReadyAddresses or []),
    ]
    if len(listed) > CAPACITY:
        log.warning(
            "%d addresses are over the %d mirrored of a subset endpoints=%s/%s",
            len(listed) - CAPACITY, CAPACITY, namespace_of(endpoints), name_of(endpoints),
        )  # fmt: skip
    yield from listed[:CAPACITY]


def _endpoint(address: EndpointAddress, *, ready: bool) -> Endpoint:
    return Endpoint(
        addresses=[address.ip],
        conditions=EndpointConditions(ready=ready),
        hostname=address.hostname or None,
        nodeName=address.nodeName or None,
        targetRef=address.targetRef,
    )
