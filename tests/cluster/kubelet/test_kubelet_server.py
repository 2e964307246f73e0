"""The kubelet's HTTPS endpoint: who may use it, logs and exec."""

from __future__ import annotations

import json
import ssl

import aiohttp
import pytest
from kubelet_world import World, ready, waiting_reason

from kernelet.core.client.raw import LogOptions


def tls(world: World, name: str, *groups: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(world.pki.ca_path))
    if name:
        pair = world.pki.issue(f"test-{name.replace(':', '-')}", name, groups, sans=(), server=False, client=True)
        context.load_cert_chain(pair.cert_path, pair.key_path)
    return context


def url(world: World, path: str) -> str:
    return f"https://127.0.0.1:{world.config.port}{path}"


async def get(world: World, path: str) -> tuple[int, str]:
    context = tls(world, "kernelet-apiserver")
    async with aiohttp.ClientSession() as session, session.get(url(world, path), ssl=context) as response:
        return response.status, await response.text()


async def test_only_the_api_server_and_administrators_are_served(world: World) -> None:
    async with aiohttp.ClientSession() as session:
        allowed = (tls(world, "kernelet-apiserver"), tls(world, "root", "system:masters"))
        for context in allowed:
            async with session.get(url(world, "/healthz"), ssl=context) as response:
                assert (response.status, await response.text()) == (200, "ok")
        async with session.get(url(world, "/healthz"), ssl=tls(world, "system:node:other", "system:nodes")) as response:
            assert response.status == 403
        with pytest.raises(aiohttp.ClientError):
            async with session.get(url(world, "/healthz"), ssl=tls(world, "")) as response:
                await response.read()


async def test_logs_of_the_current_and_the_previous_container(world: World) -> None:
    await world.create("logs", "echo one; echo two; sleep 600")
    await world.create("dies", "echo last words; exit 1")
    await world.until("logs", ready)
    await world.until("dies", lambda status: waiting_reason(status) == "CrashLoopBackOff")
    assert await get(world, "/containerLogs/default/logs/main") == (200, "one\ntwo\n")
    assert await get(world, "/containerLogs/default/logs/main?tailLines=1") == (200, "two\n")
    assert await get(world, "/containerLogs/default/logs/main?limitBytes=5") == (200, "one\nt")
    assert await get(world, "/containerLogs/default/dies/main?previous=true") == (200, "last words\n")
    assert "T" in (await get(world, "/containerLogs/default/logs/main?timestamps=true"))[1].split()[0]
    assert (await get(world, "/containerLogs/default/none/main"))[0] == 404
    assert (await get(world, "/containerLogs/default/logs/main?tailLines=x"))[0] == 400
    pods = json.loads((await get(world, "/pods"))[1])["items"]
    assert {pod["metadata"]["name"] for pod in pods} == {"logs", "dies"}
    assert "kubelet_started_containers_total" in (await get(world, "/metrics"))[1]


async def exec_frames(world: World, protocol: str, query: str, *sent: bytes) -> dict[int, bytes]:
    """Runs an exec and gathers its output by channel."""
    found: dict[int, bytes] = {}
    async with aiohttp.ClientSession() as session:
        address = url(world, f"/exec/default/shell/main?{query}")
        context = tls(world, "kernelet-apiserver")
        async with session.ws_connect(address, ssl=context, protocols=(protocol,)) as socket:
            assert socket.protocol == protocol
            for frame in sent:
                await socket.send_bytes(frame)
            async for message in socket:
                found[message.data[0]] = found.get(message.data[0], b"") + message.data[1:]
    return found


async def test_exec_carries_streams_and_the_exit_code(world: World) -> None:
    await world.create("shell", "sleep 600")
    await world.until("shell", ready)
    script = "command=sh&command=-c&command=cat;echo%20err%20>%262;exit%207&input=1&output=1&error=1"
    found = await exec_frames(world, "v5.channel.k8s.io", script, b"\x00hello\n", bytes([255, 0]))
    assert (found[1], found[2]) == (b"hello\n", b"err\n")
    status = json.loads(found[3])
    assert status["reason"] == "NonZeroExitCode"
    assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "7"}]
    good = await exec_frames(world, "v4.channel.k8s.io", "command=echo&command=hi&stdout=true&stderr=true")
    assert good[1] == b"hi\n" and json.loads(good[3])["status"] == "Success"
    tty = await exec_frames(
        world, "v5.channel.k8s.io", "command=echo&command=hi&output=1&tty=1", b'\x04{"Width":80,"Height":24}'
    )
    assert tty[1] == b"hi\r\n"


async def test_logs_come_through_the_api_server(world: World) -> None:
    await world.create("through", "echo hello; sleep 600")
    await world.until("through", ready)
    chunks = [chunk async for chunk in world.client.raw.logs("default", "through", LogOptions())]
    assert b"".join(chunks) == b"hello\n"
