"""Owner-reference garbage collection: dependents go with the last of their owners.

Background (the default): owners go first, their dependents follow. Foreground: an owner stays, marked, until the
dependents that block it are gone. Orphan: the owner's name is taken off its dependents first. Nothing is deleted on
the word of a cache: before an owner counts as absent the server is asked, by name and uid, and the deletion names the
uid it means.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any

from kernelet.core.api.errors import JSON, Conflict, NotFound
from kernelet.core.api.kinds import KINDS, Kind
from kernelet.core.client.informer import Change
from kernelet.core.controllers.access import Key, deleting, meta
from kernelet.core.controllers.gcgraph import FOREGROUND, ORPHAN, Facts, Graph, Owner, Work
from kernelet.core.controllers.informers import Informers
from kernelet.core.controllers.runtime import Controller, bounded

log = logging.getLogger(__name__)

IGNORED = frozenset({"v1/Event"})
"""Events never own anything, and are too many to watch for what they depend on."""
REMEMBERED = 1000
DELETE, ORPHANS = "delete", "orphan"


class GarbageCollector:
    """Keys are (what to do, uid)."""

    def __init__(self, informers: Informers, workers: int = 8) -> None:
        self._raw = informers.client.raw
        self._graph = Graph()
        self._absent: OrderedDict[tuple[str, str], None] = OrderedDict()
        self.controller = Controller("garbagecollector", self.reconcile, workers)
        for kind in KINDS:
            if _resource(kind) not in IGNORED:
                self._watch(informers, kind)

    def _watch(self, informers: Informers, kind: Kind) -> None:
        resource = _resource(kind)

        def changed(change: Change[Any]) -> None:
            if change.new is None:
                self._queue(self._graph.gone(meta(change.object).uid or ""))
            else:
                self._queue(self._graph.observe(_facts_of(resource, change.new)))

        informers.of(kind.model).subscribe(changed)

    def _queue(self, work: Work) -> None:
        for uid in work.delete:
            self.controller.enqueue((DELETE, uid))
        for uid in work.orphan:
            self.controller.enqueue((ORPHANS, uid))

    async def reconcile(self, key: Key) -> None:
        """One object: delete it, cut it loose, or leave it, as its owners and its own deletion call for."""
        facts = self._graph.get(key[1])
        if facts is None:
            return
        if key[0] == ORPHANS:
            await self._orphan(facts)
        elif facts.waits_for_dependents:
            await self._wait_for_dependents(facts)
        elif not facts.deleting and facts.owners:
            await self._judge(facts)

    async def _judge(self, facts: Facts) -> None:
        """Deletes an object whose owners are all absent or wait for it; takes such owners off one that has others."""
        live = await self._live(facts)
        if live is None:
            self._queue(self._graph.gone(facts.uid))
            return
        current = _facts_of_json(facts.resource, live)
        if current.deleting:
            return
        solid, waiting, absent = await self._classify(current)
        if solid:
            if waiting or absent:
                await self._take_off(facts, live, {owner.uid for owner in (*waiting, *absent)})
            return
        if not waiting and not absent:
            return
        if waiting and self._graph.dependents(facts.uid):
            await self._delete(facts, "Foreground")
        elif ORPHAN in current.finalizers:
            await self._delete(facts, "Orphan")
        elif FOREGROUND in current.finalizers:
            await self._delete(facts, "Foreground")
        else:
            await self._delete(facts, "Background")

    async def _classify(self, facts: Facts) -> tuple[list[Owner], list[Owner], list[Owner]]:
        """(solid, waiting for their dependents, absent)"""
        solid: list[Owner] = []
        waiting: list[Owner] = []
        absent: list[Owner] = []
        for owner in facts.owners:
            state = await self._owner_state(owner, facts)
            (absent if state is None else waiting if state.waits_for_dependents else solid).append(owner)
        return solid, waiting, absent

    async def _owner_state(self, owner: Owner, dependent: Facts) -> Facts | None:
        """The owner as known or, if it is not, as the server has it; None where there is none of this uid."""
        known = self._graph.get(owner.uid)
        resource = f"{owner.api_version}/{owner.kind}"
        if known is not None and (known.resource, known.name) == (resource, owner.name):
            return known if known.namespace in ("", dependent.namespace) else None
        if (owner.uid, dependent.namespace) in self._absent:
            return None
        stands = Facts(resource, dependent.namespace, owner.name, owner.uid)
        try:
            kind = KINDS.by_kind(owner.api_version, owner.kind)
        except NotFound:
            log.debug("owner of an unknown kind is left alone owner=%s/%s", resource, owner.name)
            return stands
        if kind.namespaced and not dependent.namespace:
            return None
        try:
            live = await self._raw.get(kind, owner.name, dependent.namespace if kind.namespaced else "")
        except NotFound:
            live = {}
        if (live.get("metadata") or {}).get("uid") == owner.uid:
            return _facts_of_json(resource, live)
        self._absent[owner.uid, dependent.namespace] = None
        while len(self._absent) > REMEMBERED:
            self._absent.popitem(last=False)
        return None

    async def _wait_for_dependents(self, facts: Facts) -> None:
        """Foreground deletion: pass it on to the dependents, and let go once none blocks any more."""
        blocking = self._graph.blocking(facts.uid)
        for other in self._graph.dependents(facts.uid):
            if not other.deleting:
                self.controller.enqueue((DELETE, other.uid))
        if blocking:
            return
        await self._remove_finalizer(facts, FOREGROUND)

    async def _orphan(self, facts: Facts) -> None:
        await bounded(lambda other: self._cut_loose(other, facts.uid), self._graph.dependents(facts.uid))
        await self._remove_finalizer(facts, ORPHAN)

    async def _cut_loose(self, dependent: Facts, owner: str) -> None:
        live = await self._live(dependent)
        if live is not None:
            await self._take_off(dependent, live, {owner})

    async def _take_off(self, facts: Facts, live: JSON, owners: set[str]) -> None:
        """Removes owner references from an object; raises Conflict if it changed since it was read."""
        references = live["metadata"].get("ownerReferences") or []
        kept = [entry for entry in references if entry.get("uid") not in owners]
        if len(kept) != len(references):
            await self._patch_metadata(facts, live, {"ownerReferences": kept})

    async def _remove_finalizer(self, facts: Facts, finalizer: str) -> None:
        live = await self._live(facts)
        if live is None:
            return
        finalizers = live["metadata"].get("finalizers") or []
        if finalizer in finalizers:
            await self._patch_metadata(facts, live, {"finalizers": [name for name in finalizers if name != finalizer]})

    async def _patch_metadata(self, facts: Facts, live: JSON, fields: JSON) -> None:
        identity = {"uid": facts.uid, "resourceVersion": live["metadata"]["resourceVersion"]}
        try:
            await self._raw.patch(_kind(facts), facts.name, {"metadata": identity | fields}, facts.namespace)
        except NotFound:
            log.debug("object is gone already object=%s %s/%s", facts.resource, facts.namespace, facts.name)

    async def _live(self, facts: Facts) -> JSON | None:
        """The object as the server has it; None where it is gone or another one has its name."""
        try:
            live = await self._raw.get(_kind(facts), facts.name, facts.namespace)
        except NotFound:
            return None
        return live if live["metadata"].get("uid") == facts.uid else None

    async def _delete(self, facts: Facts, policy: str) -> None:
        log.info("collected object=%s %s/%s policy=%s", facts.resource, facts.namespace, facts.name, policy)
        try:
            await self._raw.delete(_kind(facts), facts.name, facts.namespace, propagation=policy, uid=facts.uid)
        except NotFound:
            self._queue(self._graph.gone(facts.uid))
        except Conflict as error:
            log.debug("another object has the name now object=%s cause=%s", facts.name, error)


def _resource(kind: Kind) -> str:
    return f"{kind.api_version}/{kind.kind}"


def _kind(facts: Facts) -> Kind:
    api_version, _, kind = facts.resource.rpartition("/")
    return KINDS.by_kind(api_version, kind)


def _facts_of(resource: str, obj: Any) -> Facts:
    found = meta(obj)
    owners = tuple(
        Owner(entry.apiVersion, entry.kind, entry.name, entry.uid, bool(entry.blockOwnerDeletion))
        for entry in found.ownerReferences or []
    )
    return Facts(
        resource,
        found.namespace or "",
        found.name or "",
        found.uid or "",
        owners,
        frozenset(found.finalizers or []),
        deleting(obj),
    )


def _facts_of_json(resource: str, obj: JSON) -> Facts:
    found = obj["metadata"]
    owners = tuple(
        Owner(
            entry.get("apiVersion", ""),
            entry.get("kind", ""),
            entry.get("name", ""),
            entry.get("uid", ""),
            bool(entry.get("blockOwnerDeletion")),
        )
        for entry in found.get("ownerReferences") or []
    )
    return Facts(
        resource,
        found.get("namespace", ""),
        found.get("name", ""),
        found.get("uid", ""),
        owners,
        frozenset(found.get("finalizers") or []),
        bool(found.get("deletionTimestamp")),
    )
