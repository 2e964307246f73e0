"""The overlay's agent: ensures the device, publishes this node's endpoint, follows the peers of the route table.

The device needs no control plane, so `start` asks none: a node that restarts while the API server is away still has its
overlay. The endpoint's MAC is published by `watch`, whenever the Node lacks it: also after somebody deleted the Node or
its annotation.
"""

from __future__ import annotations

import asyncio
import logging

from lightkube.models.core_v1 import Node

from kernelet.core.api.errors import ApiError
from kernelet.core.client.client import Client
from kernelet.core.client.informer import Change, Informer
from kernelet.dataplane.overlay import OverlayConfig, Vxlan
from kernelet.dataplane.routes import Delta, RouteTable

log = logging.getLogger(__name__)

VTEP_MAC_ANNOTATION = "kernelet.dev/vtep-mac"
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0


class OverlayAgent:
    """Owns one overlay backend."""

    def __init__(self, client: Client, config: OverlayConfig) -> None:
        self._client = client
        self._node = config.node
        self._backend = Vxlan(config)
        self._mac = ""
        self._unpublished = asyncio.Event()

    @property
    def mtu(self) -> int:
        """Of the pods' links; known after start()."""
        return self._backend.mtu

    async def start(self) -> None:
        """Ensures the device. Raises OverlayError."""
        self._mac = (await self._backend.start()).vtep_mac

    async def apply(self, delta: Delta, table: RouteTable) -> None:
        """Writes what differs from the table's peers; a delta without peers costs nothing."""
        if delta.snapshot or delta.peers or delta.removed_peers:
            changed = await self._backend.apply(table.peers.values())
            log.info("overlay follows the peers peers=%d changed=%d", len(table.peers), changed)

    async def watch(self) -> None:
        """Repairs what others change in the kernel, and keeps the endpoint published, until cancelled."""
        nodes = Informer(self._client, Node, fields=f"metadata.name={self._node}")
        nodes.subscribe(self._on_node)
        async with asyncio.TaskGroup() as tasks:
            nodes.start(tasks)
            tasks.create_task(self._publish(), name="overlay endpoint")
            await self._backend.watch()

    def _on_node(self, change: Change[Node]) -> None:
        metadata = change.new.metadata if change.new is not None else None
        if metadata is not None and (metadata.annotations or {}).get(VTEP_MAC_ANNOTATION) != self._mac:
            self._unpublished.set()

    async def _publish(self) -> None:
        pause = FIRST_PAUSE
        while True:
            await self._unpublished.wait()
            self._unpublished.clear()
            try:
                annotations = {VTEP_MAC_ANNOTATION: self._mac}
                await self._client.patch(Node, self._node, {"metadata": {"annotations": annotations}})
                pause = FIRST_PAUSE
            except ApiError as error:
                log.info("the overlay endpoint is not published yet: %s", error)
                self._unpublished.set()
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)

    async def close(self) -> None:
        """Releases sockets; device and routes stay."""
        await self._backend.close()
