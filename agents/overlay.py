"""The overlay's agent: ensures the device, publishes this node's endpoint, follows the peers of the route table."""

from __future__ import annotations

import logging

from lightkube.models.core_v1 import Node

from kernelet.core.client.client import Client
from kernelet.dataplane.overlay import OverlayConfig, Vxlan
from kernelet.dataplane.routes import Delta, RouteTable

log = logging.getLogger(__name__)

VTEP_MAC_ANNOTATION = "kernelet.dev/vtep-mac"


class OverlayAgent:
    """Owns one overlay backend."""

    def __init__(self, client: Client, config: OverlayConfig) -> None:
        self._client = client
        self._node = config.node
        self._backend = Vxlan(config)

    @property
    def mtu(self) -> int:
        """Of the pods' links; known after start()."""
        return self._backend.mtu

    async def start(self) -> None:
        """Ensures the device and publishes its MAC on the Node. Raises OverlayError."""
        attachment = await self._backend.start()
        annotations = {VTEP_MAC_ANNOTATION: attachment.vtep_mac}
        await self._client.patch(Node, self._node, {"metadata": {"annotations": annotations}})

    async def apply(self, delta: Delta, table: RouteTable) -> None:
        """Writes what differs from the table's peers; a delta without peers costs nothing."""
        if delta.snapshot or delta.peers or delta.removed_peers:
            changed = await self._backend.apply(table.peers.values())
            log.info("overlay follows the peers peers=%d changed=%d", len(table.peers), changed)

    async def watch(self) -> None:
        """Repairs what others change in the kernel, until cancelled."""
        await self._backend.watch()

    async def close(self) -> None:
        """Releases sockets; device and routes stay."""
        await self._backend.close()
