"""One run of `kernelet trace`: the service is followed in the API while its events are shown."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import click
import msgspec
from lightkube.models.core_v1 import Node, Service
from lightkube.models.discovery_v1 import EndpointSlice

from kernelet.core.api.errors import ApiError
from kernelet.core.client.client import Client
from kernelet.core.client.config import ClientConfig
from kernelet.core.client.informer import Change, Informer

from .collect import Collector
from .discover import SERVICE_LABEL, places_of, subject_of
from .errors import TraceError
from .subject import Place, Subject
from .tracer import Record, Tracer
from .view import Summary, event_json, is_telling, line

T = TypeVar("T")
_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_TABLE_SECONDS = 5.0
_ENGINE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Options:
    service: str
    namespace: str
    duration: float | None
    as_json: bool
    node: str
    """"" for all on this machine."""
    cluster: str


async def trace(config: ClientConfig, options: Options) -> None:
    """Until the duration is over, SIGINT or SIGTERM; then prints the summary. Raises TraceError, ApiError."""
    async with Client(config) as client:
        service = await client.get(Service, options.service, options.namespace)
        subject_of(service, ())
        places = places_of((await client.list(Node)).items, options.cluster, options.node)
        places = await asyncio.gather(*(_with_engine(client, place) for place in places))
        async with Followed(client, options) as followed:
            # bcc's objects and the netlink sockets belong to one thread.
            with ThreadPoolExecutor(max_workers=1, thread_name_prefix="trace") as thread:
                await _Session(options, followed, places, thread).run()


async def _with_engine(client: Client, place: Place) -> Place:
    """Knowing whether sockets are redirected there; assumed where the node does not answer."""
    try:
        async with asyncio.timeout(_ENGINE_SECONDS):
            report = await client.raw.node_document(place.node, "routes")
    except (ApiError, TimeoutError) as error:
        cause = str(error) or "no answer"
        _log.warning("node %s tells no engine, connections to pods themselves are shown too: %s", place.node, cause)
        return place
    return replace(place, redirects=report["engine"] == "ebpf")


class Followed:
    """The service as the API has it, kept up to date inside `async with`."""

    def __init__(self, client: Client, options: Options) -> None:
        namespace, name = options.namespace, options.service
        self._key = (namespace, name)
        self._services = Informer(client, Service, namespace=namespace, fields=f"metadata.name={name}")
        self._slices = Informer(client, EndpointSlice, namespace=namespace, labels=f"{SERVICE_LABEL}={name}")
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = True

    async def __aenter__(self) -> Self:
        for informer in (self._services, self._slices):
            informer.subscribe(self._note)
            self._tasks.append(asyncio.create_task(informer.run(), name="trace informer"))
        synced = asyncio.gather(self._services.synced(), self._slices.synced())
        ends: list[asyncio.Future[Any]] = [synced, *self._tasks]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        synced.cancel()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _note(self, _change: Change[Any]) -> None:
        self._changed = True

    def news(self) -> Subject | None:
        """The service, if it has changed since the last call; None also while it is gone. Raises ApiError."""
        for task in self._tasks:
            if task.done():
                task.result()
        service = self._services.get(*self._key)
        if not self._changed or service is None:
            return None
        self._changed = False
        return subject_of(service, self._slices.items())


class _Session:
    """Takes events, a batch at a time, and shows them."""

    def __init__(
        self, options: Options, followed: Followed, places: Sequence[Place], thread: ThreadPoolExecutor
    ) -> None:
        self._options = options
        self._followed = followed
        self._places = places
        self._thread = thread
        self._summary = Summary()
        self._stack = contextlib.ExitStack()
        self._shown = 0
        self._live_tables = not options.as_json and sys.stdout.isatty()

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def run(self) -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        try:
            tracer = await self._call(self._start)
            self._announce(await self._follow(tracer))
            await self._show(tracer, stop)
            self._finish(await self._call(lambda: tracer.lost))
        finally:
            await self._call(self._stack.close)

    def _start(self) -> Tracer:
        collector = self._stack.enter_context(Collector())
        return self._stack.enter_context(Tracer(collector, self._places))

    def _announce(self, subject: Subject | None) -> None:
        if subject is None:
            raise TraceError(f"service {self._options.namespace}/{self._options.service} was deleted just now")
        names = ", ".join(place.node for place in self._places)
        count = len(subject.backends)
        click.echo(f"tracing service {subject.name} ({count} backends) on {names}; Ctrl-C ends it", err=True)

    async def _follow(self, tracer: Tracer) -> Subject | None:
        subject = self._followed.news()
        if subject is not None:
            await self._call(lambda: tracer.follow(subject))
        return subject

    async def _show(self, tracer: Tracer, stop: asyncio.Event) -> None:
        begun = table_at = time.monotonic()
        duration = self._options.duration
        while not stop.is_set() and (duration is None or time.monotonic() - begun < duration):
            await self._follow(tracer)
            for record in await self._call(lambda: list(tracer.records(_POLL_SECONDS))):
                if self._options.node in ("", record.node):
                    self._print(record)
            if self._live_tables and time.monotonic() - table_at >= _TABLE_SECONDS:
                table_at = time.monotonic()
                self._table(await self._call(lambda: tracer.lost))

    def _print(self, record: Record) -> None:
        self._summary.add(record)
        if self._options.as_json:
            click.echo(_json(event_json(record, time.time())))
        elif is_telling(record):
            click.echo(line(record))

    def _table(self, lost: int) -> None:
        """Where something has happened since the last one."""
        if self._summary.events != self._shown:
            self._shown = self._summary.events
            click.echo(f"\n{self._summary.render(lost)}\n")

    def _finish(self, lost: int) -> None:
        if self._options.as_json:
            click.echo(_json(self._summary.to_json(lost)))
        else:
            click.echo(f"\n{self._summary.render(lost)}")


def _json(value: dict[str, Any]) -> str:
    return msgspec.json.encode(value).decode()
