"""What a node tells load balancers on a service's health-check port."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from support.apiserver import free_ports
from support.waiting import eventually

from kernelet.agents import healthcheck
from kernelet.agents.healthcheck import HealthChecks
from kernelet.dataplane.routes import Backend, BackendFlag, Delta, Protocol, RouteTable, ServicePort, ServiceRoute

READY = BackendFlag.READY | BackendFlag.SERVING
DYING = BackendFlag.SERVING | BackendFlag.TERMINATING


class Recorder:
    """Keeps what would be written."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, str]] = []

    def event(self, obj: Any, type: str, reason: str, message: str) -> None:
        self.events.append((f"{obj.namespace}/{obj.name}", reason, message))


class Node:
    """Versions in, answers out."""

    def __init__(self) -> None:
        self.recorder = Recorder()
        self.checks = HealthChecks("n1", self.recorder, "127.0.0.1")  # type: ignore[arg-type]
        self.table = RouteTable()

    async def take(self, *services: ServiceRoute, removed: tuple[str, ...] = (), snapshot: bool = False) -> None:
        version = self.table.version + 1
        base = 0 if snapshot else self.table.version
        delta = Delta("", version, base, services=list(services), removed_services=list(removed))
        self.table.apply(delta)
        await self.checks.apply(delta, self.table)

    async def ask(self, port: int, path: str = "/healthz") -> tuple[int, Any, str]:
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
            return answer.status, await answer.json(), answer.headers["X-Load-Balancing-Endpoint-Weight"]


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    made = Node()
    running = asyncio.create_task(made.checks.run())
    await made.take(snapshot=True)
    yield made
    running.cancel()
    await asyncio.wait([running])
    if not running.cancelled():
        running.result()


def backend(number: int, node: str = "n1", flags: BackendFlag = READY, port: int = 80) -> Backend:
    return Backend(bytes([10, 244, 0, number]), port, flags, node)


def service(port: int, *backends: Backend, name: str = "shop/web") -> ServiceRoute:
    ports = (ServicePort("a", Protocol.TCP, 80, 0, backends), ServicePort("b", Protocol.TCP, 81, 0, backends))
    return ServiceRoute(name, (bytes([10, 96, 0, 7]),), ports, external_local=True, health_check_port=port)


async def test_a_node_with_ready_endpoints_says_how_many_at_any_path(node: Node) -> None:
    (port,) = free_ports(1)
    others = [backend(3, "n2"), backend(4, flags=BackendFlag.NONE), backend(5, flags=DYING)]
    await node.take(service(port, backend(1), backend(2), *others))
    await eventually(lambda: is_open(port))
    said = {"service": {"namespace": "shop", "name": "web"}, "localEndpoints": 2, "serviceProxyHealthy": True}
    assert await node.ask(port) == await node.ask(port, "/") == (200, said, "2")


async def test_it_answers_503_without_one_and_changes_with_the_versions(node: Node) -> None:
    (port,) = free_ports(1)
    await node.take(service(port, backend(3, "n2")))
    await eventually(lambda: is_open(port))
    status, said, weight = await node.ask(port)
    assert (status, said["localEndpoints"], weight) == (503, 0, "0")
    await node.take(service(port, backend(1)))
    assert (await node.ask(port))[0] == 200
    await node.take(service(port, backend(1, flags=DYING)))
    assert (await node.ask(port))[0] == 503


async def test_ports_open_move_and_close_with_their_services(node: Node) -> None:
    first, second = free_ports(2)
    await node.take(service(first, backend(1)))
    await eventually(lambda: is_open(first))
    await node.take(service(second, backend(1)))
    await eventually(lambda: is_open(second))
    await eventually(lambda: not is_open(first))
    # Another service gets the port in the version that takes it from the first.
    await node.take(service(0, backend(1)), service(second, name="shop/other"))
    assert (await node.ask(second))[1]["service"]["name"] == "other"
    await node.take(service(second), service(first, backend(1), name="shop/other"))
    await eventually(lambda: is_open(first))
    assert [(await node.ask(port))[1]["service"]["name"] for port in (first, second)] == ["other", "web"]
    await node.take(removed=("shop/web",))
    await eventually(lambda: not is_open(second))
    await node.take(snapshot=True)
    await eventually(lambda: not is_open(first))
    assert not node.recorder.events


async def test_a_port_that_is_taken_is_told_once_holds_nothing_up_and_is_tried_again(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(healthcheck, "RETRY_SECONDS", 0.02)
    caplog.set_level(logging.DEBUG)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port, free = taken.getsockname()[1], free_ports(1)[0]
        await node.take(service(port, backend(1)), service(free, backend(1), name="shop/other"))
        await eventually(lambda: is_open(free))
        await eventually(lambda: len(node.recorder.events) == 1)
        await eventually(lambda: caplog.text.count("are tried again") >= 3)
    await eventually(lambda: is_open(port))
    ((who, reason, message),) = node.recorder.events
    assert (who, reason) == ("shop/web", "FailedToStartServiceHealthcheck")
    assert f"node n1 failed to start healthcheck 'shop/web' on port {port}" in message
    assert "give the service another healthCheckNodePort" in message
    assert message in caplog.text


async def test_a_connection_from_before_the_port_was_given_up_is_told_so_and_closed(node: Node) -> None:
    (port,) = free_ports(1)
    await node.take(service(port, backend(1)))
    await eventually(lambda: is_open(port))
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}/"
        async with session.get(url) as answer:
            await answer.read()
        await node.take(removed=("shop/web",))
        async with session.get(url) as answer:
            assert (answer.status, answer.headers["Connection"]) == (503, "close")
