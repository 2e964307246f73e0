"""Namespace deletion: everything in a namespace goes before the namespace does."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from lightkube.models.core_v1 import Namespace, NamespaceCondition

from kernelet.core.api.errors import JSON, ApiError, Conflict, MethodNotAllowed, NotFound
from kernelet.core.api.kinds import KINDS, Kind
from kernelet.core.client.informer import Change
from kernelet.core.controllers.access import Key, condition, deleting, meta, name_of, namespace_of, now, to_json
from kernelet.core.controllers.informers import Informers
from kernelet.core.controllers.runtime import Controller, bounded

log = logging.getLogger(__name__)

FINALIZER = "kubernetes"
RETRY = 1.0
"""Seconds after which what remains is looked at again, should no event say that it is gone."""


@dataclass
class Remains:
    """What one sweep left: how many objects of which kind, by which finalizers, and what could not be deleted."""

    counts: dict[str, int] = field(default_factory=dict)
    finalizers: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not self.counts and not self.failures


class NamespaceController:
    """Keys are ("", namespace)."""

    def __init__(self, informers: Informers, workers: int = 4) -> None:
        self._client = informers.client
        self._raw = informers.client.raw
        self._namespaces = informers.of(Namespace)
        self.controller = Controller("namespace", self.reconcile, workers)
        self._namespaces.subscribe(self._namespace_changed)
        for kind in KINDS:
            if kind.namespaced and kind.kind != "Event":
                informers.of(kind.model).subscribe(self._content_changed)

    def _namespace_changed(self, change: Change[Namespace]) -> None:
        if change.new is not None and deleting(change.new):
            self.controller.enqueue(("", name_of(change.new)))

    def _content_changed(self, change: Change[Any]) -> None:
        """An object that is gone may have been the last."""
        if change.new is None:
            namespace = self._namespaces.get("", namespace_of(change.object))
            if namespace is not None and deleting(namespace):
                self.controller.enqueue(("", name_of(namespace)))

    async def reconcile(self, key: Key) -> None:
        """One namespace that is being deleted: delete what is in it; finalize it once nothing is left."""
        name = key[1]
        namespace = self._namespaces.get("", name)
        if namespace is None or not deleting(namespace):
            return
        finalizers = (namespace.spec.finalizers if namespace.spec else None) or []
        if FINALIZER not in finalizers:
            return
        remains = Remains()
        for kind in KINDS:
            if kind.namespaced:
                await self._sweep(kind, name, remains)
        if remains.empty:
            await self._finalize(name, meta(namespace).uid or "")
            return
        await self._write_conditions(namespace, remains)
        self.controller.enqueue_after(key, RETRY)

    async def _sweep(self, kind: Kind, namespace: str, remains: Remains) -> None:
        """Asks every object of a kind to go, and counts those that are still there afterwards."""

        async def delete(obj: JSON) -> None:
            found = obj["metadata"]
            try:
                left = await self._raw.delete(
                    kind, found["name"], namespace, propagation="Background", uid=found["uid"]
                )
            except (NotFound, Conflict):
                # Gone, or gone and another one in its place, which the next sweep finds.
                return
            except ApiError as error:
                remains.failures.append(f'{kind.resource_name} "{found["name"]}": {error}')
                return
            if (left.get("metadata") or {}).get("deletionTimestamp"):
                _count(remains, kind, left)

        try:
            listed = (await self._raw.list(kind, namespace)).items
        except (NotFound, MethodNotAllowed) as error:
            log.debug("kind cannot be listed kind=%s cause=%s", kind.resource_name, error)
            return
        for obj in listed:
            if obj["metadata"].get("deletionTimestamp"):
                _count(remains, kind, obj)
        await bounded(delete, [obj for obj in listed if not obj["metadata"].get("deletionTimestamp")])

    async def _finalize(self, name: str, uid: str) -> None:
        kind = KINDS.by_kind("v1", "Namespace")
        try:
            live = await self._raw.get(kind, name)
            if live["metadata"].get("uid") != uid:
                return
            live["spec"] = {"finalizers": [entry for entry in live["spec"].get("finalizers", []) if entry != FINALIZER]}
            await self._raw.update(kind, live, subresource="finalize")
        except NotFound:
            return
        log.info("namespace is empty and gone namespace=%s", name)

    async def _write_conditions(self, namespace: Namespace, remains: Remains) -> None:
        """Says what the deletion waits for, where it is not what was said before."""
        present = (namespace.status.conditions if namespace.status else None) or []
        made = [
            _condition(
                "NamespaceDeletionContentFailure",
                "; ".join(remains.failures),
                ("ContentDeletionFailed", "ContentDeleted"),
                "All content successfully deleted, may be waiting on finalization",
            ),
            _condition(
                "NamespaceContentRemaining",
                _listed("Some resources are remaining: ", "has", "resource instances", remains.counts),
                ("SomeResourcesRemain", "ContentRemoved"),
                "All content successfully removed",
            ),
            _condition(
                "NamespaceFinalizersRemaining",
                _listed(
                    "Some content in the namespace has finalizers remaining: ", "in", "instances", remains.finalizers
                ),
                ("SomeFinalizersRemain", "ContentHasNoFinalizers"),
                "All content-preserving finalizers finished",
            ),
        ]
        if all(_says_same(condition(present, entry.type), entry) for entry in made):
            return
        kept = [entry for entry in present if condition(made, entry.type) is None]
        patch = {"status": {"conditions": [to_json(entry) for entry in (*kept, *made)]}}
        try:
            await self._client.patch(Namespace, name_of(namespace), patch, subresource="status")
        except NotFound:
            log.debug("namespace went away while its status was written namespace=%s", name_of(namespace))


def _count(remains: Remains, kind: Kind, obj: JSON) -> None:
    remains.counts[kind.resource_name] = remains.counts.get(kind.resource_name, 0) + 1
    for finalizer in obj["metadata"].get("finalizers") or []:
        remains.finalizers[finalizer] = remains.finalizers.get(finalizer, 0) + 1


def _listed(start: str, word: str, what: str, counts: dict[str, int]) -> str:
    parts = [f"{name} {word} {count} {what}" for name, count in sorted(counts.items())]
    return start + ", ".join(parts) if parts else ""


def _condition(kind: str, problem: str, reasons: tuple[str, str], fine: str) -> NamespaceCondition:
    return NamespaceCondition(
        type=kind,
        status="True" if problem else "False",
        reason=reasons[0] if problem else reasons[1],
        message=problem or fine,
        lastTransitionTime=now(),
    )


def _says_same(old: NamespaceCondition | None, new: NamespaceCondition) -> bool:
    return old is not None and (old.status, old.reason, old.message) == (new.status, new.reason, new.message)
