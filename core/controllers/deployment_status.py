"""A deployment's status and its two conditions: Available, and Progressing with its deadline. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from lightkube.models.apps_v1 import Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet

from kernelet.core.controllers.access import condition, meta, name_of
from kernelet.core.controllers.deployment_sets import bounds_of, replicas_of, spec_of
from kernelet.core.controllers.replicas import wanted

AVAILABLE, PROGRESSING, FAILURE = "Available", "Progressing", "ReplicaFailure"
FINISHED = "NewReplicaSetAvailable"
TIMED_OUT = "ProgressDeadlineExceeded"
PAUSED = "DeploymentPaused"
RESUMED = "DeploymentResumed"
NO_DEADLINE = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Note:
    """Why there is progress: a reason and a message for the Progressing condition."""

    reason: str
    message: str


def count(deployment: Deployment, new: ReplicaSet | None, sets: Sequence[ReplicaSet]) -> DeploymentStatus:
    """The numbers; conditions are carried over."""
    old = deployment.status or DeploymentStatus()
    available = sum((entry.status.availableReplicas or 0) for entry in sets if entry.status)
    total = sum(wanted(entry) for entry in sets)
    return DeploymentStatus(
        observedGeneration=meta(deployment).generation,
        replicas=sum(entry.status.replicas for entry in sets if entry.status),
        updatedReplicas=new.status.replicas if new and new.status else 0,
        readyReplicas=sum((entry.status.readyReplicas or 0) for entry in sets if entry.status),
        availableReplicas=available,
        unavailableReplicas=max(total - available, 0),
        terminatingReplicas=sum((entry.status.terminatingReplicas or 0) for entry in sets if entry.status),
        collisionCount=old.collisionCount,
        conditions=list(old.conditions or []),
    )


def complete(deployment: Deployment, status: DeploymentStatus) -> bool:
    """Whether the update is over: all replicas are of the new template, available, and no old one is left."""
    replicas = replicas_of(deployment)
    seen = (status.observedGeneration or 0) >= (meta(deployment).generation or 0)
    counts = (status.updatedReplicas or 0, status.replicas or 0, status.availableReplicas or 0)
    return seen and counts == (replicas, replicas, replicas)


def progressed(old: DeploymentStatus, new: DeploymentStatus) -> bool:
    """Whether pods of the new template, or ready or available ones, became more, or old pods fewer."""

    def of_old(status: DeploymentStatus) -> int:
        return (status.replicas or 0) - (status.updatedReplicas or 0)

    return (
        (new.updatedReplicas or 0) > (old.updatedReplicas or 0)
        or of_old(new) < of_old(old)
        or (new.readyReplicas or 0) > (old.readyReplicas or 0)
        or (new.availableReplicas or 0) > (old.availableReplicas or 0)
    )


def deadline(deployment: Deployment) -> int | None:
    """Seconds an update may go without progress; None: for ever."""
    seconds = spec_of(deployment).progressDeadlineSeconds
    return None if seconds is None or seconds >= NO_DEADLINE else seconds


def overdue(deployment: Deployment, status: DeploymentStatus, now: datetime) -> bool:
    """Whether the last progress lies longer back than the deadline."""
    seconds, found = deadline(deployment), condition(status.conditions, PROGRESSING)
    if seconds is None or found is None or found.reason == FINISHED or found.reason == PAUSED:
        return False
    if found.reason == TIMED_OUT:
        return True
    since: datetime = found.lastUpdateTime or now
    return since + timedelta(seconds=seconds) <= now


def seconds_left(deployment: Deployment, status: DeploymentStatus, now: datetime) -> float | None:
    """When to look at the deadline again; None where no deadline runs."""
    seconds, found = deadline(deployment), condition(status.conditions, PROGRESSING)
    if seconds is None or found is None or found.reason in (FINISHED, TIMED_OUT, PAUSED):
        return None
    since: datetime = found.lastUpdateTime or now
    return max((since + timedelta(seconds=seconds) - now).total_seconds(), 0.0)


def set_condition(status: DeploymentStatus, made: DeploymentCondition) -> None:
    """Puts a condition in; one that says the same stays untouched, and transition times move with the status only."""
    present = condition(status.conditions, made.type)
    if present is not None:
        if (present.status, present.reason, present.message) == (made.status, made.reason, made.message):
            return
        if present.status == made.status:
            made.lastTransitionTime = present.lastTransitionTime
    status.conditions = [*(entry for entry in status.conditions or [] if entry.type != made.type), made]


def make_condition(kind: str, status: str, reason: str, message: str, now: datetime) -> DeploymentCondition:
    return DeploymentCondition(
        type=kind, status=status, reason=reason, message=message, lastUpdateTime=now, lastTransitionTime=now
    )


def judge_available(deployment: Deployment, status: DeploymentStatus, now: datetime) -> None:
    """Available: at least the fewest that the strategy allows are."""
    if (status.availableReplicas or 0) >= bounds_of(deployment).fewest:
        made = make_condition(
            AVAILABLE, "True", "MinimumReplicasAvailable", "Deployment has minimum availability.", now
        )
    else:
        message = "Deployment does not have minimum availability."
        made = make_condition(AVAILABLE, "False", "MinimumReplicasUnavailable", message, now)
    set_condition(status, made)


def judge_progress(
    deployment: Deployment, status: DeploymentStatus, new: ReplicaSet | None, note: Note | None, now: datetime
) -> None:
    """Progressing: True while there is progress or once complete, False past the deadline. Not judged while paused."""
    if deadline(deployment) is None:
        status.conditions = [entry for entry in status.conditions or [] if entry.type != PROGRESSING]
        return
    subject = f'ReplicaSet "{name_of(new)}"' if new else f'Deployment "{name_of(deployment)}"'
    present = condition(status.conditions, PROGRESSING)
    if note is not None:
        set_condition(status, make_condition(PROGRESSING, "True", note.reason, note.message, now))
    settled = present is not None and present.reason == FINISHED and status.replicas == status.updatedReplicas
    if complete(deployment, status):
        text = f"{subject} has successfully progressed."
        set_condition(status, make_condition(PROGRESSING, "True", FINISHED, text, now))
    elif settled and note is None:
        return
    elif progressed(deployment.status or DeploymentStatus(), status):
        made = make_condition(PROGRESSING, "True", "ReplicaSetUpdated", f"{subject} is progressing.", now)
        if present is not None and present.status == "True":
            made.lastTransitionTime = present.lastTransitionTime
        others = [entry for entry in status.conditions or [] if entry.type != PROGRESSING]
        status.conditions = [*others, made]
    elif overdue(deployment, status, now):
        text = f"{subject} has timed out progressing."
        set_condition(status, make_condition(PROGRESSING, "False", TIMED_OUT, text, now))


def judge_pause(deployment: Deployment, status: DeploymentStatus, now: datetime) -> None:
    """Marks a pause and its end, so that the deadline does not run meanwhile."""
    present = condition(status.conditions, PROGRESSING)
    if deadline(deployment) is None or (present is not None and present.reason == TIMED_OUT):
        return
    if spec_of(deployment).paused:
        if present is None or present.reason != PAUSED:
            set_condition(status, make_condition(PROGRESSING, "Unknown", PAUSED, "Deployment is paused", now))
    elif present is not None and present.reason == PAUSED:
        set_condition(status, make_condition(PROGRESSING, "Unknown", RESUMED, "Deployment is resumed", now))


def judge_failure(status: DeploymentStatus, sets: Sequence[ReplicaSet]) -> None:
    """Carries over a replica set's failure to create or delete pods."""
    others = [entry for entry in status.conditions or [] if entry.type != FAILURE]
    for entry in sets:
        found = condition(entry.status.conditions if entry.status else None, FAILURE)
        if found is not None:
            made = make_condition(FAILURE, found.status, found.reason, found.message, found.lastTransitionTime)
            status.conditions = [*others, made]
            return
    status.conditions = others
