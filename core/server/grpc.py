"""The gRPC face: proto/registry.proto over the registry, with health and reflection.

Listeners: a port that requires a client certificate, a port for bearer tokens, a unix socket that requires a client
certificate. Who calls is decided per call (`identity.py`); the face holds no semantics of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from cryptography import x509
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from kernelet.proto import registry_pb2 as pb
from kernelet.proto import registry_pb2_grpc as rpc

from ..api import codec
from ..api.errors import ApiError, BadRequest, Forbidden, InternalError, Timeout
from ..api.kinds import KINDS, Kind
from ..client.status import code_of, trailer_of
from ..security.authz import MASTERS, NODE_PREFIX, NODES
from ..security.pki import Pki, PkiError
from ..security.users import User
from .identity import Authenticate, Identifier
from .locate import locate, locate_node
from .nodeproxy import NodeProxy
from .registry import Registry
from .requests import DeleteOptions, ListOptions, Ref, WatchOptions, WriteOptions
from .streams import exchange, exec_query, log_query

log = logging.getLogger(__name__)

MESSAGE_LIMIT = 64 * 1024 * 1024
UNARY_SECONDS = 60.0
_PROXY = "proxy/"
"""Begins the subresource of a node that is a path of its kubelet's endpoint."""
"""The longest a unary call may take, whatever deadline the client sets."""
BOOTSTRAPPERS = "system:bootstrappers"
_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),
)
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class Tls:
    """PEM: the CA that signs clients, and the server's certificate and key."""

    ca: bytes
    cert: bytes
    key: bytes


class GrpcFace:
    """Serves the registry. `listen_*` before `start`; `stop` ends running calls after a grace."""

    def __init__(
        self, registry: Registry, tls: Tls, authenticate: Authenticate, nodes: NodeProxy, pki: Pki | None = None
    ) -> None:
        """`pki` signs the certificates of joining nodes; None refuses to."""
        caller = _Caller(Identifier(authenticate))
        self._tls = tls
        self._server = grpc.aio.server(options=_OPTIONS)
        rpc.add_RegistryServicer_to_server(RegistryService(registry, caller, nodes), self._server)
        rpc.add_BootstrapServicer_to_server(BootstrapService(caller, pki), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(_Health(registry), self._server)
        names = [pb.DESCRIPTOR.services_by_name[name].full_name for name in ("Registry", "Bootstrap")]
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server)

    def listen(self, address: str, *, client_certificate: bool = True) -> int:
        """Adds `host:port` or `unix:///path`; returns the port. Raises RuntimeError naming an address in use."""
        credentials = grpc.ssl_server_credentials(
            [(self._tls.key, self._tls.cert)],
            root_certificates=self._tls.ca if client_certificate else None,
            require_client_auth=client_certificate,
        )
        return int(self._server.add_secure_port(address, credentials))

    async def start(self) -> None:
        await self._server.start()

    async def stop(self, grace: float = 2.0) -> None:
        await self._server.stop(grace)


class _Caller:
    """What every call does around its own work."""

    def __init__(self, identifier: Identifier) -> None:
        self._identifier = identifier

    @asynccontextmanager
    async def answering(self, context: Context, seconds: float | None = UNARY_SECONDS) -> AsyncIterator[User]:
        """Gives the caller's identity; ends the call with the rich status of an error raised inside."""
        try:
            async with asyncio.timeout(seconds):
                yield self._identifier.user_of(context)
        except ApiError as error:
            await _abort(context, error)
        except TimeoutError:
            await _abort(context, Timeout(f"the request was not done within {seconds:.0f} s"))
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            log.exception("a call failed")
            await _abort(context, InternalError(f"internal error: {type(error).__name__}: {error}"))


async def _abort(context: Context, error: ApiError) -> None:
    await context.abort(code_of(error), error.message, trailer_of(error))


