"""The registry as tests speak to it, and small objects."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

from kernelet.core.api import codec
from kernelet.core.api.kinds import KINDS
from kernelet.core.api.patch import MERGE_PATCH
from kernelet.core.security.users import SERVER, User
from kernelet.core.server.registry import Registry
from kernelet.core.server.requests import (
    DeleteOptions,
    Listing,
    ListOptions,
    Ref,
    WatchEvent,
    WatchOptions,
    WriteOptions,
    Written,
)

JSON = dict[str, Any]


class Api:
    """The registry as one user sees it, on parsed objects; kinds by kubectl's names."""

    def __init__(self, registry: Registry, user: User = SERVER) -> None:
        self.registry = registry
        self.user = user

    def ref(self, kind: str, name: str = "", namespace: str = "default", subresource: str = "") -> Ref:
        found = KINDS.resolve(kind)
        return Ref(found, namespace if found.namespaced else "", name, subresource)

    async def create(self, obj: JSON, namespace: str = "default", **options: Any) -> JSON:
        return codec.decode((await self.written(obj, namespace, **options)).json)

    async def written(self, obj: JSON, namespace: str = "default", **options: Any) -> Written:
        ref = self.ref(obj["kind"].lower(), "", namespace)
        return await self.registry.create(self.user, ref, codec.decode(codec.encode(obj)), WriteOptions(**options))

    async def get(self, kind: str, name: str, namespace: str = "default", subresource: str = "") -> JSON:
        return codec.decode(await self.registry.get(self.user, self.ref(kind, name, namespace, subresource)))

    async def update(self, obj: JSON, subresource: str = "", **options: Any) -> JSON:
        meta = obj["metadata"]
        kind = obj["kind"].lower() if obj["kind"] != "Scale" else "deployments"
        ref = self.ref(kind, meta["name"], meta.get("namespace", ""), subresource)
        return codec.decode((await self.registry.update(self.user, ref, obj, WriteOptions(**options))).json)

    async def patch(
        self,
        kind: str,
        name: str,
        patch: Any,
        subresource: str = "",
        media: str = MERGE_PATCH,
        namespace: str = "default",
    ) -> JSON:
        ref = self.ref(kind, name, namespace, subresource)
        written = await self.registry.patch(self.user, ref, media, codec.encode(patch), WriteOptions())
        return codec.decode(written.json)

    async def delete(self, kind: str, name: str, namespace: str = "default", **options: Any) -> JSON:
        ref = self.ref(kind, name, namespace)
        return codec.decode(await self.registry.delete(self.user, ref, DeleteOptions(**options)))

    async def page(self, kind: str, namespace: str = "default", **options: Any) -> Listing:
        return await self.registry.list(self.user, self.ref(kind, "", namespace), ListOptions(**options))

    async def names(self, kind: str, namespace: str = "default", **options: Any) -> list[str]:
        listing = await self.page(kind, namespace, **options)
        return [codec.decode(item)["metadata"]["name"] for item in listing.items]

    async def events(self, kind: str, count: int, namespace: str = "default", **options: Any) -> list[WatchEvent]:
        """The first `count` events of a watch."""
        found: list[WatchEvent] = []
        async with asyncio.timeout(10), aclosing(self.watch(kind, namespace, **options)) as events:
            async for event in events:
                found.append(event)
                if len(found) == count:
                    break
        return found

    def watch(self, kind: str, namespace: str = "default", **options: Any) -> Any:
        return self.registry.watch(self.user, self.ref(kind, "", namespace), WatchOptions(**options))


def pod(name: str, node: str = "", **meta: Any) -> JSON:
    spec: JSON = {"containers": [{"name": "main", "image": "web:1"}]}
    if node:
        spec["nodeName"] = node
    return {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name, **meta}, "spec": spec}


def config_map(name: str, **data: str) -> JSON:
    return {"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}, "data": data}


def service(name: str, **spec: Any) -> JSON:
    spec.setdefault("ports", [{"port": 80}])
    return {"kind": "Service", "apiVersion": "v1", "metadata": {"name": name}, "spec": spec}


def deployment(name: str, replicas: int = 1) -> JSON:
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "main", "image": "web:1"}]}}
    spec = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
    return {"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": name}, "spec": spec}
