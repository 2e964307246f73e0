"""Taints: which ones a node's state calls for, and how long a pod tolerates them. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from lightkube.models.core_v1 import Node, Pod, Taint, Toleration

from kernelet.core.controllers.access import condition

NOT_READY = "node.kubernetes.io/not-ready"
UNREACHABLE = "node.kubernetes.io/unreachable"
UNSCHEDULABLE = "node.kubernetes.io/unschedulable"
NO_SCHEDULE, NO_EXECUTE = "NoSchedule", "NoExecute"

_BY_CONDITION: Mapping[str, str] = {
    "MemoryPressure": "node.kubernetes.io/memory-pressure",
    "DiskPressure": "node.kubernetes.io/disk-pressure",
    "PIDPressure": "node.kubernetes.io/pid-pressure",
    "NetworkUnavailable": "node.kubernetes.io/network-unavailable",
}
OURS = frozenset({NOT_READY, UNREACHABLE, UNSCHEDULABLE, *_BY_CONDITION.values()})


def ready_status(node: Node) -> str:
    """True, False or Unknown; "" while the node has never said."""
    found = condition(node.status.conditions if node.status else None, "Ready")
    return found.status if found is not None else ""


def wanted_taints(node: Node, *, evict: bool, now: datetime) -> list[Taint]:
    """The taints the node should carry: others' as they are, ours as its conditions say.

    `evict` False (nothing is known of any node) leaves out the ones that evict pods.
    """
    present = list((node.spec.taints if node.spec else None) or [])
    keys: list[tuple[str, str]] = []
    status = ready_status(node)
    if status in ("False", "Unknown"):
        key = NOT_READY if status == "False" else UNREACHABLE
        keys.append((key, NO_SCHEDULE))
        if evict:
            keys.append((key, NO_EXECUTE))
    if node.spec and node.spec.unschedulable:
        keys.append((UNSCHEDULABLE, NO_SCHEDULE))
    for kind, key in _BY_CONDITION.items():
        found = condition(node.status.conditions if node.status else None, kind)
        if found is not None and found.status == "True":
            keys.append((key, NO_SCHEDULE))
    result = [taint for taint in present if not _is_ours(taint) or (taint.key, taint.effect) in keys]
    held = {(taint.key, taint.effect) for taint in result}
    return [*result, *(Taint(key=k, effect=e, timeAdded=now) for k, e in keys if (k, e) not in held)]


def _is_ours(taint: Taint) -> bool:
    if taint.effect == NO_EXECUTE:
        return taint.key in (NOT_READY, UNREACHABLE)
    return taint.effect == NO_SCHEDULE and taint.key in OURS


def tolerates(toleration: Toleration, taint: Taint) -> bool:
    """Kubernetes' rule: an empty effect or key matches all, Exists any value."""
    if toleration.effect and toleration.effect != taint.effect:
        return False
    if toleration.key and toleration.key != taint.key:
        return False
    operator = toleration.operator or "Equal"
    if operator == "Exists":
        return True
    return operator == "Equal" and bool(toleration.key) and (toleration.value or "") == (taint.value or "")


def evicted_at(pod: Pod, taints: Iterable[Taint], now: datetime) -> datetime | None:
    """When the pod must leave a node with these taints; None: never. An untolerated taint means now.

    The clock starts when the taint was added, so that a restart of the controller does not start it anew.
    """
    tolerations = (pod.spec.tolerations if pod.spec else None) or []
    deadlines: list[datetime] = []
    for taint in taints:
        if taint.effect != NO_EXECUTE:
            continue
        matching = [entry for entry in tolerations if tolerates(entry, taint)]
        if not matching:
            return now
        seconds = _shortest(matching)
        if seconds is not None:
            deadlines.append(min(taint.timeAdded or now, now) + timedelta(seconds=seconds))
    return min(deadlines, default=None)


def _shortest(tolerations: Sequence[Toleration]) -> int | None:
    limited = [entry.tolerationSeconds for entry in tolerations if entry.tolerationSeconds is not None]
    return max(min(limited), 0) if limited else None
