"""One look at a container: http, tcp, exec or grpc, with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
from lightkube.models.core_v1 import (
    Container,
    ExecAction,
    GRPCAction,
    HTTPGetAction,
    LifecycleHandler,
    Probe,
    TCPSocketAction,
)

from .plugins import Runtime, RuntimeFailure

_MAX_BODY = 10_240
_USER_AGENT = "kube-probe/1.36"


@dataclass(frozen=True, slots=True)
class Look:
    """What one look saw."""

    ok: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """What is looked at."""

    container: Container
    container_id: str
    address: str
    """The pod's address; the node's for a pod on the host network."""


class Prober:
    """Makes single looks and runs lifecycle hooks. Close it to end its connections."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            # A probe asks whether a new connection works: none is kept.
            connector = aiohttp.TCPConnector(limit=0, force_close=True, ssl=False)
            self._session = aiohttp.ClientSession(connector=connector, headers={"User-Agent": _USER_AGENT})
        return self._session

    async def look(self, probe: Probe, target: Target) -> Look:
        """Never raises but for cancellation: what goes wrong is a failed look."""
        seconds = float(probe.timeoutSeconds or 1)
        try:
            async with asyncio.timeout(seconds):
                return await self._look(probe, target, seconds)
        except TimeoutError:
            return Look(False, f"no answer within {seconds:.0f}s")
        except (aiohttp.ClientError, OSError, RuntimeFailure, ValueError) as error:
            return Look(False, str(error) or type(error).__name__)

    async def _look(self, probe: Probe, target: Target, seconds: float) -> Look:
        if probe.exec:
            return await self._exec(probe.exec, target, seconds)
        if probe.httpGet:
            return await self._get(probe.httpGet, target)
        if probe.tcpSocket:
            return await self._connect(probe.tcpSocket, target)
        if probe.grpc:
            return await _check_grpc(probe.grpc, target, seconds)
        return Look(False, "the probe names no handler: use httpGet, tcpSocket, exec or grpc")

    async def hook(self, handler: LifecycleHandler, target: Target, seconds: float) -> Look:
        """Runs a postStart or preStop handler for at most `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                if handler.exec:
                    return await self._exec(handler.exec, target, seconds)
                if handler.httpGet:
                    return await self._get(handler.httpGet, target)
                if handler.sleep:
                    await asyncio.sleep(float(handler.sleep.seconds))
                return Look(True)
        except TimeoutError:
            return Look(False, f"not done within {seconds:.0f}s")
        except (aiohttp.ClientError, OSError, RuntimeFailure, ValueError) as error:
            return Look(False, str(error) or type(error).__name__)

    async def _exec(self, action: ExecAction, target: Target, seconds: float) -> Look:
        result = await self._runtime.exec(target.container_id, action.command or [], seconds)
        return Look(result.exit_code == 0, result.output[:_MAX_BODY].decode(errors="replace").strip())

    async def _get(self, action: HTTPGetAction, target: Target) -> Look:
        port = port_number(action.port, target.container)
        host = action.host or target.address
        url = f"{(action.scheme or 'HTTP').lower()}://{_bracketed(host)}:{port}/{(action.path or '/').lstrip('/')}"
        headers = {header.name: header.value for header in action.httpHeaders or []}
        async with self._http().get(url, headers=headers, allow_redirects=False) as response:
            ok = 200 <= response.status < 400
            return Look(ok, "" if ok else f"HTTP probe failed with statuscode: {response.status}")

    async def _connect(self, action: TCPSocketAction, target: Target) -> Look:
        port = port_number(action.port, target.container)
        _, writer = await asyncio.open_connection(action.host or target.address, port)
        writer.close()
        return Look(True)


async def _check_grpc(action: GRPCAction, target: Target, seconds: float) -> Look:
    """gRPC's health checking protocol (grpc.health.v1)."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with grpc.aio.insecure_channel(f"{_bracketed(target.address)}:{action.port}") as channel:
        try:
            request = health_pb2.HealthCheckRequest(service=action.service or "")
            answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=seconds)
        except grpc.RpcError as error:
            return Look(False, str(error))
    serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    return Look(
        serving, "" if serving else f"service is {health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)}"
    )


def port_number(port: int | str, container: Container) -> int:
    """A port by number or by the name of one of the container's. Raises ValueError naming it."""
    if isinstance(port, int) or port.isdecimal():
        return int(port)
    named: Mapping[str | None, int] = {one.name: one.containerPort for one in container.ports or []}
    if port not in named:
        raise ValueError(f"container {container.name} has no port named {port!r}")
    return named[port]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
