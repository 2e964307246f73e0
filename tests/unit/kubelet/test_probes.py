"""Probes against a local server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest_asyncio
from aiohttp import web
from lightkube.models.core_v1 import Container
from support.waiting import eventually

from kernelet.agents.kubelet.probes import ContainerProbes, Counter
from kernelet.agents.kubelet.probing import Prober, Target


class Site:
    """A local HTTP server whose answer can be changed."""

    def __init__(self) -> None:
        self.status = 200
        self.seen: list[str] = []
        self.port = 0

    async def answer(self, request: web.Request) -> web.Response:
        self.seen.append(f"{request.path} {request.headers.get('X-Probe', '')}".strip())
        return web.Response(status=self.status)


@pytest_asyncio.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    application = web.Application()
    application.router.add_get("/{tail:.*}", site.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    site.port = runner.addresses[0][1]
    yield site
    await runner.cleanup()


@pytest_asyncio.fixture
async def prober() -> AsyncIterator[Prober]:
    prober = Prober(None)  # type: ignore[arg-type]  # only exec probes need the runtime
    yield prober
    await prober.close()


def target_of(site: Site, **probes: Any) -> Target:
    ports = [{"name": "web", "containerPort": site.port}]
    return Target(msgspec.convert({"name": "c", "ports": ports, **probes}, Container), "id", "127.0.0.1")


def http(site: Site, **changes: Any) -> dict[str, Any]:
    return {"httpGet": {"port": "web", "path": "/ok"}, "periodSeconds": 1} | changes


async def test_http_and_tcp_looks_see_what_answers(site: Site, prober: Prober) -> None:
    get = http(site, httpGet={"port": "web", "path": "ok", "httpHeaders": [{"name": "X-Probe", "value": "1"}]})
    target = target_of(site, readinessProbe=get, livenessProbe={"tcpSocket": {"port": site.port}})
    assert target.container.readinessProbe and target.container.livenessProbe
    assert (await prober.look(target.container.readinessProbe, target)).ok
    assert site.seen == ["/ok 1"]
    assert (await prober.look(target.container.livenessProbe, target)).ok
    site.status = 302
    assert (await prober.look(target.container.readinessProbe, target)).ok, "a redirect counts as success"
    site.status = 503
    bad = await prober.look(target.container.readinessProbe, target)
    assert (bad.ok, bad.message) == (False, "HTTP probe failed with statuscode: 503")
    gone = target_of(site, livenessProbe={"tcpSocket": {"port": 1}})
    assert gone.container.livenessProbe
    assert not (await prober.look(gone.container.livenessProbe, gone)).ok
    unknown = target_of(site, livenessProbe={"tcpSocket": {"port": "none"}})
    assert unknown.container.livenessProbe
    assert "no port named 'none'" in (await prober.look(unknown.container.livenessProbe, unknown)).message


def test_verdicts_need_as_many_looks_in_a_row_as_the_thresholds_say() -> None:
    counter = Counter(success_threshold=2, failure_threshold=3)
    looks = [True, False, True, True, False, False, True, False, False, False]
    assert [counter.add(ok) for ok in looks] == [False, False, False, True, False, False, False, False, False, True]
    assert counter.verdict is False


class Watch:
    """Waits for states of a container's probes."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.events: list[str] = []

    async def until(self, probes: ContainerProbes, **wanted: Any) -> None:
        async with asyncio.timeout(8):
            while any(getattr(probes.state, key) != value for key, value in wanted.items()):
                self.changed.clear()
                await self.changed.wait()


async def test_ready_comes_at_once_and_goes_with_the_failure_threshold(site: Site, prober: Prober) -> None:
    watch = Watch()
    async with asyncio.TaskGroup() as group:
        target = target_of(site, readinessProbe=http(site, failureThreshold=2))
        probes = ContainerProbes(prober, target, group, watch.changed.set, lambda kind, text: watch.events.append(kind))
        assert probes.state.started and not probes.state.ready
        async with asyncio.timeout(0.5):
            await watch.until(probes, ready=True)
        site.status = 500
        await watch.until(probes, ready=False)
        assert watch.events == ["Readiness", "Readiness"]
        site.status = 200
        await watch.until(probes, ready=True)
        probes.stop()


async def test_a_container_that_becomes_ready_between_two_beats_is_ready_soon(site: Site, prober: Prober) -> None:
    watch, site.status = Watch(), 503
    async with asyncio.TaskGroup() as group:
        target = target_of(site, readinessProbe=http(site, periodSeconds=10))
        probes = ContainerProbes(prober, target, group, watch.changed.set, lambda kind, text: watch.events.append(kind))
        await asyncio.sleep(0.3)
        site.status = 200
        async with asyncio.timeout(1.5):
            await watch.until(probes, ready=True)
        assert watch.events == ["Readiness"], "early looks are no failures"
        probes.stop()


async def test_liveness_waits_for_the_startup_probe_and_then_kills(site: Site, prober: Prober) -> None:
    watch, site.status = Watch(), 503
    async with asyncio.TaskGroup() as group:
        startup = http(site, httpGet={"port": "web", "path": "/up"}, failureThreshold=30)
        target = target_of(site, startupProbe=startup, livenessProbe=http(site, failureThreshold=1))
        probes = ContainerProbes(prober, target, group, watch.changed.set, lambda kind, text: watch.events.append(kind))
        await asyncio.sleep(0.2)
        assert set(site.seen) == {"/up"} and not probes.state.started
        site.status = 200
        await watch.until(probes, started=True, ready=True)
        site.status = 500
        await eventually(lambda: bool(probes.state.dead), 3)
        assert probes.state.dead.startswith("failed liveness probe: HTTP probe failed")
        probes.stop()