class RegistryService(rpc.RegistryServicer):
    """One method a call: translate, call the registry, translate back."""

    def __init__(self, registry: Registry, caller: _Caller, nodes: NodeProxy) -> None:
        self._registry = registry
        self._answering = caller.answering
        self._nodes = nodes

    async def Get(self, request: pb.GetRequest, context: Context) -> pb.Object:
        async with self._answering(context) as user:
            ref = _ref(request.ref)
            if ref.kind.plural == "nodes" and ref.subresource.startswith(_PROXY):
                target = await locate_node(self._registry, user, ref.name)
                return pb.Object(json=(await self._nodes.read(target, ref.subresource.removeprefix(_PROXY))).body)
            return pb.Object(json=await self._registry.get(user, ref))

    async def List(self, request: pb.ListRequest, context: Context) -> pb.ListResponse:
        async with self._answering(context) as user:
            options = ListOptions(
                label_selector=request.label_selector,
                field_selector=request.field_selector,
                limit=request.limit,
                continue_=getattr(request, "continue"),
                resource_version=request.resource_version,
            )
            found = await self._registry.list(user, _ref(request.ref), options)
            answer = pb.ListResponse(items=found.items, resource_version=found.revision, remaining=found.remaining)
            setattr(answer, "continue", found.continue_)
            return answer

    async def Create(self, request: pb.CreateRequest, context: Context) -> pb.Object:
        async with self._answering(context) as user:
            body, options = codec.decode(request.json), _write_options(request.options)
            return pb.Object(json=(await self._registry.create(user, _ref(request.ref), body, options)).json)

    async def Update(self, request: pb.UpdateRequest, context: Context) -> pb.Object:
        async with self._answering(context) as user:
            return await self._update(user, _ref(request.ref), request)

    async def UpdateStatus(self, request: pb.UpdateRequest, context: Context) -> pb.Object:
        async with self._answering(context) as user:
            ref = _ref(request.ref)
            return await self._update(user, Ref(ref.kind, ref.namespace, ref.name, "status"), request)

    async def _update(self, user: User, ref: Ref, request: pb.UpdateRequest) -> pb.Object:
        body, options = codec.decode(request.json), _write_options(request.options)
        return pb.Object(json=(await self._registry.update(user, ref, body, options)).json)

    async def Patch(self, request: pb.PatchRequest, context: Context) -> pb.Object:
        async with self._answering(context) as user:
            ref, options = _ref(request.ref), _write_options(request.options)
            return pb.Object(json=(await self._registry.patch(user, ref, request.type, request.patch, options)).json)

    async def Delete(self, request: pb.DeleteRequest, context: Context) -> pb.Object:
        async with self._answering(context) as user:
            options = _delete_options(request.options)
            return pb.Object(json=await self._registry.delete(user, _ref(request.ref), options))

    async def DeleteCollection(self, request: pb.DeleteCollectionRequest, context: Context) -> pb.ListResponse:
        async with self._answering(context) as user:
            selection = ListOptions(label_selector=request.label_selector, field_selector=request.field_selector)
            options = _delete_options(request.options)
            found = await self._registry.delete_collection(user, _ref(request.ref), selection, options)
            return pb.ListResponse(items=found.items, resource_version=found.revision)

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchEvent]:
        options = WatchOptions(
            label_selector=request.label_selector,
            field_selector=request.field_selector,
            resource_version=request.resource_version,
            bookmarks=request.bookmarks,
            send_initial_events=request.send_initial_events,
        )
        async with self._answering(context, None) as user:
            # The client learns at once that the watch stands, even where nothing happens for long.
            ref = _ref(request.ref)
            await context.send_initial_metadata(())
            async with aclosing(self._registry.watch(user, ref, options)) as events:
                async for event in events:
                    yield pb.WatchEvent(type=event.type, json=event.json, resource_version=event.revision)

    async def Bind(self, request: pb.BindRequest, context: Context) -> pb.Object:
        async with self._answering(context) as user:
            wire = await self._registry.bind(user, request.namespace, request.name, request.uid, request.node)
            return pb.Object(json=wire)

    async def Logs(self, request: pb.LogsRequest, context: Context) -> AsyncIterator[pb.LogChunk]:
        async with self._answering(context, None) as user:
            ref = Ref(_pods(), request.namespace, request.name, "log")
            target = await locate(self._registry, user, ref, request.container, "get")
            async with aclosing(self._nodes.logs(target, log_query(request))) as chunks:
                async for chunk in chunks:
                    yield pb.LogChunk(data=chunk)

    async def Exec(
        self, request_iterator: AsyncIterator[pb.ExecInput], context: Context
    ) -> AsyncIterator[pb.ExecOutput]:
        async with self._answering(context, None) as user:
            first = await anext(request_iterator, None)
            if first is None or first.WhichOneof("frame") != "start":
                raise BadRequest("exec: the first message must be `start`")
            start = first.start
            ref = Ref(_pods(), start.namespace, start.name, "exec")
            target = await locate(self._registry, user, ref, start.container, "create")
            async with (
                self._nodes.exec(target, exec_query(start)) as session,
                aclosing(exchange(session, request_iterator)) as outputs,
            ):
                async for output in outputs:
                    yield output


