"""Who owns what: adoption of orphans a selector matches, release of dependents it no longer matches."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from lightkube.models.meta_v1 import OwnerReference

from kernelet.core.api.errors import Conflict, NotFound
from kernelet.core.api.selectors import LabelSelector
from kernelet.core.client.client import Client
from kernelet.core.client.informer import Informer
from kernelet.core.controllers.access import (
    HasMetadata,
    controller_of,
    controller_reference,
    deleting,
    labels_of,
    meta,
    name_of,
    namespace_of,
    to_json,
    uid_of,
)

log = logging.getLogger(__name__)

ChildT = TypeVar("ChildT", bound=HasMetadata)


class Claims(Generic[ChildT]):
    """Claims dependents of one kind for owners of one kind. Every write names the resourceVersion it was decided on."""

    def __init__(
        self,
        client: Client,
        children: Informer[ChildT],
        child: type[ChildT],
        owner: type[Any],
        api_version: str,
        kind: str,
    ) -> None:
        self._client = client
        self._children = children
        self._child = child
        self._owner = owner
        self._api_version = api_version
        self._kind = kind

    def candidates(self, owner: HasMetadata) -> list[ChildT]:
        """What the owner controls and what nobody controls, in its namespace."""
        orphans = self._children.by_index("owner", f"orphan/{namespace_of(owner)}")
        return [*self._children.by_index("owner", uid_of(owner)), *orphans]

    async def claim(self, owner: HasMetadata, selector: LabelSelector) -> list[ChildT]:
        """The dependents the owner has after adopting and releasing. Raises Conflict when the cache was behind."""
        claimed: list[ChildT] = []
        may_adopt: bool | None = None
        for child in self.candidates(owner):
            matches = selector.matches(labels_of(child))
            if controller_of(child) is not None:
                if matches:
                    claimed.append(child)
                elif not deleting(owner):
                    await self._release(owner, child)
                continue
            if not matches or deleting(owner) or deleting(child):
                continue
            if may_adopt is None:
                may_adopt = await self._still_wants(owner)
            if may_adopt and (adopted := await self._adopt(owner, child)):
                claimed.append(adopted)
        return claimed

    async def _still_wants(self, owner: HasMetadata) -> bool:
        """Asks the server, since a cache may show an owner that was deleted and made anew."""
        live = await self._client.get(self._owner, name_of(owner), namespace_of(owner))
        if uid_of(live) != uid_of(owner):
            raise Conflict(f'{self._kind} "{name_of(owner)}" was replaced by another of this name: cannot adopt for it')
        return not deleting(live)

    async def _adopt(self, owner: HasMetadata, child: ChildT) -> ChildT | None:
        reference = controller_reference(owner, self._api_version, self._kind)
        return await self._set_owners(child, [*(meta(child).ownerReferences or []), reference])

    async def _release(self, owner: HasMetadata, child: ChildT) -> None:
        kept = [entry for entry in meta(child).ownerReferences or [] if entry.uid != uid_of(owner)]
        await self._set_owners(child, kept)

    async def _set_owners(self, child: ChildT, owners: Iterable[OwnerReference]) -> ChildT | None:
        """None where the child is gone."""
        found = meta(child)
        patch = {
            "metadata": {
                "uid": found.uid,
                "resourceVersion": found.resourceVersion,
                "ownerReferences": [to_json(entry) for entry in owners],
            }
        }
        try:
            return await self._client.patch(self._child, name_of(child), patch, namespace_of(child))
        except NotFound:
            return None
