"""exec over a WebSocket, in Kubernetes' channel protocol (`v5.channel.k8s.io`, and v4 without closing of channels).

Binary frames, the first byte the channel: 0 stdin, 1 stdout, 2 stderr, 3 the final Status, 4 terminal size as
{"Width", "Height"}; in v5 a frame of 255 and a channel's number closes that channel (KEP-4006).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from aiohttp import WSMsgType, web

from .plugins import ExecStream, Runtime, RuntimeFailure

log = logging.getLogger(__name__)

V5, V4 = "v5.channel.k8s.io", "v4.channel.k8s.io"
PROTOCOLS = (V5, V4)
STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
_PING_SECONDS = 30.0
_PIECE = 32 * 1024


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """What is to run, and which streams the client wants."""

    container_id: str
    command: Sequence[str]
    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool


def status_of(exit_code: int) -> dict[str, Any]:
    """The Status that ends an exec, as client-go reads it."""
    if exit_code == 0:
        return {"metadata": {}, "status": "Success"}
    return {
        "metadata": {},
        "status": "Failure",
        "reason": "NonZeroExitCode",
        "message": f"command terminated with non-zero exit code: exit status {exit_code}",
        "details": {"causes": [{"reason": "ExitCode", "message": str(exit_code)}]},
    }


def failure_status(message: str) -> dict[str, Any]:
    return {"metadata": {}, "status": "Failure", "reason": "InternalError", "message": message, "code": 500}


async def serve_exec(request: web.Request, runtime: Runtime, wanted: ExecRequest) -> web.WebSocketResponse:
    """Runs the command and carries its streams until it ends or the client leaves."""
    socket = web.WebSocketResponse(protocols=PROTOCOLS, heartbeat=_PING_SECONDS, max_msg_size=0)
    await socket.prepare(request)
    stream: ExecStream | None = None
    try:
        stream = await runtime.exec_stream(wanted.container_id, wanted.command, stdin=wanted.stdin, tty=wanted.tty)
        code = await _carry(socket, stream, wanted)
        if code is not None:
            await _send(socket, ERROR, json.dumps(status_of(code)).encode())
    except RuntimeFailure as error:
        await _send(socket, ERROR, json.dumps(failure_status(str(error))).encode())
    finally:
        if stream is not None:
            await stream.close()
        await socket.close()
    return socket


async def _carry(socket: web.WebSocketResponse, stream: ExecStream, wanted: ExecRequest) -> int | None:
    """The exit code; None when the client left before the end."""
    out = asyncio.create_task(_output(socket, stream, wanted), name="exec output")
    into = asyncio.create_task(_input(socket, stream), name="exec input")
    try:
        await asyncio.wait({out, into}, return_when=asyncio.FIRST_COMPLETED)
        if not out.done():
            # The client's side ended first: it left. A client that merely closes its stdin keeps the socket open.
            return None
        await out
        return await stream.wait()
    finally:
        for task in (out, into):
            task.cancel()
        await asyncio.wait({out, into})


async def _output(socket: web.WebSocketResponse, stream: ExecStream, wanted: ExecRequest) -> None:
    async with aclosing(stream.frames()) as frames:
        async for channel, data in frames:
            if (channel == STDOUT and wanted.stdout) or (channel == STDERR and wanted.stderr):
                for start in range(0, len(data), _PIECE):
                    await _send(socket, channel, data[start : start + _PIECE])


async def _input(socket: web.WebSocketResponse, stream: ExecStream) -> None:
    async for message in socket:
        if message.type is not WSMsgType.BINARY or not message.data:
            continue
        channel, data = message.data[0], message.data[1:]
        try:
            if channel == STDIN:
                await stream.write(data)
            elif channel == RESIZE:
                size = json.loads(data)
                await stream.resize(int(size["Width"]), int(size["Height"]))
            elif channel == CLOSE and data[:1] == bytes([STDIN]) and socket.ws_protocol == V5:
                await stream.close_stdin()
        except (ValueError, KeyError, RuntimeFailure) as error:
            log.info("a frame of an exec was not understood: channel=%d: %s", channel, error)
        except ConnectionError:
            # The process closed its standard input; its output may still come.
            log.debug("standard input of an exec is closed")


async def _send(socket: web.WebSocketResponse, channel: int, data: bytes) -> None:
    if not socket.closed:
        await socket.send_bytes(bytes([channel]) + data)
