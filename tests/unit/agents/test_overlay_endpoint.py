"""The overlay's endpoint on the Node, at a real API server; the kernel's part is in tests/kernel/overlay."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Interface, IPv4Network

from lightkube.models.core_v1 import Node
from lightkube.models.meta_v1 import ObjectMeta
from support.waiting import eventually

from kernelet.agents.overlay import VTEP_MAC_ANNOTATION, OverlayAgent
from kernelet.core.client.client import Client
from kernelet.core.client.informer import Change, Informer
from kernelet.dataplane.overlay import Attachment, OverlayConfig


class Device:
    """A tunnel device without a kernel."""

    async def start(self) -> Attachment:
        return Attachment("192.0.2.1", "0e:00:00:00:00:01")

    async def watch(self) -> None:
        await asyncio.Event().wait()


async def test_the_endpoint_is_published_whenever_the_node_lacks_it(client: Client) -> None:
    config = OverlayConfig(
        "published", IPv4Interface("192.0.2.1/24"), IPv4Network("10.244.1.0/24"), IPv4Network("10.244.0.0/16")
    )
    agent = OverlayAgent(client, config)
    agent._backend = Device()  # type: ignore[assignment]  # all that the endpoint needs of a backend
    await agent.start()  # Neither the node nor any answer is needed for that.
    nodes = Informer(client, Node)
    seen: list[bool] = []  # After each change of the node: whether the endpoint is published.

    def look(change: Change[Node]) -> None:
        metadata = change.new.metadata if change.new is not None else None
        if metadata is None or metadata.name == "published":
            found = (metadata.annotations or {}) if metadata is not None else {}
            seen.append(found.get(VTEP_MAC_ANNOTATION) == "0e:00:00:00:00:01")

    async def published_again(changes: int) -> None:
        await eventually(lambda: len(seen) >= changes and seen[-1] and not seen[changes - 2])

    nodes.subscribe(look)
    tasks = [asyncio.create_task(agent.watch()), asyncio.create_task(nodes.run())]
    try:
        await nodes.synced()
        seen.clear()
        await client.create(Node(metadata=ObjectMeta(name="published")))
        await published_again(2)
        await client.patch(Node, "published", {"metadata": {"annotations": {VTEP_MAC_ANNOTATION: None}}})
        await published_again(4)
        await client.delete(Node, "published")
        await eventually(lambda: not seen[-1])
        await client.create(Node(metadata=ObjectMeta(name="published")))
        await eventually(lambda: seen[-1])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await client.delete(Node, "published")
