"""Subresources: scale, binding and eviction through the registry; logs and exec through the kubelet."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

from aiohttp import WSMsgType, web

from kernelet.core.api import codec
from kernelet.core.api.errors import ApiError, BadRequest, MethodNotAllowed

from ..locate import locate, locate_node
from ..nodeproxy import ERROR, ExecQuery, ExecSession, LogQuery
from ..requests import Ref
from .answers import answer, success
from .bodies import read_object
from .context import Call
from .options import number, write_options

WEBSOCKET_PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
MAX_FRAME = 4 * 1024 * 1024
LONGEST_STREAM = 4 * 3600.0
"""Seconds after which a followed log or an exec session ends; kubelets end idle ones after as long."""


async def create(call: Call, ref: Ref) -> web.StreamResponse:
    """POST of a Binding or an Eviction."""
    written = await call.face.registry.create(call.user, ref, await read_object(call.http), write_options(call))
    body = written.json or codec.encode(success())
    return await answer(call.http, body, 201, warnings=written.warnings)


async def log(call: Call, ref: Ref) -> web.StreamResponse:
    """A container's log as plain text, streamed. Errors known before the first byte keep their HTTP status."""
    target = await locate(call.face.registry, call.user, ref, call.query("container"), "get")
    query = LogQuery(
        follow=call.flag("follow"),
        previous=call.flag("previous"),
        timestamps=call.flag("timestamps"),
        tail_lines=number(call, "tailLines"),
        since_seconds=number(call, "sinceSeconds"),
        limit_bytes=number(call, "limitBytes"),
    )
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    response.enable_chunked_encoding()
    chunks: Any = call.face.nodes.logs(target, query)
    async with aclosing(chunks):
        try:
            async with asyncio.timeout(LONGEST_STREAM) as limit:
                with call.face.stream(limit):
                    first = await anext(chunks, b"")
                    await response.prepare(call.http)
                    await response.write(first)
                    async for chunk in chunks:
                        await response.write(chunk)
        except ConnectionResetError:
            return response
        except TimeoutError:
            if not response.prepared:
                raise
    await response.write_eof()
    return response


async def execute(call: Call, ref: Ref) -> web.StreamResponse:
    """exec and attach over WebSocket (KEP-4006): frames pass between client and kubelet unchanged."""
    attach = ref.subresource == "attach"
    query = ExecQuery(
        command=tuple(call.http.query.getall("command", [])),
        stdin=call.flag("stdin"),
        stdout=call.flag("stdout"),
        stderr=call.flag("stderr"),
        tty=call.flag("tty"),
        attach=attach,
    )
    if not attach and not query.command:
        raise BadRequest("exec: the command is missing; give it as one or more `command` parameters")
    target = await locate(call.face.registry, call.user, ref, call.query("container"), "create")
    client = web.WebSocketResponse(protocols=WEBSOCKET_PROTOCOLS, max_msg_size=MAX_FRAME, heartbeat=30.0)
    offered = client.can_prepare(call.http)
    if not offered.ok:
        raise BadRequest("exec needs a WebSocket upgrade; SPDY is not supported: use kubectl 1.31 or newer")
    if offered.protocol is None:
        raise BadRequest(f"exec: the client offers no known subprotocol; use {' or '.join(WEBSOCKET_PROTOCOLS)}")
    await client.prepare(call.http)
    try:
        async with asyncio.timeout(LONGEST_STREAM) as limit, call.face.nodes.exec(target, query) as session:
            with call.face.stream(limit):
                await _splice(client, session)
    except TimeoutError:
        await client.close(code=1001, message=b"the API server stops")
    except ApiError as error:
        # After the upgrade, since kubectl takes a refused upgrade for a server without WebSockets and tries SPDY.
        await client.send_bytes(bytes([ERROR]) + codec.encode(error.to_status()))
    await client.close()
    return client


async def node_proxy(call: Call, ref: Ref, path: str) -> web.StreamResponse:
    """GET of a path of a kubelet's endpoint; nothing else passes."""
    if call.http.method != "GET":
        return await no_method(call, ref)
    target = await locate_node(call.face.registry, call.user, ref.name)
    document = await call.face.nodes.read(target, path, call.http.query_string)
    return await answer(call.http, document.body, content_type=document.content_type)


async def no_method(call: Call, ref: Ref) -> web.StreamResponse:
    raise MethodNotAllowed(
        f"the server does not allow {call.http.method} on {ref.kind.plural}/{ref.subresource}", resource=ref.kind.plural
    )


async def _splice(client: web.WebSocketResponse, session: ExecSession) -> None:
    """Copies frames both ways until the kubelet has sent its last, or the client has gone."""
    inbound = asyncio.create_task(_to_kubelet(client, session), name="exec client to kubelet")
    outbound = asyncio.create_task(_to_client(client, session), name="exec kubelet to client")
    try:
        done, _ = await asyncio.wait({inbound, outbound}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in (inbound, outbound):
            task.cancel()
        await asyncio.gather(inbound, outbound, return_exceptions=True)


async def _to_kubelet(client: web.WebSocketResponse, session: ExecSession) -> None:
    async for message in client:
        if message.type is WSMsgType.BINARY:
            await session.send(message.data)
        elif message.type is WSMsgType.TEXT:
            await session.send(message.data.encode())


async def _to_client(client: web.WebSocketResponse, session: ExecSession) -> None:
    async for frame in session:
        await client.send_bytes(frame)
