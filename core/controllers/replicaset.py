"""Keeps the wanted number of pods for ReplicaSets and ReplicationControllers: one implementation for both kinds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Generic

from lightkube.models.core_v1 import Pod
from lightkube.models.meta_v1 import ObjectMeta

from kernelet.core.api.errors import ApiError, Forbidden, NotFound
from kernelet.core.client.events import EventRecorder
from kernelet.core.client.informer import Change, Informer
from kernelet.core.controllers import pods as pod_facts
from kernelet.core.controllers.access import (
    Key,
    condition,
    controller_of,
    controller_reference,
    deleting,
    key_of,
    labels_of,
    meta,
    name_of,
    namespace_of,
    now,
    to_json,
    uid_of,
)
from kernelet.core.controllers.claims import Claims
from kernelet.core.controllers.informers import Informers
from kernelet.core.controllers.replicas import (
    Counts,
    R,
    ReplicaKind,
    min_ready_seconds,
    selector_of,
    template_of,
    wanted,
)
from kernelet.core.controllers.runtime import Controller, Expectations, SlowStartError, bounded, slow_start

log = logging.getLogger(__name__)

BURST = 500
"""Pods created or deleted at most in one reconcile."""


class ReplicaController(Generic[R]):
    """One per kind. Workers never meet on one owner, so that expectations need no lock."""

    def __init__(self, informers: Informers, recorder: EventRecorder, kind: ReplicaKind[R], workers: int = 5) -> None:
        self._client = informers.client
        self._recorder = recorder
        self._kind: ReplicaKind[R] = kind
        self._owners: Informer[R] = informers.of(kind.model)
        self._pods = informers.of(Pod)
        self._claims = Claims(self._client, self._pods, Pod, kind.model, kind.api_version, kind.kind)
        self._expectations = Expectations()
        self.controller = Controller(kind.kind.lower(), self.reconcile, workers)
        self._owners.subscribe(self._owner_changed)
        self._pods.subscribe(self._pod_changed)

    def _owner_changed(self, change: Change[R]) -> None:
        key = key_of(change.object)
        if change.new is None:
            self._expectations.forget(key)
        self.controller.enqueue(key)

    def _pod_changed(self, change: Change[Pod]) -> None:
        """Takes the change off what is expected and wakes the owners of before and after."""
        old, new = change.old, change.new
        if new is not None and old is None and not deleting(new):
            self._observe(new, lambda key: self._expectations.creation_observed(key))
        going = old if new is None else new
        if going is not None and (new is None or deleting(new)):
            uid = uid_of(going)
            self._observe(going, lambda key: self._expectations.deletion_observed(key, uid))
        for pod in (old, new):
            if pod is not None:
                self._wake(pod)

    def _observe(self, pod: Pod, note: Callable[[Key], None]) -> None:
        owner = controller_of(pod)
        if owner is not None and owner.kind == self._kind.kind:
            note((namespace_of(pod), owner.name))

    def _wake(self, pod: Pod) -> None:
        owner = controller_of(pod)
        if owner is not None:
            if owner.kind == self._kind.kind:
                self.controller.enqueue((namespace_of(pod), owner.name))
            return
        for candidate in self._owners.by_index("namespace", namespace_of(pod)):
            if selector_of(candidate).matches(labels_of(pod)):
                self.controller.enqueue(key_of(candidate))

    async def reconcile(self, key: Key) -> None:
        """One owner: claim its pods, create or delete the difference, write the status if it changed."""
        owner = self._owners.get(*key)
        if owner is None:
            self._expectations.forget(key)
            return
        in_step = self._expectations.satisfied(key)
        pods = await self._claims.claim(owner, selector_of(owner))
        failure: Exception | None = None
        if in_step and not deleting(owner):
            try:
                await self._manage(key, owner, [pod for pod in pods if pod_facts.active(pod)])
            except (ApiError, SlowStartError) as error:
                failure = error
        await self._write_status(owner, pods, failure)
        self._wake_when_available(key, owner, pods)
        if failure is not None:
            raise failure.first if isinstance(failure, SlowStartError) else failure

    async def _manage(self, key: Key, owner: R, pods: list[Pod]) -> None:
        missing = wanted(owner) - len(pods)
        if missing > 0:
            await self._create(key, owner, min(missing, BURST))
        elif missing < 0:
            surplus = pod_facts.to_delete(pods, self._related(owner), min(-missing, BURST), now())
            await self._delete(key, owner, surplus)

    async def _create(self, key: Key, owner: R, count: int) -> None:
        self._expectations.expect_creations(key, count)
        started = 0

        async def create(_: int) -> None:
            nonlocal started
            started += 1
            try:
                made = await self._client.create(self._new_pod(owner))
            except ApiError as error:
                self._expectations.creation_observed(key)
                self._recorder.event(owner, "Warning", "FailedCreate", f"Error creating: {error}")
                raise
            self._recorder.event(owner, "Normal", "SuccessfulCreate", f"Created pod: {name_of(made)}")

        try:
            await slow_start(count, create)
        except SlowStartError as error:
            if not _namespace_ends(error.first):
                raise
        finally:
            # What was never tried will never be seen.
            self._expectations.creation_observed(key, count - started)

    def _new_pod(self, owner: R) -> Pod:
        template = template_of(owner)
        found = template.metadata or ObjectMeta()
        return Pod(
            apiVersion="v1",
            kind="Pod",
            metadata=ObjectMeta(
                generateName=f"{name_of(owner)}-",
                namespace=namespace_of(owner),
                labels=found.labels,
                annotations=found.annotations,
                finalizers=found.finalizers,
                ownerReferences=[controller_reference(owner, self._kind.api_version, self._kind.kind)],
            ),
            spec=template.spec,
        )

    async def _delete(self, key: Key, owner: R, pods: list[Pod]) -> None:
        self._expectations.expect_deletions(key, [uid_of(pod) for pod in pods])

        async def delete(pod: Pod) -> None:
            try:
                await self._client.delete(Pod, name_of(pod), namespace_of(pod), uid=uid_of(pod))
            except ApiError as error:
                self._expectations.deletion_observed(key, uid_of(pod))
                if isinstance(error, NotFound):
                    return
                self._recorder.event(owner, "Warning", "FailedDelete", f"Error deleting: {error}")
                raise
            self._recorder.event(owner, "Normal", "SuccessfulDelete", f"Deleted pod: {name_of(pod)}")

        await bounded(delete, pods)

    def _related(self, owner: R) -> list[Pod]:
        """The pods of every owner of this kind under the same controller (the old and new sets of a deployment)."""
        parent = controller_of(owner)
        siblings: list[R] = [owner] if parent is None else self._owners.by_index("owner", parent.uid)
        return [pod for sibling in siblings for pod in self._pods.by_index("owner", uid_of(sibling))]

    def _wake_when_available(self, key: Key, owner: R, pods: list[Pod]) -> None:
        """A pod becomes available by time alone, which no event announces."""
        seconds = min_ready_seconds(owner)
        if not seconds:
            return
        moment = datetime.now(UTC)
        times = [when for pod in pods if pod_facts.active(pod) and (when := pod_facts.available_at(pod, seconds))]
        waits = [(when - moment).total_seconds() for when in times if when > moment]
        if waits:
            self.controller.enqueue_after(key, min(waits))

    async def _write_status(self, owner: R, pods: list[Pod], failure: Exception | None) -> None:
        counts = Counts.of(owner, pods, now())
        fields: dict[str, Any] = {
            "replicas": counts.replicas,
            "fullyLabeledReplicas": counts.fully_labeled,
            "readyReplicas": counts.ready,
            "availableReplicas": counts.available,
            "observedGeneration": meta(owner).generation,
            "conditions": self._conditions(owner, failure),
        }
        if self._kind.kind == "ReplicaSet":
            fields["terminatingReplicas"] = counts.terminating
        status = self._kind.status(**fields)
        old = owner.status
        if old is not None and _same(to_json(old), to_json(status)):
            return
        # A merge patch keeps fields it does not name: what fell to nothing is named as such.
        patch = {"status": fields | {"conditions": [to_json(entry) for entry in fields["conditions"]] or None}}
        try:
            await self._client.patch(self._kind.model, name_of(owner), patch, namespace_of(owner), subresource="status")
        except NotFound:
            log.debug("%s went away while its status was written name=%s", self._kind.kind, name_of(owner))

    def _conditions(self, owner: R, failure: Exception | None) -> list[Any]:
        """ReplicaFailure while creating or deleting fails; other conditions are left alone."""
        present: list[Any] = list((owner.status.conditions if owner.status else None) or [])
        others: list[Any] = [entry for entry in present if entry.type != "ReplicaFailure"]
        if failure is None:
            return others
        reason = "FailedCreate" if isinstance(failure, SlowStartError) else "FailedDelete"
        old = condition(present, "ReplicaFailure")
        if old is not None and (old.reason, old.message) == (reason, str(failure)):
            return present
        made = self._kind.condition(
            type="ReplicaFailure", status="True", reason=reason, message=str(failure), lastTransitionTime=now()
        )
        return [*others, made]


def _same(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether two statuses say the same; a zero that is left out is a zero."""
    return {key: value for key, value in old.items() if value} == {key: value for key, value in new.items() if value}


def _namespace_ends(error: BaseException) -> bool:
    """The namespace is being deleted: nothing can be created any more, and nothing needs to be."""
    return isinstance(error, Forbidden) and any(cause.reason == "NamespaceTerminating" for cause in error.causes)
