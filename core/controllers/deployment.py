"""Deployments: rolls templates out by growing one replica set and shrinking the others."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime

from lightkube.models.apps_v1 import Deployment, DeploymentStatus, ReplicaSet
from lightkube.models.core_v1 import Pod

from kernelet.core.api.errors import AlreadyExists, ApiError, Conflict, NotFound
from kernelet.core.api.selectors import LabelSelector
from kernelet.core.client.events import EventRecorder
from kernelet.core.client.informer import Change
from kernelet.core.controllers import deployment_status as judge
from kernelet.core.controllers.access import (
    Key,
    annotations_of,
    condition,
    controller_of,
    deleting,
    key_of,
    labels_of,
    meta,
    name_of,
    namespace_of,
    now,
    selector_json,
    to_json,
    uid_of,
)
from kernelet.core.controllers.claims import Claims
from kernelet.core.controllers.deployment_sets import (
    DESIRED,
    MAXIMUM,
    REVISION,
    bounds_of,
    by_age,
    find_new,
    make_set,
    next_revision,
    recreates,
    replicas_of,
    size_annotations,
    size_of,
    spec_of,
    surplus_history,
    template_hash,
    wanted_annotations,
)
from kernelet.core.controllers.informers import Informers
from kernelet.core.controllers.pods import finished
from kernelet.core.controllers.replicas import wanted
from kernelet.core.controllers.rolling import SetSize, grow, proportional, shrink
from kernelet.core.controllers.runtime import Controller

log = logging.getLogger(__name__)

HISTORY = 10
"""Old replica sets kept where spec.revisionHistoryLimit is unset."""


@dataclass
class Rollout:
    """One reconcile's view: the deployment, the set of its present template if there is one, and the others by age."""

    deployment: Deployment
    new: ReplicaSet | None
    old: list[ReplicaSet]
    note: judge.Note | None = field(default=None)

    @property
    def sets(self) -> list[ReplicaSet]:
        return [*self.old, *([self.new] if self.new else [])]

    @property
    def active(self) -> list[ReplicaSet]:
        return [entry for entry in self.sets if wanted(entry) > 0]


