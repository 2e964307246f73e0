"""Registry calls on bytes: what the raw client (JSON) and the typed client (models) have in common."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from kernelet.core.api.errors import NotFound
from kernelet.core.api.kinds import Kind
from kernelet.core.client.transport import Transport
from kernelet.proto import registry_pb2 as pb

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"

PAGE = 500
"""Objects asked for at a time."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a write is done. `field_validation`: Strict, Warn or Ignore fields the model does not know."""

    field_manager: str = ""
    dry_run: bool = False
    field_validation: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """Encoded objects of a collection as of `revision`; `continue_` asks for the next page."""

    items: list[bytes]
    revision: int
    continue_: str
    remaining: int


@dataclass(frozen=True, slots=True)
class ByteEvent:
    type: str
    """ADDED, MODIFIED, DELETED, BOOKMARK or ERROR (a Status)."""
    data: bytes
    revision: int


class Calls:
    """One method a verb. All raise the exceptions of core.api.errors."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def get(self, kind: Kind, name: str, namespace: str, subresource: str = "") -> bytes:
        request = pb.GetRequest(ref=reference(kind, namespace, name, subresource))
        answer = await self._transport.call(self._transport.registry.Get, request, idempotent=True)
        return bytes(answer.json)

    async def page(
        self, kind: Kind, namespace: str, labels: str, fields: str, limit: int, continue_: str = "", revision: str = ""
    ) -> Page:
        """One page. Raises Expired when `continue_` is too old."""
        request = pb.ListRequest(
            ref=reference(kind, namespace), label_selector=labels, field_selector=fields, limit=limit
        )
        setattr(request, "continue", continue_)  # A keyword in Python.
        request.resource_version = revision
        answer = await self._transport.call(self._transport.registry.List, request, idempotent=True)
        return Page(list(answer.items), answer.resource_version, getattr(answer, "continue"), answer.remaining)

    async def list(self, kind: Kind, namespace: str, labels: str, fields: str) -> Page:
        """The whole collection, as of one revision, asked for page by page. Raises Expired, rarely."""
        first = await self.page(kind, namespace, labels, fields, PAGE)
        items, token = first.items, first.continue_
        while token:
            following = await self.page(kind, namespace, labels, fields, PAGE, token)
            items += following.items
            token = following.continue_
        return Page(items, first.revision, "", 0)

    async def create(self, kind: Kind, namespace: str, data: bytes, options: Options) -> bytes:
        request = pb.CreateRequest(ref=reference(kind, namespace), json=data, options=_write_options(options))
        answer = await self._transport.call(self._transport.registry.Create, request, idempotent=False)
        return bytes(answer.json)

    async def update(
        self, kind: Kind, namespace: str, name: str, data: bytes, subresource: str, options: Options
    ) -> bytes:
        ref = reference(kind, namespace, name, subresource)
        request = pb.UpdateRequest(ref=ref, json=data, options=_write_options(options))
        registry = self._transport.registry
        method = registry.UpdateStatus if subresource == "status" else registry.Update
        answer = await self._transport.call(method, request, idempotent=True)
        return bytes(answer.json)

    async def patch(
        self, kind: Kind, namespace: str, name: str, patch: bytes, media_type: str, subresource: str, options: Options
    ) -> bytes:
        ref = reference(kind, namespace, name, subresource)
        request = pb.PatchRequest(ref=ref, type=media_type, patch=patch, options=_write_options(options))
        registry = self._transport.registry
        answer = await self._transport.call(registry.Patch, request, idempotent=media_type != JSON_PATCH)
        return bytes(answer.json)

    async def delete(self, kind: Kind, namespace: str, name: str, options: pb.DeleteOptions) -> bytes:
        """The object as it was last seen, or a Status. Raises NotFound, but not for a deletion of our own.

        An attempt whose answer was lost may have deleted the object: then the next one finds nothing, as wanted.
        """
        request = pb.DeleteRequest(ref=reference(kind, namespace, name), options=options)
        attempts = _CountingMethod(self._transport.registry.Delete)
        try:
            answer = await self._transport.call(attempts, request, idempotent=True)
        except NotFound:
            if attempts.count > 1:
                return b'{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Success"}'
            raise
        return bytes(answer.json)

    async def delete_collection(
        self, kind: Kind, namespace: str, labels: str, fields: str, options: pb.DeleteOptions
    ) -> Page:
        request = pb.DeleteCollectionRequest(
            ref=reference(kind, namespace), label_selector=labels, field_selector=fields, options=options
        )
        answer = await self._transport.call(self._transport.registry.DeleteCollection, request, idempotent=True)
        return Page(list(answer.items), answer.resource_version, "", 0)

    async def bind(self, namespace: str, name: str, uid: str, node: str) -> None:
        request = pb.BindRequest(namespace=namespace, name=name, uid=uid, node=node)
        await self._transport.call(self._transport.registry.Bind, request, idempotent=True)

    async def watch(
        self,
        kind: Kind,
        namespace: str,
        labels: str,
        fields: str,
        revision: str,
        bookmarks: bool,
        initial: bool = False,
        wait: bool = False,
    ) -> AsyncGenerator[ByteEvent, None]:
        """Changes after `revision` until the stream breaks; a lost connection raises ServiceUnavailable.

        `wait`: a connection that is not there when the watch starts is waited for.
        """
        request = pb.WatchRequest(
            ref=reference(kind, namespace),
            label_selector=labels,
            field_selector=fields,
            resource_version=revision,
            bookmarks=bookmarks,
            send_initial_events=initial,
        )
        call = self._transport.registry.Watch(request, metadata=self._transport.metadata, wait_for_ready=wait)
        async with aclosing(self._transport.stream(call)) as events:
            async for event in events:
                yield ByteEvent(event.type, event.json, event.resource_version)


class _CountingMethod:
    """A stub's method that counts how often it was sent."""

    def __init__(self, method: Any) -> None:
        self._method = method
        self.count = 0

    def __call__(self, request: Any, /, **options: Any) -> Any:
        self.count += 1
        return self._method(request, **options)


def reference(kind: Kind, namespace: str = "", name: str = "", subresource: str = "") -> pb.Ref:
    return pb.Ref(
        group=kind.group,
        version=kind.version,
        resource=kind.plural,
        namespace=namespace if kind.namespaced else "",
        name=name,
        subresource=subresource,
    )


def delete_options(
    grace_period: int | None, propagation: str, uid: str, revision: str = "", dry_run: bool = False
) -> pb.DeleteOptions:
    options = pb.DeleteOptions(propagation_policy=propagation, uid=uid, resource_version=revision, dry_run=dry_run)
    if grace_period is not None:
        options.grace_period_seconds = grace_period
    return options


def _write_options(options: Options) -> pb.WriteOptions:
    return pb.WriteOptions(
        field_manager=options.field_manager, dry_run=options.dry_run, field_validation=options.field_validation
    )
