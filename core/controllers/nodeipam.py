"""Node address management: a pod subnet of the cluster CIDR for every node."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from lightkube.models.core_v1 import Node

from kernelet.core.api.errors import ApiError, NotFound
from kernelet.core.client.events import EventRecorder
from kernelet.core.client.informer import Change
from kernelet.core.controllers.access import Key, key_of, meta, name_of
from kernelet.core.controllers.cidrs import Exhausted, Subnets
from kernelet.core.controllers.informers import Informers
from kernelet.core.controllers.runtime import Controller

log = logging.getLogger(__name__)


class NodeIPAMController:
    """One network a family. A node that has subnets keeps them; one worker, so that no two nodes meet."""

    def __init__(self, informers: Informers, recorder: EventRecorder, networks: Sequence[Subnets]) -> None:
        self._client = informers.client
        self._recorder = recorder
        self._nodes = informers.of(Node)
        self._networks = networks
        self._held: dict[str, list[str]] = {}
        self.controller = Controller("nodeipam", self.reconcile, workers=1)
        self._nodes.subscribe(self._node_changed)

    def _node_changed(self, change: Change[Node]) -> None:
        """What a node holds is taken before any is handed out: handlers run before the first reconcile."""
        name = name_of(change.object)
        if change.new is None:
            self._release(name)
            for node in self._nodes.items():
                if not subnets_of(node):
                    self.controller.enqueue(key_of(node))
            return
        self._occupy(name, subnets_of(change.new))
        self.controller.enqueue(("", name))

    def _occupy(self, name: str, subnets: list[str]) -> None:
        if subnets and self._held.get(name) != subnets:
            self._release(name)
            self._held[name] = subnets
            for subnet in subnets:
                inside = [network.occupy(subnet) for network in self._networks]
                if not any(inside):
                    log.warning("node holds a subnet outside the cluster network node=%s subnet=%s", name, subnet)

    def _release(self, name: str) -> None:
        for subnet in self._held.pop(name, []):
            for network in self._networks:
                network.release(subnet)
        # Should two nodes have held the same one, the other still does.
        for held in self._held.values():
            for subnet in held:
                for network in self._networks:
                    network.occupy(subnet)

    async def reconcile(self, key: Key) -> None:
        """One node: give it subnets if it has none."""
        node = self._nodes.get(*key)
        if node is None or subnets_of(node) or self._held.get(key[1]):
            return
        try:
            subnets = self._allocate()
        except Exhausted as error:
            text = f"Node {key[1]} gets no pod subnet: {error}; remove nodes or enlarge --cluster-cidr"
            self._recorder.event(node, "Warning", "CIDRNotAvailable", text)
            log.error("%s", text)
            return
        self._held[key[1]] = subnets
        patch = {
            "metadata": {"resourceVersion": meta(node).resourceVersion, "uid": meta(node).uid},
            "spec": {"podCIDR": subnets[0], "podCIDRs": subnets},
        }
        try:
            await self._client.patch(Node, key[1], patch)
        except ApiError as error:
            # Whether it was written is known only once the cache has shown it; until then the subnet stays taken
            # unless the server has said no.
            if error.code < 500:
                self._release(key[1])
            if isinstance(error, NotFound):
                return
            await self._settle(key[1])
            raise
        log.info("node has its subnet node=%s subnets=%s", key[1], ",".join(subnets))

    def _allocate(self) -> list[str]:
        """One of each network, or none at all."""
        taken: list[str] = []
        try:
            for network in self._networks:
                taken.append(network.allocate())
        except Exhausted:
            for network, subnet in zip(self._networks, taken, strict=False):
                network.release(subnet)
            raise
        return taken

    async def _settle(self, name: str) -> None:
        """After a write whose outcome is unknown: what the server holds is what counts."""
        try:
            live = await self._client.get(Node, name)
        except ApiError as error:
            log.debug("node cannot be read yet node=%s cause=%s", name, error)
            return
        self._release(name)
        self._occupy(name, subnets_of(live))


def subnets_of(node: Node) -> list[str]:
    """The subnets a node holds; empty while it has none."""
    spec = node.spec
    if spec is None:
        return []
    return list(spec.podCIDRs or ([spec.podCIDR] if spec.podCIDR else []))
