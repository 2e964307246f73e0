"""What controllers ask of pods, and which of them go first when there are too many. Pure functions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from functools import cmp_to_key

from lightkube.models.core_v1 import Pod, PodCondition

from kernelet.core.controllers.access import annotations_of, condition, created, deleting, uid_of

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
_PHASE_RANK: Mapping[str, int] = {"Pending": 0, "Unknown": 1, "Running": 2}


def phase(pod: Pod) -> str:
    return (pod.status.phase if pod.status else None) or "Pending"


def node_name(pod: Pod) -> str:
    """ "" while the pod is not bound."""
    return (pod.spec.nodeName if pod.spec else None) or ""


def finished(pod: Pod) -> bool:
    """Whether its containers have ended for good."""
    return phase(pod) in ("Succeeded", "Failed")


def active(pod: Pod) -> bool:
    """Whether the pod counts as a replica: neither finished nor on its way out."""
    return not finished(pod) and not deleting(pod)


def ready_condition(pod: Pod) -> PodCondition | None:
    found: PodCondition | None = condition(pod.status.conditions if pod.status else None, "Ready")
    return found


def ready(pod: Pod) -> bool:
    found = ready_condition(pod)
    return found is not None and found.status == "True"


def ready_since(pod: Pod) -> datetime:
    """When Ready last became what it is; the creation time where the condition does not say."""
    found = ready_condition(pod)
    return (found.lastTransitionTime if found else None) or created(pod)


def available_at(pod: Pod, min_ready_seconds: int) -> datetime | None:
    """When a ready pod counts as available; None while it is not ready."""
    return ready_since(pod) + timedelta(seconds=min_ready_seconds) if ready(pod) else None


def available(pod: Pod, min_ready_seconds: int, now: datetime) -> bool:
    when = available_at(pod, min_ready_seconds)
    return when is not None and (min_ready_seconds == 0 or when <= now)


def restarts(pod: Pod) -> int:
    statuses = (pod.status.containerStatuses if pod.status else None) or []
    return max((status.restartCount for status in statuses), default=0)


def deletion_cost(pod: Pod) -> int:
    """The annotation's value; 0 where it is absent or no 32-bit integer."""
    try:
        return int(annotations_of(pod).get(DELETION_COST, "0"))
    except ValueError:
        return 0


def to_delete(pods: Iterable[Pod], related: Iterable[Pod], count: int, now: datetime) -> list[Pod]:
    """The `count` pods a scale-down removes first, in Kubernetes' order.

    `related` are the pods of every replica set of the same owner: a node that runs more of them loses one first.
    Source: ActivePodsWithRanks of Kubernetes' controller utilities.
    """
    on_node = Counter(node_name(pod) for pod in related if active(pod))

    def compare(a: Pod, b: Pod) -> int:
        return _compare(a, b, on_node, now)

    return sorted(pods, key=cmp_to_key(compare))[:count]


def _compare(a: Pod, b: Pod, on_node: Mapping[str, int], now: datetime) -> int:
    """Negative when `a` should be deleted before `b`."""
    steps = (
        bool(node_name(a)) - bool(node_name(b)),
        _PHASE_RANK.get(phase(a), 3) - _PHASE_RANK.get(phase(b), 3),
        ready(a) - ready(b),
        deletion_cost(a) - deletion_cost(b),
        on_node[node_name(b)] - on_node[node_name(a)],
        _younger_first(ready_since(a), ready_since(b), now) if ready(a) and ready(b) else 0,
        restarts(b) - restarts(a),
        _younger_first(created(a), created(b), now),
    )
    return next((step for step in steps if step), 0) or (-1 if uid_of(a) < uid_of(b) else 1)


def _younger_first(a: datetime, b: datetime, now: datetime) -> int:
    """By the power of two of the age: pods of about one age are as good as equal, so that no pattern of creation
    decides which zone or node is emptied."""
    return _magnitude(a, now) - _magnitude(b, now)


def _magnitude(since: datetime, now: datetime) -> int:
    return math.ceil(math.log2(max((now - since).total_seconds(), 0.0) + 1.0))
