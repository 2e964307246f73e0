"""The gRPC face with real TLS on loopback, asked by the client library; behind it a small kubelet."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from aiohttp import WSMsgType, web
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from lightkube.models.core_v1 import ConfigMap
from lightkube.models.meta_v1 import ObjectMeta

from kernelet.core.api import errors
from kernelet.core.api.kinds import KINDS
from kernelet.core.client.client import Client
from kernelet.core.client.config import ClientConfig
from kernelet.core.client.raw import LogOptions
from kernelet.core.client.status import DETAILS_KEY, code_of, from_rpc_error, to_rpc_status
from kernelet.core.security.pki import Pki, make_csr, subject_of
from kernelet.core.security.users import User
from kernelet.core.server.grpc import GrpcFace, Tls
from kernelet.core.server.kubelets import KubeletProxy
from kernelet.core.server.registry import Registry

from .helpers import Api, pod


@dataclass
class Cluster:
    """A served registry and its credentials."""

    registry: Registry
    pki: Pki
    port: int
    token_port: int
    socket: str

    def config(self, name: str = "admin", *groups: str, address: str = "", token: str = "") -> ClientConfig:
        if token:
            return ClientConfig(address or f"127.0.0.1:{self.token_port}", self.pki.ca_pem, token=token)
        cert, key = self.pki.issue(name.replace(":", "-"), name, groups or ("system:masters",)).read()
        return ClientConfig(address or f"127.0.0.1:{self.port}", self.pki.ca_pem, cert, key)

    def client(self, name: str = "admin", *groups: str, address: str = "", token: str = "") -> Client:
        return Client(self.config(name, *groups, address=address, token=token))


def authenticate(token: str) -> User | None:
    return User("joiner", ("system:bootstrappers",)) if token == "secret" else None


@pytest.fixture
async def cluster(registry: Registry, tmp_path: Path) -> AsyncIterator[Cluster]:
    pki = Pki.ensure(tmp_path / "pki")
    cert, key = pki.issue("server", "kernelet-apiserver", sans=("kernelet-apiserver", "127.0.0.1"), server=True).read()
    own = pki.issue("kubelet-client", "kernelet-apiserver", ("system:masters",))
    async with KubeletProxy(pki.ca_path, own.cert_path, own.key_path) as nodes:
        face = GrpcFace(registry, Tls(pki.ca_pem, cert, key), authenticate, nodes, pki)
        port = face.listen("127.0.0.1:0")
        token_port = face.listen("127.0.0.1:0", client_certificate=False)
        socket = f"unix://{tmp_path}/registry.sock"
        face.listen(socket)
        await face.start()
        yield Cluster(registry, pki, port, token_port, socket)
        await face.stop(0)


async def test_a_client_with_a_certificate_reads_writes_and_watches(cluster: Cluster) -> None:
    async with cluster.client() as client:
        made = await client.create(ConfigMap(metadata=ObjectMeta(name="a", namespace="default"), data={"k": "v"}))
        assert made.metadata is not None and made.metadata.uid
        watching = aiter(client.watch(ConfigMap, "default", resource_version=made.metadata.resourceVersion))
        pending = asyncio.ensure_future(anext(watching))
        await client.patch(ConfigMap, "a", {"data": {"k": "w"}}, "default")
        event = await asyncio.wait_for(pending, 5)
        assert (event.type, event.object.data) == ("MODIFIED", {"k": "w"})
        await watching.aclose()
        await client.delete(ConfigMap, "a", "default")
        assert (await client.list(ConfigMap, "default")).items == []


async def test_errors_arrive_with_reason_details_and_causes(cluster: Cluster) -> None:
    async with cluster.client() as client:
        with pytest.raises(errors.NotFound) as missing:
            await client.get(ConfigMap, "nothing", "default")
        assert (missing.value.name, missing.value.resource) == ("nothing", "configmaps")
        with pytest.raises(errors.Invalid) as invalid:
            await client.create(ConfigMap(metadata=ObjectMeta(name="BAD", namespace="default")))
        assert invalid.value.causes[0].field == "metadata.name"


async def test_the_certificate_says_who_calls(cluster: Cluster) -> None:
    async with cluster.client("system:node:n1", "system:nodes") as node:
        with pytest.raises(errors.Forbidden, match='User "system:node:n1" cannot create resource "configmaps"'):
            await node.create(ConfigMap(metadata=ObjectMeta(name="a", namespace="default")))


async def test_a_call_without_certificate_or_token_is_refused(cluster: Cluster) -> None:
    kind = KINDS.resolve("ns")
    async with cluster.client(token="wrong") as client:
        with pytest.raises(errors.Unauthorized):
            await client.raw.list(kind)
    credentials = grpc.ssl_channel_credentials(cluster.pki.ca_pem)
    async with grpc.aio.secure_channel(f"127.0.0.1:{cluster.port}", credentials) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_unix_socket_serves_under_the_servers_own_name(cluster: Cluster) -> None:
    async with cluster.client(address=cluster.socket) as client:
        names = [item["metadata"]["name"] for item in (await client.raw.list(KINDS.resolve("ns"))).items]
        assert "kube-system" in names


async def test_a_joining_node_gets_a_certificate_for_its_name_alone(cluster: Cluster) -> None:
    async with cluster.client(token="secret") as client:
        csr, _ = make_csr("system:node:n7", ("system:nodes",))
        certificate, ca = await client.raw.sign_node(csr)
        assert subject_of(certificate) == ("system:node:n7", ("system:nodes",))
        assert ca == cluster.pki.ca_pem
        for name, group in (
            ("admin", "system:masters"),
            ("system:node:n7", "system:masters"),
            ("system:node:", "system:nodes"),
        ):
            with pytest.raises(errors.BadRequest):
                await client.raw.sign_node(make_csr(name, (group,))[0])
    async with cluster.client("system:node:n1", "system:nodes") as node:
        with pytest.raises(errors.Forbidden, match="may not join nodes"):
            await node.raw.sign_node(csr)


async def test_health_and_reflection_answer(cluster: Cluster) -> None:
    config = cluster.config()
    credentials = grpc.ssl_channel_credentials(config.ca_pem, config.key_pem, config.cert_pem)
    async with grpc.aio.secure_channel(config.address, credentials) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING

    def services() -> list[str]:
        with grpc.secure_channel(config.address, credentials) as blocking:
            return list(ProtoReflectionDescriptorDatabase(blocking).get_services())

    assert "kernelet.registry.v1.Registry" in await asyncio.to_thread(services)


@pytest.fixture
async def kubelet(cluster: Cluster) -> AsyncIterator[int]:
    """A kubelet of node n1 that answers with what it was asked; its port."""

    async def logs(request: web.Request) -> web.StreamResponse:
        if request.match_info["container"] == "other":
            return web.Response(status=404, text="container other has no log")
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(request.path_qs.encode() + b"\n")
        await response.write(b"line 2\n")
        return response

    async def run(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=("v5.channel.k8s.io",))
        await socket.prepare(request)
        await socket.send_bytes(b"\x01" + " ".join(request.query.getall("command")).encode())
        await socket.send_bytes(b"\x02warned")
        async for message in socket:
            assert message.type is WSMsgType.BINARY
            if message.data == b"\xff\x00":
                break
            await socket.send_bytes(b"\x01" + message.data[1:].upper())
        await socket.send_bytes(
            b'\x03{"status":"Failure","reason":"NonZeroExitCode",'
            b'"details":{"causes":[{"reason":"ExitCode","message":"3"}]}}'
        )
        await socket.close()
        return socket

    app = web.Application()
    path = "{namespace}/{pod}/{container}"
    app.add_routes([web.get(f"/containerLogs/{path}", logs), web.get(f"/exec/{path}", run)])
    pair = cluster.pki.issue("n1", "system:node:n1", ("system:nodes",), sans=("n1",), server=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(cluster.pki.ca_path))
    context.load_cert_chain(pair.cert_path, pair.key_path)
    context.verify_mode = ssl.CERT_REQUIRED
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    port = runner.addresses[0][1]
    api = Api(cluster.registry)
    status = {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }
    await api.create({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n1"}, "status": status}, "")
    made = await api.create(pod("web"))
    await cluster.registry.bind(api.user, "default", "web", made["metadata"]["uid"], "n1")
    yield port
    await runner.cleanup()


async def test_logs_come_from_the_pods_kubelet(cluster: Cluster, kubelet: int) -> None:
    async with cluster.client() as client:
        options = LogOptions(follow=True, tail_lines=5)
        data = b"".join([chunk async for chunk in client.raw.logs("default", "web", options)])
        assert data == b"/containerLogs/default/web/main?follow=true&tailLines=5\nline 2\n"
        with pytest.raises(errors.BadRequest, match="container other is not valid for pod web"):
            await anext(client.raw.logs("default", "web", LogOptions(container="other")))


async def test_exec_carries_input_both_outputs_and_the_exit_code(cluster: Cluster, kubelet: int) -> None:
    async def stdin() -> AsyncIterator[bytes]:
        yield b"hello"

    async with cluster.client() as client:
        outputs = [one async for one in client.raw.exec("default", "web", ["cat", "-"], stdin=stdin())]
    assert b"".join(one.stdout or b"" for one in outputs) == b"cat -HELLO"
    assert b"".join(one.stderr or b"" for one in outputs) == b"warned"
    assert outputs[-1].exit_code == 3


async def test_a_kubelet_that_is_down_is_named(cluster: Cluster, kubelet: int) -> None:
    status = {"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": 1}}}}
    await Api(cluster.registry).patch("no", "n1", status, "status", namespace="")
    async with cluster.client() as client:
        with pytest.raises(errors.ServiceUnavailable, match=r"kubelet of node n1 at 127\.0\.0\.1:1 cannot be reached"):
            await anext(client.raw.logs("default", "web", LogOptions()))


class _Failed(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: bytes = b"") -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "told by gRPC"

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return ((DETAILS_KEY, self._details),) if self._details else ()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.not_found("pods", "web"), "NOT_FOUND"),
        (errors.AlreadyExists("a", name="web"), "ALREADY_EXISTS"),
        (errors.conflict("pods", "web"), "ABORTED"),
        (errors.Expired("gone"), "OUT_OF_RANGE"),
        (errors.invalid("Pod", "web", [errors.Cause("spec.containers", "Required value")]), "INVALID_ARGUMENT"),
        (errors.TooManyRequests("later", retry_after=3), "RESOURCE_EXHAUSTED"),
    ],
)
def test_an_error_survives_the_way_over_grpc(error: errors.ApiError, code: str) -> None:
    status = to_rpc_status(error)
    assert code_of(error).name == code and status.code == code_of(error).value[0]
    arrived = from_rpc_error(_Failed(code_of(error), status.SerializeToString()))
    assert type(arrived) is type(error) and arrived.to_status() == error.to_status()


def test_a_call_that_never_arrived_becomes_an_api_error() -> None:
    assert isinstance(from_rpc_error(_Failed(grpc.StatusCode.UNAVAILABLE)), errors.ServiceUnavailable)
    assert isinstance(from_rpc_error(_Failed(grpc.StatusCode.DEADLINE_EXCEEDED)), errors.Timeout)
