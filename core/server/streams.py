"""The two proxied streams of the gRPC face: exec frames to gRPC messages and back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator

import msgspec

from kernelet.proto import registry_pb2 as pb

from ..api import errors
from ..api.errors import ApiError, BadRequest
from .nodeproxy import CLOSE, ERROR, RESIZE, STDERR, STDIN, STDOUT, ExecQuery, ExecSession, LogQuery

log = logging.getLogger(__name__)


def log_query(request: pb.LogsRequest) -> LogQuery:
    return LogQuery(
        follow=request.follow,
        previous=request.previous,
        timestamps=request.timestamps,
        tail_lines=request.tail_lines if request.tail_lines >= 0 else None,
        since_seconds=request.since_seconds or None,
        limit_bytes=request.limit_bytes or None,
    )


def exec_query(start: pb.ExecStart) -> ExecQuery:
    """Raises BadRequest without a command. A terminal mixes stderr into stdout."""
    if not start.command:
        raise BadRequest("you must specify at least 1 command for the container")
    return ExecQuery(tuple(start.command), stdin=start.stdin, stderr=not start.tty, tty=start.tty)


async def exchange(session: ExecSession, inputs: AsyncIterator[pb.ExecInput]) -> AsyncGenerator[pb.ExecOutput, None]:
    """Runs an exec to its end. Raises the kubelet's error where the command could not be run."""
    pump = asyncio.create_task(_send_all(session, inputs), name="exec input")
    try:
        async for frame in session:
            output = _output(frame)
            if output is not None:
                yield output
    finally:
        pump.cancel()
        await asyncio.gather(pump, return_exceptions=True)


async def _send_all(session: ExecSession, inputs: AsyncIterator[pb.ExecInput]) -> None:
    try:
        async for message in inputs:
            frame = _input(message)
            if frame is not None:
                await session.send(frame)
    except ApiError as error:
        # The reading side meets the same lost connection and reports it.
        log.debug("exec input ended early: %s", error)


def _input(message: pb.ExecInput) -> bytes | None:
    which = message.WhichOneof("frame")
    if which == "stdin":
        return bytes([STDIN]) + message.stdin
    if which == "stdin_closed":
        return bytes([CLOSE, STDIN])
    if which == "resize":
        size = {"Width": message.resize.width, "Height": message.resize.height}
        return bytes([RESIZE]) + msgspec.json.encode(size)
    return None


def _output(frame: bytes) -> pb.ExecOutput | None:
    channel, data = frame[:1], frame[1:]
    if channel == bytes([STDOUT]):
        return pb.ExecOutput(stdout=data) if data else None
    if channel == bytes([STDERR]):
        return pb.ExecOutput(stderr=data) if data else None
    if channel == bytes([ERROR]):
        return pb.ExecOutput(exit_code=exit_code(data))
    return None


def exit_code(data: bytes) -> int:
    """The exit code of the Status that ends an exec (KEP-4006). Raises the ApiError of any other failure."""
    try:
        status = msgspec.json.decode(data, type=dict)
    except msgspec.DecodeError as error:
        raise errors.InternalError(f"the kubelet's final status cannot be read: {error}") from error
    if status.get("status") == "Success":
        return 0
    if status.get("reason") == "NonZeroExitCode":
        for cause in (status.get("details") or {}).get("causes") or []:
            if cause.get("reason") == "ExitCode":
                return int(cause["message"])
    raise errors.from_status(status)
