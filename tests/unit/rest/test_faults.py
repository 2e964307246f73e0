"""Faults the real registry does not show on request: a bug behind a handler, a client that leaves amid a write."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web

from kernelet.core.security.authz import Authorizer
from kernelet.core.security.users import User
from kernelet.core.server.nodeproxy import NodeProxy
from kernelet.core.server.registry import Registry
from kernelet.core.server.requests import Written
from kernelet.core.server.rest.app import RestApp
from kernelet.core.server.rest.context import Face

TOKEN = {"Authorization": "Bearer good"}
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


class FaultyRegistry:
    """Reading fails with a bug; creating takes until it is told to end."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()
        self.ended = asyncio.Event()

    async def get(self, *_: Any) -> bytes:
        raise KeyError("a bug")

    async def create(self, *_: Any) -> Written:
        self.begun.set()
        await self.may_end.wait()
        self.ended.set()
        return Written(b"{}", 1)

    def ready(self) -> bool:
        return False


@pytest.fixture
def registry() -> FaultyRegistry:
    return FaultyRegistry()


@pytest.fixture
async def url(registry: FaultyRegistry) -> AsyncIterator[str]:
    def authenticate(token: str) -> User | None:
        return User("admin", ("system:masters",)) if token == "good" else None

    face = Face(cast(Registry, registry), Authorizer(), authenticate, cast(NodeProxy, None), b"")
    runner = web.AppRunner(RestApp(face).application(), handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_a_bug_is_a_500_status_and_a_traceback_in_the_log(url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with aiohttp.ClientSession(url, headers=TOKEN) as http:
        response = await http.get(f"{CONFIG_MAPS}/x")
        status = await response.json()
    assert (response.status, status["reason"]) == (500, "InternalError")
    record = next(record for record in caplog.records if record.levelno == logging.ERROR)
    assert record.exc_info is not None and "a bug" in str(record.exc_info[1])
    assert status["message"].endswith(f"id={record.__dict__['id']}") and "a bug" not in status["message"]


async def test_a_write_goes_on_when_its_client_leaves(url: str, registry: FaultyRegistry) -> None:
    async with aiohttp.ClientSession(url, headers=TOKEN) as http:
        request = asyncio.create_task(http.post(CONFIG_MAPS, json={"kind": "ConfigMap"}))
        async with asyncio.timeout(5):
            await registry.begun.wait()
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    registry.may_end.set()
    async with asyncio.timeout(5):
        await registry.ended.wait()


async def test_a_server_that_is_not_ready_says_so(url: str) -> None:
    async with aiohttp.ClientSession(url) as http:
        ready = await http.get("/readyz")
        assert ready.status == 500 and "[-]registry failed" in await ready.text()
        assert (await http.get("/livez")).status == 200