class DeploymentController:
    """Every write names the resourceVersion it was decided on, and no decision is made on a cache that does not show
    our own last write: the bounds of an update hold however late the cache is."""

    def __init__(self, informers: Informers, recorder: EventRecorder, workers: int = 5) -> None:
        self._client = informers.client
        self._recorder = recorder
        self._deployments = informers.of(Deployment)
        self._sets = informers.of(ReplicaSet)
        self._pods = informers.of(Pod)
        self._claims = Claims(self._client, self._sets, ReplicaSet, Deployment, "apps/v1", "Deployment")
        self._newest: dict[Key, int] = {}
        self.controller = Controller("deployment", self.reconcile, workers)
        self._deployments.subscribe(lambda change: self.controller.enqueue(key_of(change.object)))
        self._sets.subscribe(self._set_changed)
        self._pods.subscribe(self._pod_changed)

    def _set_changed(self, change: Change[ReplicaSet]) -> None:
        for entry in (change.old, change.new):
            if entry is None:
                continue
            owner = controller_of(entry)
            if owner is not None:
                if owner.kind == "Deployment":
                    self.controller.enqueue((namespace_of(entry), owner.name))
                continue
            for candidate in self._deployments.by_index("namespace", namespace_of(entry)):
                if _selector(candidate).matches(labels_of(entry)):
                    self.controller.enqueue(key_of(candidate))

    def _pod_changed(self, change: Change[Pod]) -> None:
        """Recreate waits for the last old pod to be gone."""
        if change.new is not None and not finished(change.new):
            return
        owner = controller_of(change.object)
        if owner is None or owner.kind != "ReplicaSet":
            return
        parent = self._sets.get(namespace_of(change.object), owner.name)
        grandparent = controller_of(parent) if parent else None
        if grandparent is not None and grandparent.kind == "Deployment":
            self.controller.enqueue((namespace_of(change.object), grandparent.name))

    async def reconcile(self, key: Key) -> None:
        """One deployment, one step: create or size its sets, then say in its status how things stand."""
        deployment = self._deployments.get(*key)
        if deployment is None:
            self._newest.pop(key, None)
            return
        if self._sets.revision < self._newest.get(key, 0):
            # The arrival of our own write wakes this again; the timer is for a cache that is being listed anew.
            self.controller.enqueue_after(key, 0.5)
            return
        selector = _selector(deployment)
        if selector.empty:
            message = "This deployment is selecting all pods. A non-empty selector is required."
            self._recorder.event(deployment, "Warning", "SelectingAll", message)
            return
        sets = await self._claims.claim(deployment, selector)
        new = find_new(deployment, sets)
        rollout = Rollout(deployment, new, by_age(entry for entry in sets if entry is not new))
        if not deleting(deployment):
            await self._step(rollout)
        await self._write_status(key, rollout)

    async def _step(self, rollout: Rollout) -> None:
        deployment = rollout.deployment
        if spec_of(deployment).paused:
            await self._scale_evenly(rollout)
            await self._clean_up(rollout)
        elif recreates(deployment):
            await self._recreate(rollout)
        elif _was_scaled(rollout):
            await self._scale_evenly(rollout)
        else:
            await self._roll(rollout)
        if judge.complete(deployment, judge.count(deployment, rollout.new, rollout.sets)):
            await self._clean_up(rollout)

    async def _roll(self, rollout: Rollout) -> None:
        """Grows the new set, or, where nothing is left to grow by, shrinks the old ones."""
        limits = bounds_of(rollout.deployment)
        old = [size_of(entry) for entry in rollout.old]
        new = await self._ensure_new(rollout, grow(SetSize("", 0, 0), old, limits))
        size = grow(size_of(new), old, limits)
        if size != wanted(new):
            rollout.new = await self._resize(rollout, new, size)
            return
        smaller = shrink(size_of(new), old, limits)
        await self._resize_all(rollout, smaller)

    async def _recreate(self, rollout: Rollout) -> None:
        """Old pods go, all of them, before the first new one comes."""
        old = [entry for entry in rollout.old if wanted(entry) > 0]
        if old:
            await self._resize_all(rollout, {name_of(entry): 0 for entry in old})
            return
        for entry in rollout.old:
            if any(not finished(pod) for pod in self._pods.by_index("owner", uid_of(entry))):
                return
        new = await self._ensure_new(rollout, replicas_of(rollout.deployment))
        if wanted(new) != replicas_of(rollout.deployment):
            rollout.new = await self._resize(rollout, new, replicas_of(rollout.deployment))

    async def _scale_evenly(self, rollout: Rollout) -> None:
        """The deployment's size changed: the one active set takes all of it, several share it."""
        active, limits = rollout.active, bounds_of(rollout.deployment)
        if len(active) <= 1:
            latest = active or ([rollout.new] if rollout.new else rollout.old[-1:])
            sizes = {name_of(entry): limits.replicas for entry in latest}
        elif rollout.new is not None and _saturated(rollout.new, limits.replicas):
            sizes = {name_of(entry): 0 for entry in rollout.old}
        else:
            newest_first = [size_of(entry) for entry in reversed(by_age(active))]
            sizes = proportional(newest_first, limits)
        await self._resize_all(rollout, {name_of(entry): wanted(entry) for entry in active} | sizes)

    async def _resize_all(self, rollout: Rollout, sizes: dict[str, int]) -> None:
        for entry in rollout.sets:
            size = sizes.get(name_of(entry))
            if size is not None:
                written = await self._resize(rollout, entry, size)
                rollout.old = [written if other is entry else other for other in rollout.old]
                rollout.new = written if rollout.new is entry else rollout.new

    async def _resize(self, rollout: Rollout, entry: ReplicaSet, size: int) -> ReplicaSet:
        """Writes the size and what a later scaling goes by, if either differs."""
        annotations = size_annotations(rollout.deployment)
        before = wanted(entry)
        if before == size and annotations.items() <= dict(annotations_of(entry)).items():
            return entry
        patch = {
            "metadata": {"resourceVersion": meta(entry).resourceVersion, "annotations": annotations},
            "spec": {"replicas": size},
        }
        written = await self._client.patch(ReplicaSet, name_of(entry), patch, namespace_of(entry))
        self._wrote(rollout.deployment, written)
        if before != size:
            word = "up" if size > before else "down"
            message = f"Scaled {word} replica set {name_of(entry)} from {before} to {size}"
            self._recorder.event(rollout.deployment, "Normal", "ScalingReplicaSet", message)
        return written

    async def _ensure_new(self, rollout: Rollout, size: int) -> ReplicaSet:
        """The set of the present template, made with `size` replicas where there is none, with its revision."""
        deployment, revision = rollout.deployment, next_revision(rollout.old)
        new = rollout.new
        if new is None:
            new = await self._create(rollout, size, revision)
        else:
            if condition(deployment.status.conditions if deployment.status else None, judge.PROGRESSING) is None:
                text = f'Found new replica set "{name_of(new)}"'
                rollout.note = judge.Note("FoundNewReplicaSet", text)
            new = await self._annotate(deployment, new, revision)
        rollout.new = new
        number = annotations_of(new).get(REVISION)
        if annotations_of(deployment).get(REVISION) != number:
            patch = {"metadata": {"annotations": {REVISION: number}}}
            await self._client.patch(Deployment, name_of(deployment), patch, namespace_of(deployment))
        return new

    async def _annotate(self, deployment: Deployment, new: ReplicaSet, revision: int) -> ReplicaSet:
        annotations = wanted_annotations(deployment, new, revision)
        del annotations[DESIRED], annotations[MAXIMUM]  # Written with the size alone.
        seconds = spec_of(deployment).minReadySeconds or 0
        same_seconds = ((new.spec.minReadySeconds if new.spec else 0) or 0) == seconds
        if same_seconds and annotations.items() <= dict(annotations_of(new)).items():
            return new
        patch = {
            "metadata": {"resourceVersion": meta(new).resourceVersion, "annotations": annotations},
            "spec": {"minReadySeconds": seconds},
        }
        written = await self._client.patch(ReplicaSet, name_of(new), patch, namespace_of(new))
        self._wrote(deployment, written)
        return written

    async def _create(self, rollout: Rollout, size: int, revision: int) -> ReplicaSet:
        deployment = rollout.deployment
        collisions = (deployment.status.collisionCount if deployment.status else None) or 0
        made = make_set(deployment, size, revision, collisions)
        try:
            written = await self._client.create(made)
        except AlreadyExists:
            return await self._take_existing(deployment, made, collisions)
        except ApiError as error:
            text = f'Failed to create new replica set "{name_of(made)}": {error}'
            self._recorder.event(deployment, "Warning", "ReplicaSetCreateError", text)
            raise
        self._wrote(deployment, written)
        rollout.note = judge.Note("NewReplicaSetCreated", f'Created new replica set "{name_of(written)}"')
        if size:
            text = f"Scaled up replica set {name_of(written)} from 0 to {size}"
            self._recorder.event(deployment, "Normal", "ScalingReplicaSet", text)
        return written

    async def _take_existing(self, deployment: Deployment, made: ReplicaSet, collisions: int) -> ReplicaSet:
        """The set of this name is ours from before, or the name is another template's: take the next name."""
        live = await self._client.get(ReplicaSet, name_of(made), namespace_of(made))
        owner = controller_of(live)
        if owner is not None and owner.uid == uid_of(deployment) and find_new(deployment, [live]) is not None:
            self._wrote(deployment, live)
            return live
        patch = {"status": {"collisionCount": collisions + 1}}
        await self._client.patch(Deployment, name_of(deployment), patch, namespace_of(deployment), subresource="status")
        tag = template_hash(spec_of(deployment).template, collisions)
        raise Conflict(f'replica set "{name_of(made)}" exists with another template of hash {tag}: taking another name')

    async def _clean_up(self, rollout: Rollout) -> None:
        limit = spec_of(rollout.deployment).revisionHistoryLimit
        for entry in surplus_history(rollout.old, HISTORY if limit is None else limit):
            try:
                await self._client.delete(ReplicaSet, name_of(entry), namespace_of(entry), uid=uid_of(entry))
            except NotFound:
                log.debug("old replica set is gone already name=%s/%s", *key_of(entry))

    def _wrote(self, deployment: Deployment, written: ReplicaSet) -> None:
        key = key_of(deployment)
        self._newest[key] = max(self._newest.get(key, 0), int(meta(written).resourceVersion or 0))

    async def _write_status(self, key: Key, rollout: Rollout) -> None:
        deployment, moment = rollout.deployment, now()
        status = judge.count(deployment, rollout.new, rollout.sets)
        judge.judge_available(deployment, status, moment)
        judge.judge_pause(deployment, status, moment)
        if not spec_of(deployment).paused:
            judge.judge_progress(deployment, status, rollout.new, rollout.note, moment)
        judge.judge_failure(status, rollout.sets)
        if (left := judge.seconds_left(deployment, status, datetime.now(UTC))) is not None:
            self.controller.enqueue_after(key, left + 1)
        written = to_json(status)
        if _plain(deployment.status) == _plain(status):
            return
        # What is not named by a merge patch would keep its old value.
        patch = {"status": dict.fromkeys(_NUMBERS, 0) | written}
        try:
            await self._client.patch(Deployment, key[1], patch, key[0], subresource="status")
        except NotFound:
            log.debug("deployment went away while its status was written name=%s/%s", *key)


_NUMBERS = (
    "replicas",
    "updatedReplicas",
    "readyReplicas",
    "availableReplicas",
    "unavailableReplicas",
    "terminatingReplicas",
)


def _plain(status: DeploymentStatus | None) -> dict[str, object]:
    return {key: value for key, value in to_json(status).items() if value} if status else {}


def _selector(deployment: Deployment) -> LabelSelector:
    return LabelSelector.from_object(selector_json(spec_of(deployment).selector))


def _was_scaled(rollout: Rollout) -> bool:
    """Whether an active set was last sized for another number of replicas."""
    replicas = str(replicas_of(rollout.deployment))
    return any(annotations_of(entry).get(DESIRED, replicas) != replicas for entry in rollout.active)


def _saturated(new: ReplicaSet, replicas: int) -> bool:
    size = size_of(new)
    return size.wanted == replicas == size.available and annotations_of(new).get(DESIRED) == str(replicas)
