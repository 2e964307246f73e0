"""ConfigMaps and Secrets, watched while a pod uses them: a volume follows its source, and an idle node asks nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from lightkube.models.core_v1 import ConfigMap, Secret

from kernelet.core.client.client import Client
from kernelet.core.client.informer import Change, Informer

from .env import ConfigError

T = TypeVar("T", ConfigMap, Secret)
_Key = tuple[str, str, str]
_SYNC_SECONDS = 10.0


class Source(Protocol):
    """The objects of one pod; `env.Objects` with an end."""

    async def config_map(self, namespace: str, name: str) -> ConfigMap | None: ...
    async def secret(self, namespace: str, name: str) -> Secret | None: ...
    def release(self) -> None: ...


@dataclass
class _Watched:
    informer: Informer[Any]
    task: asyncio.Task[None]
    users: dict[str, Callable[[], None]] = field(default_factory=dict)


class ObjectCache:
    """Shares one watch per object among all pods that use it. Watches run in `group`."""

    def __init__(self, client: Client, group: asyncio.TaskGroup) -> None:
        self._client = client
        self._group = group
        self._watched: dict[_Key, _Watched] = {}

    def for_pod(self, uid: str, changed: Callable[[], None]) -> Source:
        """The objects for one pod; `changed` is called when one that the pod asked for changes."""
        return _PodObjects(self, uid, changed)

    async def get(self, model: type[T], namespace: str, name: str, user: str, changed: Callable[[], None]) -> T | None:
        """The object, or None where it does not exist. Raises ConfigError when the API server cannot tell."""
        key = (model.__name__, namespace, name)
        watched = self._watched.get(key)
        if watched is None:
            informer = Informer(self._client, model, namespace=namespace, fields=f"metadata.name={name}")
            task = self._group.create_task(informer.run(), name=f"watch {model.__name__} {namespace}/{name}")
            watched = self._watched[key] = _Watched(informer, task)
            informer.subscribe(lambda change: self._tell(key, change))
        watched.users[user] = changed
        try:
            async with asyncio.timeout(_SYNC_SECONDS):
                await watched.informer.synced()
        except TimeoutError as error:
            what = f"{model.__name__} {namespace}/{name}"
            raise ConfigError(f"{what} cannot be read: the API server does not answer; it is tried again") from error
        found: T | None = watched.informer.get(namespace, name)
        return found

    def _tell(self, key: _Key, change: Change[Any]) -> None:
        # The first list of the object is no change: who asked for it is still waiting for it.
        if change.old is None and not self._watched[key].informer.has_synced:
            return
        for changed in list(self._watched[key].users.values()):
            changed()

    def release(self, user: str) -> None:
        """The pod needs nothing any more; watches without users end."""
        for key, watched in list(self._watched.items()):
            watched.users.pop(user, None)
            if not watched.users:
                watched.task.cancel()
                del self._watched[key]


@dataclass(frozen=True, slots=True)
class _PodObjects:
    cache: ObjectCache
    uid: str
    changed: Callable[[], None]

    async def config_map(self, namespace: str, name: str) -> ConfigMap | None:
        return await self.cache.get(ConfigMap, namespace, name, self.uid, self.changed)

    async def secret(self, namespace: str, name: str) -> Secret | None:
        return await self.cache.get(Secret, namespace, name, self.uid, self.changed)

    def release(self) -> None:
        self.cache.release(self.uid)
