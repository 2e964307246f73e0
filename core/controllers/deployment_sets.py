"""How a deployment and its replica sets know each other: template hash, revisions, annotations. Pure functions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from lightkube.models.apps_v1 import Deployment, DeploymentSpec, ReplicaSet, ReplicaSetSpec
from lightkube.models.core_v1 import PodTemplateSpec
from lightkube.models.meta_v1 import ObjectMeta

from kernelet.core.api import codec
from kernelet.core.controllers.access import (
    annotations_of,
    clone,
    controller_reference,
    created,
    labels_of,
    name_of,
    namespace_of,
    to_json,
)
from kernelet.core.controllers.replicas import template_of, wanted
from kernelet.core.controllers.rolling import Bounds, SetSize, bounds

HASH_LABEL = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
REVISION_HISTORY = "deployment.kubernetes.io/revision-history"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MAXIMUM = "deployment.kubernetes.io/max-replicas"

_NOT_COPIED = frozenset(
    {
        "kubectl.kubernetes.io/last-applied-configuration",
        "deprecated.deployment.rollback.to",
        REVISION,
        REVISION_HISTORY,
        DESIRED,
        MAXIMUM,
    }
)
_HASH_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


def spec_of(deployment: Deployment) -> DeploymentSpec:
    """Raises ValueError where there is none, which the API server does not admit."""
    if deployment.spec is None:
        raise ValueError(f"deployment {namespace_of(deployment)}/{name_of(deployment)} has no spec")
    return deployment.spec


def replicas_of(deployment: Deployment) -> int:
    replicas = spec_of(deployment).replicas
    return 1 if replicas is None else replicas


def recreates(deployment: Deployment) -> bool:
    strategy = spec_of(deployment).strategy
    return strategy is not None and strategy.type == "Recreate"


def bounds_of(deployment: Deployment) -> Bounds:
    """Recreate never surges and may have nothing available."""
    replicas = replicas_of(deployment)
    if recreates(deployment):
        return Bounds(replicas, 0, replicas)
    strategy = spec_of(deployment).strategy
    rolling = strategy.rollingUpdate if strategy else None
    if rolling is None:
        return bounds(replicas, "25%", "25%")
    surge = "25%" if rolling.maxSurge is None else rolling.maxSurge
    unavailable = "25%" if rolling.maxUnavailable is None else rolling.maxUnavailable
    return bounds(replicas, surge, unavailable)


def template_hash(template: PodTemplateSpec, collisions: int) -> str:
    """Ten characters that name a template, safe in names and labels; `collisions` makes another name for it."""
    digest = hashlib.sha256(codec.encode(_plain(template)) + (str(collisions).encode() if collisions else b"")).digest()
    number = int.from_bytes(digest[:8], "big")
    letters = []
    for _ in range(10):
        number, index = divmod(number, len(_HASH_ALPHABET))
        letters.append(_HASH_ALPHABET[index])
    return "".join(letters)


def _plain(template: PodTemplateSpec) -> Mapping[str, object]:
    """The template as JSON in one order of keys, without the label that we add."""
    found = to_json(template)
    metadata = found.setdefault("metadata", {})
    metadata.pop("creationTimestamp", None)
    labels = {key: value for key, value in (metadata.pop("labels", None) or {}).items() if key != HASH_LABEL}
    if labels:
        metadata["labels"] = labels
    ordered = _ordered(found)
    assert isinstance(ordered, dict)
    return ordered


def _ordered(value: object) -> object:
    if isinstance(value, dict):
        return {key: _ordered(value[key]) for key in sorted(value)}
    return [_ordered(entry) for entry in value] if isinstance(value, list) else value


def find_new(deployment: Deployment, sets: Iterable[ReplicaSet]) -> ReplicaSet | None:
    """The set with the deployment's present template; the oldest, should there be several."""
    wanted_template = _plain(spec_of(deployment).template)
    return next((entry for entry in by_age(sets) if _plain(template_of(entry)) == wanted_template), None)


def by_age(sets: Iterable[ReplicaSet]) -> list[ReplicaSet]:
    """Oldest first."""
    return sorted(sets, key=lambda entry: (created(entry), name_of(entry)))


def revision_of(obj: Deployment | ReplicaSet) -> int:
    """The revision annotation; 0 where it is absent or no number."""
    text = annotations_of(obj).get(REVISION, "0")
    return int(text) if text.isdecimal() else 0


def next_revision(old: Iterable[ReplicaSet]) -> int:
    return max((revision_of(entry) for entry in old), default=0) + 1


def size_annotations(deployment: Deployment) -> dict[str, str]:
    """What a later scaling of the deployment in the middle of an update goes by."""
    limits = bounds_of(deployment)
    return {DESIRED: str(limits.replicas), MAXIMUM: str(limits.most)}


def wanted_annotations(deployment: Deployment, present: ReplicaSet | None, revision: int) -> dict[str, str]:
    """The annotations the new set must carry: the deployment's, and a revision that never goes back."""
    result = {key: value for key, value in annotations_of(deployment).items() if key not in _NOT_COPIED}
    result |= size_annotations(deployment)
    old = revision_of(present) if present else 0
    result[REVISION] = str(max(old, revision))
    if present is not None and 0 < old < revision:
        history = annotations_of(present).get(REVISION_HISTORY, "")
        result[REVISION_HISTORY] = f"{history},{old}" if history else str(old)
    return result


def size_of(entry: ReplicaSet) -> SetSize:
    available = (entry.status.availableReplicas if entry.status else None) or 0
    limit = annotations_of(entry).get(MAXIMUM, "0")
    return SetSize(name_of(entry), wanted(entry), available, int(limit) if limit.isdecimal() else 0)


def make_set(deployment: Deployment, replicas: int, revision: int, collisions: int) -> ReplicaSet:
    """The replica set of the deployment's present template."""
    spec = spec_of(deployment)
    tag = template_hash(spec.template, collisions)
    template = clone(spec.template)
    template.metadata = template.metadata or ObjectMeta()
    template.metadata.labels = {**(template.metadata.labels or {}), HASH_LABEL: tag}
    selector = clone(spec.selector)
    selector.matchLabels = {**(selector.matchLabels or {}), HASH_LABEL: tag}
    return ReplicaSet(
        apiVersion="apps/v1",
        kind="ReplicaSet",
        metadata=ObjectMeta(
            name=f"{name_of(deployment)}-{tag}",
            namespace=namespace_of(deployment),
            labels=dict(template.metadata.labels),
            annotations=wanted_annotations(deployment, None, revision),
            ownerReferences=[controller_reference(deployment, "apps/v1", "Deployment")],
        ),
        spec=ReplicaSetSpec(
            replicas=replicas, minReadySeconds=spec.minReadySeconds, selector=selector, template=template
        ),
    )


def surplus_history(old: Iterable[ReplicaSet], limit: int) -> list[ReplicaSet]:
    """The sets a history of `limit` has no room for: empty, settled, of the lowest revisions."""
    empty = [entry for entry in old if _is_empty(entry)]
    empty.sort(key=lambda entry: (revision_of(entry), created(entry)))
    return empty[: max(len(empty) - limit, 0)]


def _is_empty(entry: ReplicaSet) -> bool:
    metadata, status = entry.metadata, entry.status
    if metadata is None or metadata.deletionTimestamp is not None or status is None:
        return False
    settled = (status.observedGeneration or 0) >= (metadata.generation or 0)
    return wanted(entry) == 0 and status.replicas == 0 and settled


def is_labelled(entry: ReplicaSet) -> bool:
    """Whether the set was made by a deployment, and not adopted."""
    return HASH_LABEL in labels_of(entry)
