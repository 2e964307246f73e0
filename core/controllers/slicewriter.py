"""Writing EndpointSlices: the fewest writes from what a controller's slices of a service say to what they should."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lightkube.models.discovery_v1 import Endpoint, EndpointSlice
from lightkube.models.meta_v1 import ObjectMeta, OwnerReference

from kernelet.core.api.errors import NotFound
from kernelet.core.client.client import Client
from kernelet.core.client.informer import Informer
from kernelet.core.controllers.access import (
    Key,
    annotations_of,
    labels_of,
    meta,
    name_of,
    namespace_of,
    to_json,
    uid_of,
)
from kernelet.core.controllers.endpoints_model import Group, plan, slice_ports
from kernelet.core.controllers.informers import SERVICE_LABEL
from kernelet.core.controllers.runtime import bounded

log = logging.getLogger(__name__)

MANAGED_BY = "endpointslice.kubernetes.io/managed-by"


@dataclass(frozen=True)
class Wanted:
    """What the slices of one service hold, and what they carry."""

    groups: Mapping[Group, list[Endpoint]]
    labels: Mapping[str, str]
    annotations: Callable[[Mapping[str, str], Sequence[Endpoint]], Mapping[str, str]]
    """Of a slice, from those it has and the endpoints in it."""
    owner: OwnerReference


class SliceWriter:
    """The slices that one controller, `manager`, keeps."""

    def __init__(self, client: Client, slices: Informer[EndpointSlice], manager: str) -> None:
        self._client = client
        self._slices = slices
        self._manager = manager
        self._newest: dict[Key, int] = {}

    def key_of(self, entry: EndpointSlice) -> Key | None:
        """The service that a slice of this manager belongs to; None for the slices of others."""
        labels = labels_of(entry)
        service = labels.get(SERVICE_LABEL)
        return (namespace_of(entry), service) if service and labels.get(MANAGED_BY) == self._manager else None

    def existing(self, key: Key) -> list[EndpointSlice]:
        """This manager's slices of a service, as the cache shows them."""
        return [entry for entry in self._slices.by_index("service", "/".join(key)) if self.key_of(entry) == key]

    def behind(self, key: Key) -> bool:
        """Whether the cache does not show our own last write yet, whose arrival is a change that wakes us again."""
        return self._slices.revision < self._newest.get(key, 0)

    def forget(self, key: Key) -> None:
        self._newest.pop(key, None)

    async def write(self, key: Key, wanted: Wanted) -> None:
        """Updates first: they hold the endpoints that left. Raises ApiError after everything was tried."""
        existing = self.existing(key)
        todo = plan(existing, wanted.groups)
        written = {name_of(entry) for entry, _ in todo.update} | {name_of(entry) for entry in todo.delete}
        for entry in existing:
            endpoints = entry.endpoints or []
            carried = wanted.annotations(annotations_of(entry), endpoints)
            if name_of(entry) not in written and (
                labels_of(entry) != self._labels(key, wanted) or annotations_of(entry) != carried
            ):
                todo.update.append((entry, list(endpoints)))
        await bounded(lambda each: self._update(key, wanted, *each), todo.update)
        await bounded(lambda each: self._create(key, wanted, *each), todo.create)
        await self.delete(todo.delete)

    async def delete(self, entries: Sequence[EndpointSlice]) -> None:
        await bounded(self._delete, entries)

    def _labels(self, key: Key, wanted: Wanted) -> dict[str, str]:
        return {**wanted.labels, SERVICE_LABEL: key[1], MANAGED_BY: self._manager}

    def _wrote(self, key: Key, written: EndpointSlice) -> None:
        self._newest[key] = max(self._newest.get(key, 0), int(meta(written).resourceVersion or 0))

    async def _update(self, key: Key, wanted: Wanted, entry: EndpointSlice, endpoints: list[Endpoint]) -> None:
        present = annotations_of(entry)
        patch = {
            "metadata": {
                "resourceVersion": meta(entry).resourceVersion,
                "labels": _replaced(labels_of(entry), self._labels(key, wanted)),
                "annotations": _replaced(present, wanted.annotations(present, endpoints)),
            },
            "endpoints": [to_json(endpoint) for endpoint in endpoints],
        }
        self._wrote(key, await self._client.patch(EndpointSlice, name_of(entry), patch, namespace_of(entry)))

    async def _create(self, key: Key, wanted: Wanted, group: Group, endpoints: list[Endpoint]) -> None:
        made = await self._client.create(
            EndpointSlice(
                apiVersion="discovery.k8s.io/v1",
                kind="EndpointSlice",
                metadata=ObjectMeta(
                    generateName=f"{key[1]}-",
                    namespace=key[0],
                    labels=self._labels(key, wanted),
                    annotations=dict(wanted.annotations({}, endpoints)) or None,
                    ownerReferences=[wanted.owner],
                ),
                addressType=group[0],
                endpoints=endpoints,
                ports=slice_ports(group),
            )
        )
        self._wrote(key, made)
        log.debug("slice made name=%s/%s endpoints=%d", namespace_of(made), name_of(made), len(endpoints))

    async def _delete(self, entry: EndpointSlice) -> None:
        try:
            await self._client.delete(EndpointSlice, name_of(entry), namespace_of(entry), uid=uid_of(entry))
        except NotFound:
            log.debug("slice is gone already name=%s/%s", namespace_of(entry), name_of(entry))


def _replaced(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str | None]:
    """The merge patch from one map to another."""
    return {**dict.fromkeys(before.keys() - after.keys()), **after}