class BootstrapService(rpc.BootstrapServicer):
    """Signs certificates of joining nodes."""

    def __init__(self, caller: _Caller, pki: Pki | None) -> None:
        self._answering = caller.answering
        self._pki = pki

    async def SignNode(self, request: pb.SignNodeRequest, context: Context) -> pb.SignNodeResponse:
        """A certificate for client and server use, with the node's name as its one SAN."""
        async with self._answering(context) as user:
            if not {BOOTSTRAPPERS, MASTERS} & set(user.groups):
                raise Forbidden(f'User "{user.name}" may not join nodes: a token of group {BOOTSTRAPPERS} is needed')
            if self._pki is None:
                raise Forbidden("this API server signs no certificates: it was started without the CA's key")
            try:
                certificate = await asyncio.to_thread(_sign, self._pki, request.csr_pem)
            except PkiError as error:
                raise BadRequest(str(error)) from error
            return pb.SignNodeResponse(certificate_pem=certificate, ca_pem=self._pki.ca_pem)


def _sign(pki: Pki, csr_pem: bytes) -> bytes:
    try:
        names = x509.load_pem_x509_csr(csr_pem).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError as error:
        raise PkiError(f"the certificate request is unreadable: {error}") from error
    common_name = str(names[0].value) if names else ""
    node = common_name.removeprefix(NODE_PREFIX)
    if not node or node == common_name:
        raise PkiError(f"certificate request names {common_name!r}, allowed is {NODE_PREFIX}NAME")
    return pki.sign_csr(csr_pem, common_name=common_name, organizations=(NODES,), sans=(node,), server=True)


class _Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the package has no types
    """grpc.health.v1: SERVING while the registry follows its store."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def _status(self) -> Any:
        states = health_pb2.HealthCheckResponse
        return states(status=states.SERVING if self._registry.ready() else states.NOT_SERVING)

    async def Check(self, _request: Any, _context: Context) -> Any:
        return self._status()

    async def Watch(self, _request: Any, _context: Context) -> AsyncIterator[Any]:
        last = None
        while True:
            status = self._status()
            if status != last:
                yield status
            last = status
            await asyncio.sleep(1.0)


def _pods() -> Kind:
    return KINDS.by_kind("v1", "Pod")


def _ref(ref: pb.Ref) -> Ref:
    """Raises NotFound for a resource the server does not have."""
    kind = KINDS.by_plural(ref.group, ref.version, ref.resource)
    return Ref(kind, ref.namespace if kind.namespaced else "", ref.name, ref.subresource)


def _write_options(options: pb.WriteOptions) -> WriteOptions:
    return WriteOptions(options.field_manager, options.dry_run, options.field_validation or "Warn")


def _delete_options(options: pb.DeleteOptions) -> DeleteOptions:
    grace = options.grace_period_seconds if options.HasField("grace_period_seconds") else None
    return DeleteOptions(grace, options.propagation_policy, options.uid, options.resource_version, options.dry_run)
