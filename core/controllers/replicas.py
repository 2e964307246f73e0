"""ReplicaSet and ReplicationController as one: what differs between the two kinds, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from lightkube.models.apps_v1 import ReplicaSet, ReplicaSetCondition, ReplicaSetStatus
from lightkube.models.core_v1 import (
    Pod,
    PodTemplateSpec,
    ReplicationController,
    ReplicationControllerCondition,
    ReplicationControllerStatus,
)

from kernelet.core.api.selectors import LabelSelector
from kernelet.core.controllers import pods as pod_facts
from kernelet.core.controllers.access import labels_of, selector_json, template_labels

Replicated = ReplicaSet | ReplicationController
R = TypeVar("R", ReplicaSet, ReplicationController)


@dataclass(frozen=True)
class ReplicaKind(Generic[R]):
    """One of the two kinds."""

    model: type[R]
    api_version: str
    kind: str
    status: type[ReplicaSetStatus] | type[ReplicationControllerStatus]
    condition: type[ReplicaSetCondition] | type[ReplicationControllerCondition]


REPLICA_SET = ReplicaKind(ReplicaSet, "apps/v1", "ReplicaSet", ReplicaSetStatus, ReplicaSetCondition)
REPLICATION_CONTROLLER = ReplicaKind(
    ReplicationController,
    "v1",
    "ReplicationController",
    ReplicationControllerStatus,
    ReplicationControllerCondition,
)


def wanted(owner: Replicated) -> int:
    """spec.replicas, 1 where unset."""
    replicas = owner.spec.replicas if owner.spec else None
    return 1 if replicas is None else replicas


def template_of(owner: Replicated) -> PodTemplateSpec:
    """The pod template. Raises ValueError where there is none, which the API server does not admit."""
    if owner.spec is None or owner.spec.template is None:
        raise ValueError(f"{type(owner).__name__} has no pod template")
    return owner.spec.template


def selector_of(owner: Replicated) -> LabelSelector:
    """What the owner's pods are found by; a replication controller without selector means its template's labels."""
    if isinstance(owner, ReplicaSet):
        return LabelSelector.from_object(selector_json(owner.spec.selector if owner.spec else None))
    labels = (owner.spec.selector if owner.spec else None) or template_labels(template_of(owner))
    return LabelSelector.from_map(labels)


def min_ready_seconds(owner: Replicated) -> int:
    return (owner.spec.minReadySeconds if owner.spec else None) or 0


@dataclass(frozen=True)
class Counts:
    """What a status says of an owner's pods."""

    replicas: int
    fully_labeled: int
    ready: int
    available: int
    terminating: int

    @staticmethod
    def of(owner: Replicated, pods: list[Pod], now: Any) -> Counts:
        """Counted over the claimed pods, finished and terminating ones included."""
        template = template_labels(template_of(owner))
        seconds = min_ready_seconds(owner)
        live = [pod for pod in pods if pod_facts.active(pod)]
        return Counts(
            replicas=len(live),
            fully_labeled=sum(_carries(labels_of(pod), template) for pod in live),
            ready=sum(pod_facts.ready(pod) for pod in live),
            available=sum(pod_facts.available(pod, seconds, now) for pod in live),
            terminating=sum(not pod_facts.active(pod) and not pod_facts.finished(pod) for pod in pods),
        )


def _carries(labels: Mapping[str, str], template: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in template.items())
