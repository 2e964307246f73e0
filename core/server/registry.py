"""The registry: Kubernetes' semantics over a Store, called by both faces.

Each operation authorizes its user, then calls the write path (`writes.py`, `deletion.py`, `subresources.py`), the list
path (`lists.py`) or a watch (`watches.py`). Reads are linearizable: the cache answers once it has reached the store's
newest revision.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Self

from ..api import codec
from ..api import patch as patches
from ..api.errors import JSON, BadRequest, MethodNotAllowed, NotFound
from ..api.kinds import KINDS
from ..security.authz import Authorizer
from ..security.users import User
from ..store import Store, StoreUnavailable
from . import bootstrap, subresources
from .allocators import AddressPool, Allocator, PortPool
from .deletion import Deleter
from .entries import Selection
from .failures import store_errors_translated, translated
from .lists import list_objects
from .reconcile import AllocationRepair, Compactor, EventCleaner, every
from .requests import DeleteOptions, Listing, ListOptions, Ref, WatchEvent, WatchOptions, WriteOptions, Written
from .services import Services
from .watchcache import Feed
from .watches import stream
from .writes import Change, Writer, check_fields

log = logging.getLogger(__name__)

DELETE_CONCURRENCY = 16
START_SECONDS = 30.0


@dataclass(frozen=True)
class RegistryConfig:
    """Addresses and times of one API server."""

    service_cidr: str = "10.96.0.0/16"
    """One network, or one of each family separated by a comma; services get addresses of the first unless they ask."""
    node_ports: tuple[int, int] = (30000, 32767)
    kubernetes_service_ip: str = "10.96.0.1"
    dns_service_ip: str = "10.96.0.10"
    advertise_host: str = ""
    """Address of the REST face for the Service default/kubernetes; "" publishes no endpoint."""
    advertise_port: int = 6443
    toleration_seconds: int = 30
    event_ttl_seconds: float = 3600.0
    repair_seconds: float = 60.0
    """Period of the return of leaked allocations; well above `services.SLOW_SECONDS`."""
    compact_seconds: float = 300.0
    event_clean_seconds: float = 60.0
    bootstrap: bool = True


class Registry:
    """`async with Registry(store, config) as registry:` starts the watch cache, bootstrap objects and housekeeping."""

    def __init__(
        self, store: Store, config: RegistryConfig | None = None, authorizer: Authorizer | None = None
    ) -> None:
        self.config = config or RegistryConfig()
        self.authorizer = authorizer or Authorizer()
        self.feed = Feed(store)
        self._store = store
        allocator = Allocator(store, self.feed)
        pools = [AddressPool(cidr) for cidr in self.config.service_cidr.split(",")]
        services = Services(allocator, {pool.family: pool for pool in pools}, PortPool(*self.config.node_ports))
        self._writer = Writer(store, self.feed, services, self.config.toleration_seconds)
        self._deleter = Deleter(store, self._writer)
        self._repair = AllocationRepair(store, self.feed, allocator)
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Raises StoreUnavailable."""
        await self.feed.load()
        self._start(self.feed.follow(), "watch cache")
        try:
            newest = await self._store.revision()
            if not await self.feed.wait_until(newest, START_SECONDS):
                raise StoreUnavailable(f"the store's changes up to revision {newest} did not arrive: is it overloaded?")
            await self._repair.run()
            if self.config.bootstrap:
                await bootstrap.ensure(self, self.config)
        except BaseException:
            await self.__aexit__()
            raise
        config, store = self.config, self._store
        cleaner = EventCleaner(store, self.feed, config.event_ttl_seconds)
        self._start(every(config.repair_seconds, "repair of allocations", self._repair.run), "allocations")
        self._start(every(config.event_clean_seconds, "removal of old events", cleaner.run), "events")
        self._start(every(config.compact_seconds, "compaction", Compactor(store).run), "compaction")
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def ready(self) -> bool:
        """Whether the watch cache follows the store and all housekeeping runs; for /readyz and the health service."""
        return self.feed.following and all(not task.done() for task in self._tasks)

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(_report_failure)
        self._tasks.add(task)

    def _authorize(self, user: User, verb: str, ref: Ref, name: str = "") -> None:
        kind = ref.kind
        self.authorizer.check(user, verb, kind.group, kind.plural, ref.namespace, name or ref.name, ref.subresource)

    @translated
    async def get(self, user: User, ref: Ref) -> bytes:
        """The object, or its Scale. Raises NotFound."""
        self._authorize(user, "get", ref)
        _need_name(ref)
        _need_subresource(ref, "", "status", "scale")
        entry = await self._writer.current(ref)
        return codec.encode(subresources.scale_of(entry.decode())) if ref.subresource == "scale" else entry.wire()

    @translated
    async def list(self, user: User, ref: Ref, options: ListOptions) -> Listing:
        """Raises Expired, Timeout, BadRequest."""
        self._authorize(user, "list", ref)
        return await list_objects(self.feed, self._store, ref, options)

    @translated
    async def create(self, user: User, ref: Ref, body: JSON, options: WriteOptions) -> Written:
        """A new object; or subresources: `binding` (body a Binding) and `eviction` (body an Eviction).

        Raises AlreadyExists, Invalid, NotFound or Forbidden for the namespace.
        """
        if ref.subresource == "binding":
            return await self._create_binding(user, ref, body, options)
        if ref.subresource == "eviction":
            return await self._evict(user, ref, body, options)
        _need_subresource(ref, "")
        self._authorize(user, "create", ref, _name_in(body))
        return await self._writer.create(ref, body, options)

    @translated
    async def update(self, user: User, ref: Ref, body: JSON, options: WriteOptions) -> Written:
        """Subresource `status` changes only .status, `scale` spec.replicas, `finalize` spec.finalizers, "" all else.

        Raises NotFound, Conflict, Invalid.
        """
        self._authorize(user, "update", ref)
        _need_name(ref)
        _need_subresource(ref, "", "status", "scale", "finalize")
        if ref.subresource == "scale":
            return await self._scale(ref, subresources.scale_change(ref, body), options)
        if ref.subresource == "finalize":
            return await self._writer.change(ref, subresources.finalize_change(body), options, check=False)
        return await self._change(ref, lambda _: patches.copy(body), options)

    @translated
    async def patch(self, user: User, ref: Ref, media_type: str, patch: bytes, options: WriteOptions) -> Written:
        """As update; applied again when another write came between, unless the patch names a resourceVersion."""
        self._authorize(user, "patch", ref)
        _need_name(ref)
        _need_subresource(ref, "", "status", "scale")
        if ref.subresource == "scale":
            return await self._scale(ref, subresources.scale_patch(ref, media_type, patch), options)
        return await self._change(ref, lambda old: patches.apply_patch(ref.kind, old, media_type, patch), options)

    async def _change(self, ref: Ref, change: Change, options: WriteOptions) -> Written:
        return await self._writer.change(ref, change, options, status=ref.subresource == "status")

    async def _scale(self, ref: Ref, change: Change, options: WriteOptions) -> Written:
        written = await self._writer.change(ref, change, options)
        written.json = codec.encode(subresources.scale_of(codec.decode(written.json)))
        return written

    @translated
    async def delete(self, user: User, ref: Ref, options: DeleteOptions) -> bytes:
        """The object as it stands (pods, services, what waits for finalizers) or a Status."""
        self._authorize(user, "delete", ref)
        return await self._deleter.delete(ref, options)

    @translated
    async def delete_collection(self, user: User, ref: Ref, selection: ListOptions, options: DeleteOptions) -> Listing:
        """Deletes what the selectors match; returns it as it was listed."""
        self._authorize(user, "deletecollection", ref)
        listing = await list_objects(self.feed, self._store, ref, selection)
        gate = asyncio.Semaphore(DELETE_CONCURRENCY)

        async def delete_one(wire: bytes) -> None:
            meta = codec.decode(wire)["metadata"]
            one = Ref(ref.kind, meta.get("namespace", ""), meta["name"])
            async with gate:
                try:
                    await self._deleter.delete(one, options)
                except NotFound:
                    return  # gone already, which is what was asked

        async with asyncio.TaskGroup() as group:
            for wire in listing.items:
                group.create_task(delete_one(wire))
        return listing

    async def watch(self, user: User, ref: Ref, options: WatchOptions) -> AsyncGenerator[WatchEvent, None]:
        """Raises Expired before the first event where the revision is gone; a slow reader's watch ends in ERROR."""
        self._authorize(user, "watch", ref)
        fields = f"metadata.name={ref.name}" if ref.name else ""
        fields = ",".join(part for part in (options.field_selector, fields) if part)
        selection = Selection(ref.kind, options.label_selector, fields)
        with store_errors_translated():
            async with aclosing(stream(self.feed, self._store, ref, selection, options)) as events:
                async for event in events:
                    yield event

    @translated
    async def bind(self, user: User, namespace: str, name: str, uid: str, node: str) -> bytes:
        """The bound pod. Raises NotFound, Conflict where the pod is bound, deleted or another of the same name."""
        ref = Ref(KINDS.by_kind("v1", "Pod"), namespace, name, "binding")
        self._authorize(user, "create", ref)
        if not node:
            raise BadRequest(f'binding of pod "{name}": a node name is required')
        change = subresources.bind_change(name, uid, node, {})
        return (await self._writer.change(ref, change, WriteOptions(), status=False, check=False)).json

    async def _create_binding(self, user: User, ref: Ref, body: JSON, options: WriteOptions) -> Written:
        self._authorize(user, "create", ref)
        check_fields(subresources.BINDING, body, options)
        node, uid, annotations = subresources.binding_target(body)
        change = subresources.bind_change(ref.name, uid, node, annotations)
        written = await self._writer.change(ref, change, options, check=False)
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}
        return Written(codec.encode(status), written.revision, created=True)

    async def _evict(self, user: User, ref: Ref, body: JSON, options: WriteOptions) -> Written:
        self._authorize(user, "create", ref)
        asked = body.get("deleteOptions") or {}
        if not isinstance(asked, dict):
            raise BadRequest("Eviction cannot be read: deleteOptions: expected an object")
        conditions = asked.get("preconditions") or {}
        await self._deleter.delete(
            Ref(ref.kind, ref.namespace, ref.name),
            DeleteOptions(
                grace_period_seconds=asked.get("gracePeriodSeconds"),
                uid=conditions.get("uid") or "",
                resource_version=conditions.get("resourceVersion") or "",
                dry_run=options.dry_run or bool(asked.get("dryRun")),
            ),
        )
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}
        return Written(codec.encode(status), 0, created=True)


def _report_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("task %s failed; the server is not ready any more", task.get_name(), exc_info=task.exception())


def _need_name(ref: Ref) -> None:
    if not ref.name:
        raise BadRequest(f"{ref.kind.plural}: a name is required for this operation")


def _need_subresource(ref: Ref, *supported: str) -> None:
    """The subresource exists for the kind and has this operation."""
    if not ref.subresource:
        return
    if not ref.kind.has(ref.subresource):
        raise NotFound(
            "the server could not find the requested resource", resource=ref.kind.plural, group=ref.kind.group
        )
    if ref.subresource not in supported:
        raise MethodNotAllowed(
            f"the server does not allow this method on the requested resource ({ref.kind.plural}/{ref.subresource})",
            resource=ref.kind.plural,
            group=ref.kind.group,
        )


def _name_in(body: JSON) -> str:
    meta = body.get("metadata")
    name = meta.get("name") if isinstance(meta, dict) else None
    return name if isinstance(name, str) else ""
