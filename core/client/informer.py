"""A copy of a collection, kept up to date: list once, then watch from the list's revision (client-go's reflector).

A broken stream is resumed at the last revision seen, so an API server's restart costs no new list and loses no change.
Only when that revision is no longer kept (Expired), or the server does not understand it, the collection is listed
anew, and the difference to the copy, deletions included, is told to the handlers as changes.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from kernelet.core.api.errors import (
    ApiError,
    BadRequest,
    Expired,
    MethodNotAllowed,
    ServiceUnavailable,
    Timeout,
    TooManyRequests,
)
from kernelet.core.client.client import Client, WatchEvent

T = TypeVar("T")
Key = tuple[str, str]
"""Namespace ("" for cluster-scoped kinds) and name."""

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 5.0
STEADY = 5.0
"""Seconds a watch must have lasted for the back-off to start anew."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """One change of one object: created (old is None), changed, or deleted (new is None)."""

    old: T | None
    new: T | None

    @property
    def object(self) -> T:
        """The object as it is, or as it was last seen."""
        found = self.old if self.new is None else self.new
        assert found is not None
        return found


Handler = Callable[[Change[T]], None]


class Informer(Generic[T]):
    """The objects in the copy are shared and read-only.

    Handlers run in the informer's task, in the order of the changes; they must only note what changed (add a key to a
    WorkQueue) and return. What a handler raises ends `run`. Handlers and indexes see an object only after the copy
    holds it (or, for a deletion, no longer does).
    """

    def __init__(
        self,
        client: Client,
        model: type[T],
        *,
        namespace: str = "",
        labels: str = "",
        fields: str = "",
        indexes: Mapping[str, Callable[[T], Iterable[str]]] | None = None,
    ) -> None:
        self._client = client
        self._model = model
        self._namespace = namespace
        self._labels = labels
        self._fields = fields
        self._objects: dict[Key, T] = {}
        self._index_functions = dict(indexes or {})
        self._indexes: dict[str, dict[str, dict[Key, T]]] = {name: {} for name in self._index_functions}
        self._handlers: list[Handler[T]] = []
        self._synced = asyncio.Event()
        self.revision = 0
        """The newest revision seen; 0 before the first list."""
        self.lists = 0
        """How often the collection was listed."""

    def start(self, group: asyncio.TaskGroup) -> Self:
        """Runs in a task of the group, and ends with it."""
        group.create_task(self.run(), name=f"informer {self._model.__name__}")
        return self

    async def synced(self) -> None:
        """Waits until the copy holds the first full list."""
        await self._synced.wait()

    @property
    def has_synced(self) -> bool:
        return self._synced.is_set()

    def get(self, namespace: str, name: str) -> T | None:
        return self._objects.get((namespace, name))

    def items(self) -> list[T]:
        return list(self._objects.values())

    def by_index(self, index: str, key: str) -> list[T]:
        """Objects for which the index's function gave `key`. Raises KeyError for an index not declared."""
        return list(self._indexes[index].get(key, {}).values())

    def subscribe(self, handler: Handler[T]) -> None:
        """Calls the handler for every object there is, now, and for every change from now on."""
        for obj in self.items():
            handler(Change(None, obj))
        self._handlers.append(handler)

    def unsubscribe(self, handler: Handler[T]) -> None:
        """Raises ValueError for a handler that is not subscribed."""
        self._handlers.remove(handler)

    async def run(self) -> None:
        """Keeps the copy until cancelled. Raises what a handler raises, and BadRequest for a bad selector."""
        failures = 0
        while True:
            started = time.monotonic()
            try:
                if not self.revision:
                    await self._list()
                await self._watch()
                cause = "the server ended the stream"
            except (BadRequest, MethodNotAllowed):
                if not self.revision:
                    raise
                # The list worked, so it is the revision that the server does not like: its store may be another one.
                self.revision = 0
                cause = "the server does not know the revision"
            except (ServiceUnavailable, TooManyRequests) as error:
                cause = str(error)
            except (Expired, Timeout) as error:
                # Too old for the server, or, Timeout, so new that its store must have been put back to an older state.
                self.revision, cause = 0, str(error)
            except ApiError as error:
                self.revision, cause = 0, str(error)
                _log.warning("%s cannot be watched, trying again: %s", self._model.__name__, error)
            failures = 0 if time.monotonic() - started > STEADY else failures
            pause = min(FIRST_PAUSE * 2.0**failures, LONGEST_PAUSE) * random.uniform(0.5, 1.0)
            _log.debug("watch of %s resumes at %d in %.2fs: %s", self._model.__name__, self.revision, pause, cause)
            await asyncio.sleep(pause)
            failures = min(failures + 1, 16)

    async def _list(self) -> None:
        listing = await self._client.list(self._model, self._namespace, labels=self._labels, fields=self._fields)
        self.lists += 1
        listed = {_key(obj): obj for obj in listing.items}
        for key in [key for key in self._objects if key not in listed]:
            self._apply(key, None)
        for key, obj in listed.items():
            self._apply(key, obj)
        self.revision = listing.revision
        self._synced.set()

    async def _watch(self) -> None:
        stream = self._client.watch(
            self._model,
            self._namespace,
            labels=self._labels,
            fields=self._fields,
            resource_version=str(self.revision),
            wait_for_server=True,
        )
        async with aclosing(stream) as events:
            async for event in events:
                self._on_event(event)

    def _on_event(self, event: WatchEvent[T]) -> None:
        if event.object is not None:
            self._apply(_key(event.object), None if event.type == "DELETED" else event.object, gone=event.object)
        if event.revision:
            self.revision = max(self.revision, event.revision)

    def _apply(self, key: Key, new: T | None, gone: T | None = None) -> None:
        """Puts one object's state in the copy and tells the handlers, if it is news.

        `gone` is the last state of a deleted object, which may be newer than the copy's.
        """
        old = self._objects.get(key)
        if old is None and new is None:
            return
        if old is not None and new is not None:
            if _identity(old) == _identity(new):
                return
            if _identity(old)[0] != _identity(new)[0]:
                # Deleted and created again while nobody watched: two changes, of two objects.
                self._store(key, old, None)
                self._tell(Change(old, None))
                old = None
        self._store(key, old, new)
        self._tell(Change(gone if new is None and gone is not None else old, new))

    def _store(self, key: Key, old: T | None, new: T | None) -> None:
        for name, function in self._index_functions.items():
            index = self._indexes[name]
            for entry in set(function(old)) if old is not None else ():
                index[entry].pop(key)
                if not index[entry]:
                    del index[entry]
            if new is not None:
                for entry in function(new):
                    index.setdefault(entry, {})[key] = new
        if new is None:
            self._objects.pop(key, None)
        else:
            self._objects[key] = new

    def _tell(self, change: Change[T]) -> None:
        for handler in list(self._handlers):
            handler(change)


def _key(obj: Any) -> Key:
    return obj.metadata.namespace or "", obj.metadata.name


def _identity(obj: Any) -> tuple[str | None, str | None]:
    return obj.metadata.uid, obj.metadata.resourceVersion
