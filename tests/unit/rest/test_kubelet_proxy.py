"""logs, exec and documents through the API server: the real kubectl in front, a kubelet's HTTPS endpoint behind."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from kernelet.core.api.errors import ServiceUnavailable
from kernelet.core.client.client import Client
from kernelet.core.security.kubeconfig import load_kubeconfig
from kernelet.core.security.pki import Pki

from .conftest import Server

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
PODS = "/api/v1/namespaces/default/pods"


class Kubelet:
    """Answers as a kubelet does: logs, and an exec that turns stdin into upper case or exits with a code."""

    def __init__(self) -> None:
        self.requests: list[web.Request] = []
        self.received: list[bytes] = []

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self.logs)
        app.router.add_get("/exec/{namespace}/{pod}/{container}", self.exec)
        app.router.add_get("/routes", self.routes)
        return app

    async def routes(self, request: web.Request) -> web.Response:
        self.requests.append(request)
        return web.json_response({"node": "n1"})

    async def logs(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        response = web.StreamResponse()
        await response.prepare(request)
        for line in (b"one\n", b"two\n"):
            await response.write(line)
        return response

    async def exec(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        socket = web.WebSocketResponse(protocols=("v5.channel.k8s.io",))
        await socket.prepare(request)
        command = request.query.getall("command")
        if command[0] == "exit":
            causes = [{"reason": "ExitCode", "message": command[1]}]
            await self._finish(
                socket, {"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": causes}}
            )
            return socket
        async for message in socket:
            assert message.type is WSMsgType.BINARY
            self.received.append(message.data)
            if message.data == b"\xff\x00":
                break
            if message.data[:1] == b"\x00":
                await socket.send_bytes(b"\x01" + message.data[1:].upper())
        await socket.send_bytes(b"\x02done\n")
        await self._finish(socket, {"status": "Success"})
        return socket

    async def _finish(self, socket: web.WebSocketResponse, status: dict[str, Any]) -> None:
        full = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "message": "ended", **status}
        await socket.send_bytes(b"\x03" + json.dumps(full).encode())
        await socket.close()


@pytest.fixture
async def kubelet(server: Server, http: aiohttp.ClientSession) -> AsyncIterator[Kubelet]:
    """A kubelet of node n1, and the pod p (containers main and side) bound to it."""
    pair = Pki.load(server.folder / "pki").issue(
        "n1", "system:node:n1", ["system:nodes"], sans=["n1"], server=True, client=True
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(server.folder / "pki" / "ca.crt"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(pair.cert_path, pair.key_path)
    found = Kubelet()
    runner = web.AppRunner(found.application())
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        port = runner.addresses[0][1]
        await _register(http, port)
        yield found
    finally:
        await http.delete(f"{PODS}/p?gracePeriodSeconds=0")
        await http.delete("/api/v1/nodes/n1")
        await runner.cleanup()


async def _register(http: aiohttp.ClientSession, port: int) -> None:
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}
    assert (await http.post("/api/v1/nodes", json=node)).status == 201
    status = {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }
    kind = {"Content-Type": "application/merge-patch+json"}
    patched = await http.patch("/api/v1/nodes/n1/status", data=json.dumps({"status": status}), headers=kind)
    assert patched.status == 200, await patched.text()
    containers = [{"name": "main", "image": "x"}, {"name": "side", "image": "x"}]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": containers}}
    assert (await http.post(PODS, json=pod)).status == 201
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": "p"},
        "target": {"kind": "Node", "name": "n1"},
    }
    assert (await http.post(f"{PODS}/p/binding", json=binding)).status == 201
    running = {"status": {"phase": "Running"}}
    await http.patch(f"{PODS}/p/status", data=json.dumps(running), headers=kind)


async def kubectl(server: Server, home: Path, *arguments: str, text: bytes = b"") -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        "kubectl", "--kubeconfig", str(server.kubeconfig), *arguments,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    async with asyncio.timeout(30):
        out, err = await process.communicate(text)
    return process.returncode or 0, out.decode(), err.decode()


async def test_kubectl_logs_streams_the_kubelets_answer(server: Server, kubelet: Kubelet, tmp_path: Path) -> None:
    code, out, err = await kubectl(server, tmp_path, "logs", "p", "-c", "side", "--tail=5", "--timestamps")
    assert (code, out) == (0, "one\ntwo\n"), err
    request = kubelet.requests[0]
    assert request.match_info == {"namespace": "default", "pod": "p", "container": "side"}
    assert dict(request.query) == {"tailLines": "5", "timestamps": "true"}


async def test_a_container_must_be_named_where_there_are_several(http: aiohttp.ClientSession, kubelet: Kubelet) -> None:
    response = await http.get(f"{PODS}/p/log")
    assert response.status == 400
    assert (await response.json())["message"].endswith("choose one of: [main side]")


async def test_kubectl_exec_carries_stdin_stdout_stderr_and_success(
    server: Server, kubelet: Kubelet, tmp_path: Path
) -> None:
    code, out, err = await kubectl(server, tmp_path, "exec", "-i", "p", "-c", "main", "--", "upper", text=b"hello\n")
    assert (code, out) == (0, "HELLO\n"), err
    assert err == "done\n"
    assert kubelet.received == [b"\x00hello\n", b"\xff\x00"]


async def test_kubectl_exec_ends_with_the_commands_exit_code(server: Server, kubelet: Kubelet, tmp_path: Path) -> None:
    code, _, _ = await kubectl(server, tmp_path, "exec", "p", "-c", "main", "--", "exit", "7")
    assert code == 7


async def test_a_kubelet_that_is_gone_is_named(
    server: Server, http: aiohttp.ClientSession, kubelet: Kubelet, tmp_path: Path
) -> None:
    kind = {"Content-Type": "application/merge-patch+json"}
    nowhere = {"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": 1}}}}
    await http.patch("/api/v1/nodes/n1/status", data=json.dumps(nowhere), headers=kind)
    code, _, err = await kubectl(server, tmp_path, "exec", "p", "-c", "main", "--", "true")
    assert code != 0
    assert "the kubelet of node n1 at 127.0.0.1:1 cannot be reached" in err


async def test_exec_without_a_websocket_is_told_what_to_use(http: aiohttp.ClientSession, kubelet: Kubelet) -> None:
    response = await http.post(f"{PODS}/p/exec?command=true&container=main")
    assert response.status == 400
    assert "use kubectl 1.31 or newer" in (await response.json())["message"]


async def test_a_document_of_a_kubelet_is_passed_on(http: aiohttp.ClientSession, kubelet: Kubelet) -> None:
    response = await http.get("/api/v1/nodes/n1/proxy/routes?a=b")
    assert (response.status, response.content_type) == (200, "application/json")
    assert await response.json() == {"node": "n1"}
    assert dict(kubelet.requests[0].query) == {"a": "b"}


async def test_the_grpc_face_passes_a_kubelets_document_on_too(server: Server, kubelet: Kubelet) -> None:
    async with Client(load_kubeconfig(server.kubeconfig)) as client:
        assert await client.raw.node_document("n1", "routes") == {"node": "n1"}


async def test_a_kubelet_that_cannot_be_reached_is_named_before_the_deadline(
    server: Server, http: aiohttp.ClientSession, kubelet: Kubelet
) -> None:
    kind = {"Content-Type": "application/merge-patch+json"}
    nowhere = {"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": 1}}}}
    await http.patch("/api/v1/nodes/n1/status", data=json.dumps(nowhere), headers=kind)
    async with Client(load_kubeconfig(server.kubeconfig)) as client, asyncio.timeout(client.config.timeout / 2):
        with pytest.raises(ServiceUnavailable, match="the kubelet of node n1 at "):
            await client.raw.node_document("n1", "routes")


async def test_only_reading_passes_to_a_kubelet(http: aiohttp.ClientSession, kubelet: Kubelet) -> None:
    response = await http.post("/api/v1/nodes/n1/proxy/routes", json={})
    assert response.status == 405
    assert kubelet.requests == []


async def test_what_a_kubelet_lacks_and_a_node_that_is_not_there_are_told_apart(
    http: aiohttp.ClientSession, kubelet: Kubelet
) -> None:
    response = await http.get("/api/v1/nodes/n1/proxy/none")
    assert response.status == 404
    assert "kubelet of node n1" in (await response.json())["message"]
    response = await http.get("/api/v1/nodes/n2/proxy/routes")
    assert response.status == 404
    assert (await response.json())["message"] == 'nodes "n2" not found'


async def test_nodes_may_not_read_through_each_others_kubelets(server: Server, kubelet: Kubelet) -> None:
    pair = Pki.load(server.folder / "pki").issue(
        "n2", "system:node:n2", ["system:nodes"], sans=["n2"], server=False, client=True
    )
    context = ssl.create_default_context(cafile=str(server.folder / "pki" / "ca.crt"))
    context.load_cert_chain(pair.cert_path, pair.key_path)
    connector = aiohttp.TCPConnector(ssl=context)
    async with aiohttp.ClientSession(server.url, connector=connector) as session:
        response = await session.get("/api/v1/nodes/n1/proxy/routes")
    assert response.status == 403
    assert kubelet.requests == []
