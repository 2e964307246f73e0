"""The DNS agent of a node, at a real API server."""

from __future__ import annotations

import asyncio

import pytest
from dnslib import DNSRecord
from lightkube.models.core_v1 import Service, ServicePort, ServiceSpec
from lightkube.models.discovery_v1 import EndpointSlice
from lightkube.models.meta_v1 import ObjectMeta
from support.apiserver import free_ports
from support.waiting import eventually

from kernelet.agents.dns import agent as module
from kernelet.agents.dns.agent import DnsAgent
from kernelet.agents.dns.server import DnsServer
from kernelet.core.client.client import Client
from kernelet.core.client.informer import Informer

from .test_server import Client as Resolver


class OnLoopback(DnsServer):
    """Listens on loopback, which is no address that an endpoint may have."""

    async def start(self, address: str, port: int = 53) -> None:
        await super().start("127.0.0.1", port)


async def test_it_serves_what_the_api_server_knows_and_keeps_its_endpoint_published(
    client: Client, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_ports(1)[0]
    monkeypatch.setattr(module, "PORT", port)
    monkeypatch.setattr(module, "DnsServer", OnLoopback)
    spec = ServiceSpec(ports=[ServicePort(port=80, name="http")])
    made = await client.create(Service(metadata=ObjectMeta(name="web", namespace=namespace), spec=spec))
    slices = Informer(client, EndpointSlice, namespace="kube-system")
    tasks = [asyncio.create_task(DnsAgent(client, "n1").run("10.244.1.1")), asyncio.create_task(slices.run())]
    try:
        await eventually(lambda: slices.get("kube-system", "kube-dns-n1") is not None)
        found = slices.get("kube-system", "kube-dns-n1")
        assert found is not None
        assert [(e.addresses, e.nodeName) for e in found.endpoints or []] == [(["10.244.1.1"], "n1")]
        async with Resolver.to(port) as resolver:
            reply = await resolver.ask(DNSRecord.question(f"web.{namespace}.svc.cluster.local"))
        assert made.spec is not None
        assert [str(rr.rdata) for rr in reply.rr] == [made.spec.clusterIP]
        assert found.metadata is not None
        await client.delete(EndpointSlice, "kube-dns-n1", "kube-system")
        await eventually(lambda: slices.get("kube-system", "kube-dns-n1") not in (None, found))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert all(task.cancelled() for task in tasks)
    await client.delete(EndpointSlice, "kube-dns-n1", "kube-system")
