"""`kernelet trace` from end to end: objects in an API server, a node that is a namespace, events on standard output."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from lightkube.models.core_v1 import Node, NodeAddress, NodeSpec, NodeStatus, Service, ServicePort, ServiceSpec
from lightkube.models.discovery_v1 import Endpoint, EndpointPort, EndpointSlice
from lightkube.models.meta_v1 import ObjectMeta
from support.apiserver import ApiServer

from kernelet.core.client.client import Client
from kernelet.dataplane.proxy.nftables.engine import NftablesEngine

from ..proxy.topology import NODE_ADDRESS, Feed, Topology, service

COMMAND = "from kernelet.agents.trace.command import command; command()"


@pytest.fixture
async def vip(client: Client, namespace: str, topology: Topology) -> AsyncIterator[str]:
    """The cluster IP of service `web` with the backend web1, on a node that is the topology's."""
    name = topology.node.name.removeprefix("kl-test-")
    node = Node(metadata=ObjectMeta(name=name), spec=NodeSpec(podCIDR="10.244.0.0/24"))
    made = await client.create(node)
    made.status = NodeStatus(addresses=[NodeAddress(address=NODE_ADDRESS, type="InternalIP")])
    await client.update_status(made)
    spec = ServiceSpec(ports=[ServicePort(port=80, name="http")])
    web = await client.create(Service(metadata=ObjectMeta(name="web", namespace=namespace), spec=spec))
    labels = {"kubernetes.io/service-name": "web"}
    await client.create(
        EndpointSlice(
            metadata=ObjectMeta(name="web-1", namespace=namespace, labels=labels),
            addressType="IPv4",
            endpoints=[Endpoint(addresses=[topology.web1.address])],
            ports=[EndpointPort(port=8080, name="http", protocol="TCP")],
        )
    )
    assert web.spec and web.spec.clusterIP
    yield web.spec.clusterIP
    await client.delete(Node, name)


def test_the_command_prints_events_as_they_come_and_ends_with_a_summary(
    shared_api_server: ApiServer,
    namespace: str,
    vip: str,
    topology: Topology,
    nftables: NftablesEngine,
    feed: Feed,
) -> None:
    nftables.apply(feed.change(service("web", vip, topology.web1.backend())))
    kubeconfig = str(shared_api_server.data / "admin.kubeconfig")
    node = topology.node.name.removeprefix("kl-test-")
    # The server is shared with other tests, which have nodes of their own.
    options = ["--kubeconfig", kubeconfig, "-n", namespace, "--cluster", "test", "--node", node, "--json", "web"]
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as tracer:
        assert tracer.stdout and tracer.stderr
        # This node has no kubelet, which is told first.
        assert "tells no engine" in tracer.stderr.readline()
        assert tracer.stderr.readline().startswith(f"tracing service {namespace}/web (1 backends)")
        topology.client.ask(vip)
        event = json.loads(tracer.stdout.readline())
        tracer.send_signal(signal.SIGINT)
        rest = [json.loads(line) for line in tracer.stdout]
    assert tracer.returncode == 0
    ways = (event["type"], event["service"], event["backend"], event["node"], event["error"])
    assert ways == ("connection", f"{vip}:80", f"{topology.web1.address}:8080", node, None)
    summary: dict[str, Any] = rest[-1]
    [backend] = summary["backends"]
    assert (summary["type"], backend["connections"], backend["failures"]) == ("summary", 1, {})
    assert summary["latency_us"][0][2] == 1
