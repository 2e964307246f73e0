"""The REST face as an aiohttp application: routes a request, answers every failure with a Status."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from aiohttp import web

from kernelet.core.api import codec
from kernelet.core.api.errors import ApiError, BadRequest, InternalError, MethodNotAllowed, NotFound, RequestTooLarge

from ..requests import Ref
from . import discovery, health, objects, paths, reviews, subresources, watching
from .access import authenticate, impersonate
from .answers import JSON_TYPE, answer, failure, tagged
from .bodies import MAX_BODY
from .context import SERVER_VERSION, Call, Face
from .openapi import V2_PROTOBUF, OpenApi

log = logging.getLogger(__name__)

Handler = Callable[[Call, Ref], Awaitable[web.StreamResponse]]
T = TypeVar("T")

_VERBS: dict[str, Handler] = {
    "get": objects.get,
    "list": objects.list_,
    "watch": watching.watch,
    "create": objects.create,
    "update": objects.update,
    "patch": objects.patch,
    "delete": objects.delete,
    "deletecollection": objects.delete_collection,
}
_STATUS: dict[str, Handler] = {"get": objects.get, "update": objects.update, "patch": objects.patch}
_EXEC: dict[str, Handler] = {"get": subresources.execute, "create": subresources.execute}
_SUBRESOURCES: dict[str, dict[str, Handler]] = {
    "status": _STATUS,
    "finalize": {"update": objects.update},
    "scale": _STATUS,
    "binding": {"create": subresources.create},
    "eviction": {"create": subresources.create},
    "log": {"get": subresources.log},
    "exec": _EXEC,
    "attach": _EXEC,
}
_WRITES = frozenset(("create", "update", "patch", "delete", "deletecollection"))
_STREAMS = frozenset(("watch", "log", "exec", "attach"))


class RestApp:
    """Handles every request. `silent` are the connections that have not sent one yet."""

    def __init__(self, face: Face) -> None:
        self.face = face
        self.openapi = OpenApi(face.kinds, SERVER_VERSION)
        self.silent: set[object] = set()

    def application(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_route("*", "/{path:.*}", self.handle)
        return app

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answers; raises only what ends the connection (cancellation, a client that has gone)."""
        self.silent.discard(request.protocol)
        started = time.perf_counter()
        call: Call | None = None
        code = 500
        self.face.metrics.begin()
        try:
            response, call = await self._answer(request)
            code = response.status
            return response
        except asyncio.CancelledError:
            code = 499
            raise
        finally:
            verb, resource = (call.verb, call.resource) if call else ("", "")
            stream = verb in _STREAMS
            self.face.metrics.end(verb, resource, code, time.perf_counter() - started, stream=stream)

    async def _answer(self, request: web.Request) -> tuple[web.StreamResponse, Call | None]:
        call: Call | None = None
        try:
            if health.is_open(request.path) and request.method in ("GET", "HEAD"):
                return await self._open(request), None
            user = authenticate(request, self.face.authenticate)
            call = Call(self.face, request, impersonate(request, user, self.face.authorizer))
            return await self._route(call), call
        except ApiError as error:
            return failure(error), call
        except web.HTTPRequestEntityTooLarge:
            return failure(RequestTooLarge(f"Request entity too large: limit is {MAX_BODY} bytes")), call
        except web.HTTPException as error:
            return failure(BadRequest(error.reason)), call
        except ConnectionResetError:
            # The client has gone: there is nobody to answer.
            return web.Response(status=499), call
        except Exception:
            reference = secrets.token_hex(4)
            log.exception("request failed", extra={"method": request.method, "path": request.path, "id": reference})
            what = f"an internal error occurred; the API server's log tells more under id={reference}"
            return failure(InternalError(what)), call

    async def _open(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/version":
            return await health.version(request)
        if request.path == "/cacerts":
            return await health.ca_certificate(self.face, request)
        return await health.health(self.face, request)

    async def _route(self, call: Call) -> web.StreamResponse:
        found = paths.split(call.http.rel_url.raw_path)
        if found is None:
            return await self._document(call)
        if reviews.is_review(found):
            call.verb, call.resource = "create", found.parts[0]
            return await reviews.review(call, found)
        if not found.parts:
            _only_reads(call)
            return await discovery.resources(call, found.group, found.version)
        target = paths.resolve(found, self.face.kinds)
        ref = target.ref
        verb = paths.verb_of(call.http.method, target, target.watch or call.flag("watch"))
        handlers = _SUBRESOURCES.get(ref.subresource, {}) if ref.subresource else _VERBS
        call.verb = ref.subresource if ref.subresource in _STREAMS else verb
        call.resource = f"{ref.kind.plural}/{ref.subresource}" if ref.subresource else ref.kind.plural
        if call.resource == "nodes/proxy":
            return await subresources.node_proxy(call, ref, target.rest)
        handler = handlers.get(verb, subresources.no_method)
        if verb in _WRITES and handler is not subresources.execute:
            return await self.face.finish(handler(call, ref))
        return await handler(call, ref)

    async def _document(self, call: Call) -> web.StreamResponse:
        """Everything that is about the server, not about objects. Raises NotFound."""
        _only_reads(call)
        path = call.http.path.rstrip("/")
        if path == "":
            return await answer(call.http, codec.encode({"paths": self._known_paths()}))
        if path == "/api" or path.startswith("/apis"):
            return await discovery.groups(call, path)
        if path == "/metrics":
            return await health.metrics(call)
        if path == "/openapi/v2":
            protobuf = "protobuf" in call.http.headers.get("Accept", "")
            kind = V2_PROTOBUF if protobuf else JSON_TYPE
            return await tagged(call.http, self.openapi.v2(protobuf=protobuf), kind)
        if path == "/openapi/v3":
            return await tagged(call.http, self.openapi.index())
        if path.startswith("/openapi/v3/"):
            return await tagged(call.http, await self.openapi.document(path.removeprefix("/openapi/v3/")))
        raise NotFound("the server could not find the requested resource")

    def _known_paths(self) -> list[str]:
        versions = {f"/apis/{kind.api_version}" if kind.group else f"/api/{kind.version}" for kind in self.face.kinds}
        fixed = {"/api", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"}
        return sorted(versions | fixed)


def _only_reads(call: Call) -> None:
    if call.http.method not in ("GET", "HEAD"):
        raise MethodNotAllowed(f"the server does not allow {call.http.method} on {call.http.path}")
