"""The kubelet's HTTPS endpoint: health, pods, logs, exec, metrics, and this node's routes.

Every client shows a certificate of the cluster's CA, and only the API server (CN kernelet-apiserver) and administrators
(O system:masters) are served: others get 403. Paths and parameters are Kubernetes', but for /routes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol

import msgspec
from aiohttp import web
from lightkube.models.core_v1 import Pod

from .execsocket import ExecRequest, serve_exec
from .kit import KubeletConfig
from .metrics import Metrics
from .plugins import ContainerStatus, Runtime, RuntimeFailure

log = logging.getLogger(__name__)

ALLOWED_NAME = "kernelet-apiserver"
ALLOWED_GROUP = "system:masters"
_SHUTDOWN_SECONDS = 1.0

RoutesReport = Callable[[], Awaitable[dict[str, Any]]]
"""The node's routes as JSON. Raises RuntimeFailure."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class PodDirectory(Protocol):
    """What the endpoint asks the kubelet."""

    def pods(self) -> list[tuple[Pod, dict[str, Any]]]:
        """Pods of this node with the status last computed."""
        ...

    def container(self, namespace: str, pod: str, container: str, *, previous: bool) -> ContainerStatus | None: ...
    def pod_of(self, namespace: str, name: str) -> Pod | None: ...
    def health(self) -> str:
        """ "" when all is well, else what is not."""
        ...


def tls_context(config: KubeletConfig) -> ssl.SSLContext:
    """Requires a client certificate of the cluster's CA."""
    if not (config.cert and config.key and config.client_ca):
        raise ValueError(f"the endpoint of node {config.node} needs a certificate, its key and the client CA")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(config.cert, config.key)
    context.load_verify_locations(config.client_ca)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


class KubeletServer:
    """Serves while inside `async with`; `port` is the real one."""

    def __init__(
        self,
        config: KubeletConfig,
        runtime: Runtime,
        directory: PodDirectory,
        metrics: Metrics,
        listener: socket.socket | None = None,
        routes: RoutesReport | None = None,
    ) -> None:
        """`listener`: an already bound socket, in place of the configured address and port."""
        self._config = config
        self._runtime = runtime
        self._directory = directory
        self._metrics = metrics
        self._listener = listener
        self._report = routes
        self._runner: web.AppRunner | None = None
        self.port = config.port

    def application(self) -> web.Application:
        application = web.Application(middlewares=[_authorize, _explain])
        application.router.add_get("/healthz", self._healthz)
        application.router.add_get("/pods", self._pods)
        application.router.add_get("/metrics", self._metrics_text)
        application.router.add_get("/routes", self._routes)
        application.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        application.router.add_get("/exec/{namespace}/{pod}/{container}", self._exec)
        return application

    async def __aenter__(self) -> KubeletServer:
        self._runner = web.AppRunner(self.application(), access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
        await self._runner.setup()
        context = tls_context(self._config)
        if self._listener is not None:
            site: web.BaseSite = web.SockSite(self._runner, self._listener, ssl_context=context)
        else:
            site = web.TCPSite(self._runner, self._config.address, self._config.port, ssl_context=context)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            where = f"{self._config.address}:{self._config.port} for node {self._config.node}"
            raise RuntimeError(f"the kubelet cannot listen on {where}: {error}; is another kubelet running?") from error
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthz(self, request: web.Request) -> web.Response:
        problem = self._directory.health()
        return web.Response(text=problem or "ok", status=500 if problem else 200)

    async def _pods(self, request: web.Request) -> web.Response:
        items = []
        for pod, status in self._directory.pods():
            item = _pruned(msgspec.to_builtins(pod))
            items.append(item | ({"status": status} if status else {}))
        body = {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}
        return web.Response(body=msgspec.json.encode(body), content_type="application/json")

    async def _metrics_text(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _routes(self, request: web.Request) -> web.Response:
        if self._report is None:
            raise web.HTTPNotFound(text="this kubelet knows nothing of routes")
        return web.Response(body=msgspec.json.encode(await self._report()), content_type="application/json")

    def _found(self, request: web.Request, *, previous: bool = False) -> ContainerStatus:
        """The container a request names. Raises 404 naming what is missing."""
        namespace, pod, container = (request.match_info[part] for part in ("namespace", "pod", "container"))
        if self._directory.pod_of(namespace, pod) is None:
            raise web.HTTPNotFound(text=f'pod "{namespace}/{pod}" is not on node {self._config.node}')
        found = self._directory.container(namespace, pod, container, previous=previous)
        if found is None:
            which = "previous terminated container" if previous else "container"
            raise web.HTTPNotFound(text=f'{which} "{container}" in pod "{pod}" not found: it has not started (yet)')
        return found

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        found = self._found(request, previous=_flag(query.get("previous")))
        limit = _number(query.get("limitBytes"), "limitBytes", -1)
        chunks = self._runtime.logs(
            found.id,
            follow=_flag(query.get("follow")),
            timestamps=_flag(query.get("timestamps")),
            tail_lines=_number(query.get("tailLines"), "tailLines", -1),
            since_seconds=_number(query.get("sinceSeconds"), "sinceSeconds", 0),
        )
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        response.enable_chunked_encoding()
        async with aclosing(chunks):
            await response.prepare(request)
            async for chunk in chunks:
                piece = chunk if limit < 0 else chunk[:limit]
                limit -= len(piece) if limit >= 0 else 0
                await response.write(piece)
                if limit == 0:
                    break
        await response.write_eof()
        return response

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        found = self._found(request)
        command = query.getall("command", [])
        if not command:
            raise web.HTTPBadRequest(text="exec needs at least one `command` parameter")
        if found.pid == 0:
            raise web.HTTPConflict(text=f'container "{request.match_info["container"]}" does not run')
        # The kubelet's own parameters are input, output and error; clients of the API say stdin, stdout and stderr.
        names = {"stdin": "input", "stdout": "output", "stderr": "error", "tty": "tty"}
        streams = {name: _flag(query.get(short) or query.get(name)) for name, short in names.items()}
        return await serve_exec(request, self._runtime, ExecRequest(found.id, command, **streams))


@web.middleware
async def _authorize(request: web.Request, handler: Handler) -> web.StreamResponse:
    tls = request.transport.get_extra_info("ssl_object") if request.transport else None
    certificate = tls.getpeercert() if tls else None
    if not is_allowed(certificate or {}):
        raise web.HTTPForbidden(text=f"only {ALLOWED_NAME} and members of {ALLOWED_GROUP} may use this endpoint")
    return await handler(request)


@web.middleware
async def _explain(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except RuntimeFailure as error:
        return web.Response(text=str(error), status=500)
    except asyncio.CancelledError:
        log.debug("client of %s left", request.path)
        raise


def is_allowed(certificate: dict[str, Any]) -> bool:
    """Whether the subject of a verified certificate (as ssl.getpeercert gives it) may use the endpoint."""
    pairs = [pair for names in certificate.get("subject", ()) for pair in names]
    return ("commonName", ALLOWED_NAME) in pairs or ("organizationName", ALLOWED_GROUP) in pairs


def _flag(text: str | None) -> bool:
    return text in ("1", "true", "True")


def _number(text: str | None, name: str, default: int) -> int:
    """Raises 400 naming the parameter."""
    if not text:
        return default
    try:
        return int(text)
    except ValueError as error:
        raise web.HTTPBadRequest(text=f"{name} must be a whole number, not {text!r}") from error


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _pruned(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_pruned(item) for item in value]
    return value
