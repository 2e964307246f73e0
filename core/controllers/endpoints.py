"""Endpoints (core/v1) of every service that has a selector, for clients that do not read EndpointSlices yet."""

from __future__ import annotations

import logging

from lightkube.models.core_v1 import (
    EndpointAddress,
    EndpointPort,
    Endpoints,
    EndpointSubset,
    Node,
    Pod,
    Service,
)
from lightkube.models.meta_v1 import ObjectMeta

from kernelet.core.api.errors import AlreadyExists, NotFound
from kernelet.core.controllers.access import (
    Key,
    controller_reference,
    deleting,
    key_of,
    labels_of,
    meta,
    name_of,
    namespace_of,
    reference_to,
    to_json,
    uid_of,
)
from kernelet.core.controllers.endpoints_model import families, given_up, hostname, pod_address, pod_ports
from kernelet.core.controllers.endpointslice import ServiceTrigger
from kernelet.core.controllers.informers import Informers, selected_pods
from kernelet.core.controllers.pods import finished, node_name, ready
from kernelet.core.controllers.runtime import Controller

log = logging.getLogger(__name__)

CAPACITY = 1000
"""Addresses one object holds; what is over is left out and the object marked so, as in Kubernetes."""
OVER_CAPACITY = "endpoints.kubernetes.io/over-capacity"


class EndpointsController:
    """The object has the service's name. Its address family is the service's first."""

    def __init__(self, informers: Informers, workers: int = 4) -> None:
        self._client = informers.client
        self._services = informers.of(Service)
        self._pods = informers.of(Pod)
        self._nodes = informers.of(Node)
        self._endpoints = informers.of(Endpoints)
        self.controller = Controller("endpoints", self.reconcile, workers)
        ServiceTrigger(informers, self.controller)
        self._endpoints.subscribe(lambda change: self.controller.enqueue(key_of(change.object)))

    async def reconcile(self, key: Key) -> None:
        """One service: write its Endpoints where they differ, remove them with the service."""
        service, present = self._services.get(*key), self._endpoints.get(*key)
        if service is None:
            await self._remove_orphan(present)
            return
        if (
            deleting(service)
            or service.spec is None
            or not service.spec.selector
            or service.spec.type == "ExternalName"
        ):
            return
        subsets, over = self._subsets(service)
        labels = self._labels(service)
        if present is None:
            await self._create(service, subsets, labels, over)
            return
        marked = (meta(present).annotations or {}).get(OVER_CAPACITY)
        if (present.subsets or []) == subsets and labels_of(present) == labels and bool(marked) == over:
            return
        patch = {
            "metadata": {
                "resourceVersion": meta(present).resourceVersion,
                "labels": labels | dict.fromkeys(set(labels_of(present)) - set(labels)),
                "annotations": {OVER_CAPACITY: "truncated" if over else None},
            },
            "subsets": [to_json(subset) for subset in subsets],
        }
        await self._client.patch(Endpoints, name_of(service), patch, namespace_of(service))

    def _subsets(self, service: Service) -> tuple[list[EndpointSubset], bool]:
        """The pods grouped by the ports they offer, ready and not ready apart; and whether some were left out."""
        publish = bool(service.spec and service.spec.publishNotReadyAddresses)
        family = families(service)[0]
        groups: dict[tuple[tuple[str, str, int, str], ...], tuple[list[EndpointAddress], list[EndpointAddress]]] = {}
        pods = sorted(selected_pods(self._pods, service), key=lambda pod: (not ready(pod), name_of(pod)))
        listed = [
            pod for pod in pods if not finished(pod) and (publish or not deleting(pod)) and pod_address(pod, family)
        ]
        for pod in listed[:CAPACITY]:
            taken = groups.setdefault(pod_ports(service, pod), ([], []))
            serving = ready(pod) and not given_up(self._nodes.get("", node_name(pod)))
            taken[0 if serving or publish else 1].append(_address(service, pod, family))
        subsets = [
            EndpointSubset(
                addresses=addresses or None,
                notReadyAddresses=waiting or None,
                ports=[
                    EndpointPort(name=n or None, protocol=p, port=port, appProtocol=a or None)
                    for n, p, port, a in ports
                ]
                or None,
            )
            for ports, (addresses, waiting) in sorted(groups.items())
        ]
        return subsets, len(listed) > CAPACITY

    @staticmethod
    def _labels(service: Service) -> dict[str, str]:
        labels = dict(labels_of(service))
        labels["endpoints.kubernetes.io/managed-by"] = "endpoint-controller"
        if service.spec and service.spec.clusterIP == "None":
            labels["service.kubernetes.io/headless"] = ""
        return labels

    async def _create(
        self, service: Service, subsets: list[EndpointSubset], labels: dict[str, str], over: bool
    ) -> None:
        made = Endpoints(
            apiVersion="v1",
            kind="Endpoints",
            metadata=ObjectMeta(
                name=name_of(service),
                namespace=namespace_of(service),
                labels=labels,
                annotations={OVER_CAPACITY: "truncated"} if over else None,
                ownerReferences=[controller_reference(service, "v1", "Service")],
            ),
            subsets=subsets or None,
        )
        try:
            await self._client.create(made)
        except AlreadyExists:
            # Ours from before, or a user's own; its arrival in the cache has it compared.
            log.debug("endpoints exist already name=%s/%s", namespace_of(service), name_of(service))

    async def _remove_orphan(self, present: Endpoints | None) -> None:
        """Only what a service was the reason for: Endpoints that people keep without a service stay."""
        owned = present is not None and any(owner.kind == "Service" for owner in meta(present).ownerReferences or [])
        if present is None or not owned or deleting(present):
            return
        try:
            await self._client.delete(Endpoints, name_of(present), namespace_of(present), uid=uid_of(present))
        except NotFound:
            log.debug("endpoints are gone already name=%s/%s", namespace_of(present), name_of(present))


def _address(service: Service, pod: Pod, family: str) -> EndpointAddress:
    return EndpointAddress(
        ip=pod_address(pod, family),
        hostname=hostname(service, pod),
        nodeName=node_name(pod) or None,
        targetRef=reference_to(pod, None, "Pod"),
    )
