"""The graph of owner references: who depends on whom, and what a change calls for. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

ORPHAN, FOREGROUND = "orphan", "foregroundDeletion"


@dataclass(frozen=True, slots=True)
class Owner:
    """One owner reference."""

    api_version: str
    kind: str
    name: str
    uid: str
    blocks: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What the graph keeps of an object. `resource` names its kind as `apiVersion/Kind`."""

    resource: str
    namespace: str
    name: str
    uid: str
    owners: tuple[Owner, ...] = ()
    finalizers: frozenset[str] = frozenset()
    deleting: bool = False

    @property
    def waits_for_dependents(self) -> bool:
        """Foreground deletion: the object stays until the dependents that block it are gone."""
        return self.deleting and FOREGROUND in self.finalizers

    @property
    def orphans(self) -> bool:
        return self.deleting and ORPHAN in self.finalizers


@dataclass
class Work:
    """Uids to look at: `delete` whether they must go, `orphan` to cut their dependents loose."""

    delete: list[str] = field(default_factory=list)
    orphan: list[str] = field(default_factory=list)


class Graph:
    """Objects by uid, and by owner uid their dependents, whether the owner is known or not."""

    def __init__(self) -> None:
        self._facts: dict[str, Facts] = {}
        self._dependents: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self._facts)

    def get(self, uid: str) -> Facts | None:
        return self._facts.get(uid)

    def dependents(self, uid: str) -> list[Facts]:
        """In the order of their names, so that what happens to them is the same each time."""
        found = (self._facts[other] for other in self._dependents.get(uid, ()))
        return sorted(found, key=lambda facts: (facts.resource, facts.namespace, facts.name))

    def blocking(self, uid: str) -> list[Facts]:
        """The dependents that keep a foreground deletion of `uid` waiting."""
        return [d for d in self.dependents(uid) if any(owner.uid == uid and owner.blocks for owner in d.owners)]

    def observe(self, facts: Facts) -> Work:
        """An object was created or changed."""
        old = self._facts.get(facts.uid)
        if old == facts:
            return Work()
        self._facts[facts.uid] = facts
        before = {owner.uid for owner in old.owners} if old else set()
        after = {owner.uid for owner in facts.owners}
        self._unlink(facts.uid, before - after)
        for owner in after - before:
            self._dependents.setdefault(owner, set()).add(facts.uid)
        work = Work(delete=self._waiting(before))
        if facts.owners and (old is None or old.owners != facts.owners):
            work.delete.append(facts.uid)
        if facts.waits_for_dependents and not (old and old.waits_for_dependents):
            work.delete += [facts.uid, *(other.uid for other in self.dependents(facts.uid))]
        if facts.orphans and not (old and old.orphans):
            work.orphan.append(facts.uid)
        return work

    def gone(self, uid: str) -> Work:
        """An object was deleted: its dependents may have to go, and owners that waited for it may."""
        old = self._facts.pop(uid, None)
        work = Work(delete=[other.uid for other in self.dependents(uid)])
        if old is not None:
            owners = {owner.uid for owner in old.owners}
            self._unlink(uid, owners)
            work.delete += self._waiting(owners)
        return work

    def _waiting(self, uids: Iterable[str]) -> list[str]:
        return [uid for uid in uids if (facts := self._facts.get(uid)) and facts.waits_for_dependents]

    def _unlink(self, uid: str, owners: Iterable[str]) -> None:
        for owner in owners:
            others = self._dependents.get(owner)
            if others is not None:
                others.discard(uid)
                if not others:
                    del self._dependents[owner]
