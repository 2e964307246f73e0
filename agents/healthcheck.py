"""Telling load balancers which nodes to send to: a server on each healthCheckNodePort (KEP-1669's pool of nodes).

A load balancer in front of a service with externalTrafficPolicy Local asks every node, at any path. The answer is 200
where the node has a ready endpoint of the service and 503 where it has none, with the number of endpoints as
kube-proxy tells it (pkg/proxy/healthcheck). What is told is what the kernel holds: this sink comes after the proxy's.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from aiohttp import web
from lightkube.models.core_v1 import ObjectReference

from kernelet.core.client.events import EventRecorder
from kernelet.dataplane.routes import BackendFlag, Delta, RouteTable, ServiceRoute

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
WEIGHT_HEADER = "X-Load-Balancing-Endpoint-Weight"


@dataclass(frozen=True, slots=True)
class _Health:
    """What one service's port says."""

    service: str
    endpoints: int


class HealthChecks:
    """A sink of the route feed that takes every version at once; `run` opens and closes ports after it."""

    def __init__(self, node: str, recorder: EventRecorder, host: str = "0.0.0.0") -> None:
        self._node = node
        self._recorder = recorder
        self._host = host
        self._ports: dict[str, int] = {}
        self._health: dict[int, _Health] = {}
        self._sites: dict[int, web.TCPSite] = {}
        self._failing: set[tuple[int, str]] = set()
        self._changed = asyncio.Event()

    async def apply(self, delta: Delta, table: RouteTable) -> None:
        """Never waits and never refuses: no version is held up by a port that is taken."""
        gone = set(delta.removed_services)
        if delta.snapshot:
            gone |= self._ports.keys() - table.services.keys()
        for service in delta.services:
            if not service.health_check_port:
                gone.add(service.id)
        for name in gone:
            self._forget(name)
        for service in delta.services:
            if service.health_check_port:
                if self._ports.get(service.id) != service.health_check_port:
                    self._forget(service.id)
                self._ports[service.id] = service.health_check_port
                self._health[service.health_check_port] = _Health(service.id, self._local(service))
        if self._health.keys() != self._sites.keys():
            self._changed.set()

    def _forget(self, service: str) -> None:
        """The port may be another service's by now, which then keeps it."""
        port = self._ports.pop(service, 0)
        if port in self._health and self._health[port].service == service:
            del self._health[port]

    def _local(self, service: ServiceRoute) -> int:
        """Addresses on this node that are ready, whatever the port."""
        backends = (backend for port in service.ports for backend in port.backends)
        return len({b.address for b in backends if b.node == self._node and b.flags & BackendFlag.READY})

    async def run(self) -> None:
        """Until cancelled. A port that is taken is tried again with the next change, and after a pause."""
        runner = web.ServerRunner(web.Server(self._answer, access_log=None))
        await runner.setup()
        try:
            while True:
                self._changed.clear()
                await self._listen(runner)
                try:
                    async with asyncio.timeout(RETRY_SECONDS if self._failing else None):
                        await self._changed.wait()
                except TimeoutError:
                    log.debug("health-check ports are tried again: %s", sorted(self._failing))
        finally:
            await runner.cleanup()

    async def _listen(self, runner: web.ServerRunner) -> None:
        for port in self._sites.keys() - self._health.keys():
            await self._sites.pop(port).stop()
        self._failing = {(port, name) for port, name in self._failing if self._names(port, name)}
        for port, health in list(self._health.items()):
            if port in self._sites:
                continue
            site = web.TCPSite(runner, self._host, port, reuse_address=True)
            try:
                await site.start()
            except OSError as error:
                self._fail(port, health.service, error)
            else:
                self._sites[port] = site
                self._failing.discard((port, health.service))

    def _names(self, port: int, service: str) -> bool:
        return port in self._health and self._health[port].service == service

    def _fail(self, port: int, service: str, error: OSError) -> None:
        """Told once, not with every attempt."""
        if (port, service) in self._failing:
            return
        self._failing.add((port, service))
        text = (
            f"node {self._node} failed to start healthcheck {service!r} on port {port}: {error.strerror or error}; "
            "stop what uses the port on the node, or give the service another healthCheckNodePort"
        )
        log.error("%s", text)
        namespace, _, name = service.partition("/")
        reference = ObjectReference(apiVersion="v1", kind="Service", namespace=namespace, name=name)
        self._recorder.event(reference, "Warning", "FailedToStartServiceHealthcheck", text)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        port = request.transport.get_extra_info("sockname")[1] if request.transport else 0
        health = self._health.get(port)
        if health is None:
            # A connection from before the port was given up.
            gone = web.Response(status=503)
            gone.force_close()
            return gone
        namespace, _, name = health.service.partition("/")
        said = {
            "service": {"namespace": namespace, "name": name},
            "localEndpoints": health.endpoints,
            "serviceProxyHealthy": True,
        }
        headers = {WEIGHT_HEADER: str(health.endpoints), "X-Content-Type-Options": "nosniff"}
        return web.json_response(said, status=200 if health.endpoints else 503, headers=headers)
