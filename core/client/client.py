"""The typed client: the same calls as the raw one, on the lightkube models of `core.api.kinds`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from kernelet.core.api import codec
from kernelet.core.api.errors import from_status
from kernelet.core.api.kinds import KINDS
from kernelet.core.api.models import encode_model, to_model
from kernelet.core.client.calls import JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, Calls, Options, delete_options
from kernelet.core.client.config import ClientConfig
from kernelet.core.client.raw import Patch, RawClient
from kernelet.core.client.transport import Transport

__all__ = ["JSON_PATCH", "MERGE_PATCH", "STRATEGIC_PATCH", "Client", "Listing", "Options", "WatchEvent"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Listing(Generic[T]):
    items: list[T]
    revision: int
    """The store's revision of which this is a snapshot: watch from here."""


@dataclass(frozen=True, slots=True)
class WatchEvent(Generic[T]):
    type: str
    """ADDED, MODIFIED, DELETED or BOOKMARK (then `object` is None: only the revision moved on)."""
    object: T | None
    revision: int


class Client:
    """One connection to the API server, which comes back by itself.

    Every method raises the exceptions of core.api.errors: ServiceUnavailable where the server cannot be reached before
    the deadline, NotFound, Conflict and so on as the server says. `namespace` is "" for all namespaces. Must be made
    inside a running event loop; use as a context manager, or close it.
    """

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self._transport = Transport(config)
        self._calls = Calls(self._transport)
        self.raw = RawClient(self._transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._transport.close()

    async def get(self, model: type[T], name: str, namespace: str = "") -> T:
        return to_model(model, await self._calls.get(KINDS.by_model(model), name, namespace))

    async def list(self, model: type[T], namespace: str = "", *, labels: str = "", fields: str = "") -> Listing[T]:
        """The whole collection as of one revision, asked for page by page."""
        page = await self._calls.list(KINDS.by_model(model), namespace, labels, fields)
        return Listing([to_model(model, item) for item in page.items], page.revision)

    async def create(self, obj: T) -> T:
        """Raises AlreadyExists, Invalid. Sent at most once: after ServiceUnavailable it may or may not exist."""
        kind, namespace, _ = _address(obj)
        return to_model(type(obj), await self._calls.create(kind, namespace, encode_model(obj), Options()))

    async def update(self, obj: T) -> T:
        """Replaces the object. Raises Conflict when its resourceVersion is no longer current."""
        return await self._update(obj, "")

    async def update_status(self, obj: T) -> T:
        """Replaces the status alone. Raises Conflict when its resourceVersion is no longer current."""
        return await self._update(obj, "status")

    async def _update(self, obj: T, subresource: str) -> T:
        kind, namespace, name = _address(obj)
        data = encode_model(obj)
        return to_model(type(obj), await self._calls.update(kind, namespace, name, data, subresource, Options()))

    async def patch(
        self,
        model: type[T],
        name: str,
        patch: Patch,
        namespace: str = "",
        *,
        subresource: str = "",
        media_type: str = MERGE_PATCH,
    ) -> T:
        """Raises NotFound; Conflict when the patch names a metadata.resourceVersion that is not current."""
        kind, data = KINDS.by_model(model), codec.encode(patch)
        answer = await self._calls.patch(kind, namespace, name, data, media_type, subresource, Options())
        return to_model(model, answer)

    async def delete(
        self,
        model: type[Any],
        name: str,
        namespace: str = "",
        *,
        grace_period: int | None = None,
        propagation: str = "",
        uid: str = "",
    ) -> None:
        """Raises NotFound; Conflict when the object of this name has another `uid`."""
        options = delete_options(grace_period, propagation, uid)
        await self._calls.delete(KINDS.by_model(model), namespace, name, options)

    async def watch(
        self,
        model: type[T],
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        resource_version: str = "",
        bookmarks: bool = True,
        wait_for_server: bool = False,
    ) -> AsyncGenerator[WatchEvent[T], None]:
        """Changes after `resource_version`; "" begins with ADDED for all that exists.

        Runs until closed (use contextlib.aclosing where the loop may be left early). Raises Expired when the version
        is too old, ServiceUnavailable when the connection is lost, or cannot be made unless `wait_for_server`. An
        Informer copes with all of this.
        """
        kind = KINDS.by_model(model)
        stream = self._calls.watch(kind, namespace, labels, fields, resource_version, bookmarks, wait=wait_for_server)
        async with aclosing(stream) as events:
            async for event in events:
                if event.type == "ERROR":
                    raise from_status(codec.decode(event.data))
                obj = None if event.type == "BOOKMARK" else to_model(model, event.data)
                yield WatchEvent(event.type, obj, event.revision)

    async def bind(self, namespace: str, name: str, uid: str, node: str) -> None:
        """Assigns a pod to a node. Raises Conflict when it is bound already or `uid` is another pod's."""
        await self._calls.bind(namespace, name, uid, node)


def _address(obj: Any) -> tuple[Any, str, str]:
    metadata = obj.metadata
    return KINDS.by_model(type(obj)), metadata.namespace or "", metadata.name or ""
