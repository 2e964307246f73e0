"""Running DNS on a node: informers into the zone, the server on the node's own pod address, and an endpoint for it.

The Service kube-system/kube-dns has no selector. Each node publishes one EndpointSlice with itself as endpoint, and
the service's internalTrafficPolicy is Local: so every pod asks the server of its own node, by the one address that
stands in every pod's resolv.conf, and the routes do the rest.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path

from lightkube.models.core_v1 import Service
from lightkube.models.discovery_v1 import Endpoint, EndpointConditions, EndpointPort, EndpointSlice
from lightkube.models.meta_v1 import ObjectMeta

from kernelet.core.api.errors import AlreadyExists, ApiError
from kernelet.core.client.client import Client
from kernelet.core.client.informer import Change, Informer

from .answers import Answerer
from .forward import Forwarder, upstreams_of
from .records import Zone
from .server import DnsServer

log = logging.getLogger(__name__)

NAMESPACE, SERVICE = "kube-system", "kube-dns"
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
MANAGED_BY = {"endpointslice.kubernetes.io/managed-by": "dns.kernelet.dev"}
PORT = 53
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0


class DnsAgent:
    """Owns the zone, its informers and the server of one node."""

    def __init__(self, client: Client, node: str, domain: str = "cluster.local") -> None:
        self._client = client
        self._node = node
        self._zone = Zone(domain)
        self._services = Informer(client, Service)
        self._slices = Informer(client, EndpointSlice)
        self._unpublished = asyncio.Event()

    async def run(self, address: str, resolv_conf: Path = Path("/etc/resolv.conf")) -> None:
        """Serves on `address` until cancelled. Raises OSError when the port is taken."""
        self._services.subscribe(self._service_changed)
        self._slices.subscribe(self._slice_changed)
        forwarder = Forwarder(upstreams_of(resolv_conf, (address,)))
        server = DnsServer(Answerer(self._zone), forwarder)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._services.start(tasks)
                self._slices.start(tasks)
                # No answer before everything is known: "no such name" would be believed.
                await self._services.synced()
                await self._slices.synced()
                await server.start(address, PORT)
                tasks.create_task(self._publish(address), name="dns endpoint")
        finally:
            await server.close()

    def _service_changed(self, change: Change[Service]) -> None:
        metadata = change.object.metadata
        if metadata is not None:
            self._zone.set_service(f"{metadata.namespace}/{metadata.name}", change.new)

    def _slice_changed(self, change: Change[EndpointSlice]) -> None:
        for known, now in ((change.old, None), (change.new, change.new)):
            metadata = known.metadata if known is not None else None
            owner = (metadata.labels or {}).get(SERVICE_NAME_LABEL) if metadata is not None else None
            if metadata is not None and owner:
                self._zone.set_slice(f"{metadata.namespace}/{owner}", metadata.name or "", now)
        metadata = change.object.metadata
        if metadata is not None and (metadata.namespace, metadata.name) == (NAMESPACE, f"{SERVICE}-{self._node}"):
            self._unpublished.set()

    async def _publish(self, address: str) -> None:
        """Makes this node's server an endpoint of the DNS service, and again when somebody deletes it."""
        wanted = EndpointSlice(
            addressType="IPv4",
            endpoints=[Endpoint(addresses=[address], nodeName=self._node, conditions=EndpointConditions(ready=True))],
            ports=[
                EndpointPort(name="dns", port=PORT, protocol="UDP"),
                EndpointPort(name="dns-tcp", port=PORT, protocol="TCP"),
            ],
        )
        self._unpublished.set()
        pause = FIRST_PAUSE
        while True:
            await self._unpublished.wait()
            self._unpublished.clear()
            try:
                await self._ensure_published(wanted)
                pause = FIRST_PAUSE
            except ApiError as error:
                log.info("the DNS endpoint of this node is not published yet: %s", error)
                self._unpublished.set()
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)

    async def _ensure_published(self, wanted: EndpointSlice) -> None:
        """Raises ApiError."""
        name = f"{SERVICE}-{self._node}"
        wanted.metadata = ObjectMeta(name=name, namespace=NAMESPACE, labels={SERVICE_NAME_LABEL: SERVICE, **MANAGED_BY})
        with suppress(AlreadyExists):
            await self._client.create(wanted)
            return
        held = await self._client.get(EndpointSlice, name, NAMESPACE)
        if _endpoints(held) != _endpoints(wanted):
            wanted.metadata = held.metadata
            await self._client.update(wanted)


def _endpoints(found: EndpointSlice) -> list[tuple[list[str], str | None]]:
    return [(endpoint.addresses, endpoint.nodeName) for endpoint in found.endpoints or []]
