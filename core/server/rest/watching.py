"""Watches: newline-delimited JSON, chunked, until the time is up, the client leaves or the server stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from aiohttp import web

from kernelet.core.api import codec
from kernelet.core.api.errors import ApiError, Expired

from ..requests import Ref, WatchEvent
from .context import Call
from .forms import check_include_object, render_event
from .negotiate import Form
from .options import watch_options

FIRST_EVENT_SECONDS = 0.01
"""How long the answer's head may wait for the first event: errors known by then keep their HTTP status."""

GRACE_SECONDS = 2.0
"""How long past timeoutSeconds the registry may take to end the watch itself, with a last bookmark."""


async def watch(call: Call, ref: Ref) -> web.StreamResponse:
    """Raises the registry's ApiError where the watch cannot begin; later ones, and Expired, arrive as ERROR events."""
    form = call.negotiate(Form.TABLE, Form.PARTIAL, Form.PARTIAL_LIST)
    include = check_include_object(call.query("includeObject"))
    options = watch_options(call, ref.name)
    events: Any = call.face.registry.watch(call.user, Ref(ref.kind, ref.namespace), options)
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Cache-Control": "no-cache, private"})
    response.enable_chunked_encoding()
    loop = asyncio.get_running_loop()
    async with aclosing(_Stream(events)) as stream:
        await stream.begin()
        try:
            async with asyncio.timeout_at(loop.time() + options.timeout_seconds + GRACE_SECONDS) as limit:
                with call.face.stream(limit):
                    await response.prepare(call.http)
                    first = True
                    async for event in stream:
                        line = render_event(ref.kind, form, event.type, event.json, event.revision, include, first)
                        await response.write(line)
                        first = False
        except TimeoutError:
            await response.write_eof()  # The server stops: to the client the same as timeoutSeconds.
            return response
        except ConnectionResetError:
            return response
    await response.write_eof()
    return response


class _Stream:
    """The registry's events, whose first one may be waited for apart; an error after the head becomes an event."""

    def __init__(self, events: AsyncIterator[WatchEvent]) -> None:
        self._events = events
        self._first: asyncio.Task[WatchEvent] | None = None

    async def begin(self) -> None:
        """Raises what the registry refuses at once, except Expired, which watchers expect as an event."""
        self._first = asyncio.ensure_future(anext(self._events))
        await asyncio.wait({self._first}, timeout=FIRST_EVENT_SECONDS)
        if self._first.done() and not self._first.cancelled():
            error = self._first.exception()
            if isinstance(error, ApiError) and not isinstance(error, Expired):
                raise error

    async def __aiter__(self) -> AsyncIterator[WatchEvent]:
        try:
            if self._first is not None:
                yield await self._first
            async for event in self._events:
                yield event
        except StopAsyncIteration:
            return
        except ApiError as error:
            yield WatchEvent("ERROR", codec.encode(error.to_status()), 0)

    async def aclose(self) -> None:
        if self._first is not None and not self._first.done():
            self._first.cancel()
            await asyncio.wait({self._first})
        close = getattr(self._events, "aclose", None)
        if close is not None:
            await close()
