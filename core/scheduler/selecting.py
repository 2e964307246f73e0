"""Node selectors and taints: what a pod says about nodes, in a form that is quick to match."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lightkube.models.core_v1 import NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration

from kernelet.core.api.selectors import IN, Requirement


@dataclass(frozen=True, slots=True)
class NodeTerm:
    """All requirements on labels and on fields (metadata.name) must hold. A term with none matches no node."""

    labels: tuple[Requirement, ...] = ()
    fields: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str], name: str) -> bool:
        if not self.labels and not self.fields:
            return False
        fields = {"metadata.name": name}
        return all(each.matches(labels) for each in self.labels) and all(each.matches(fields) for each in self.fields)


def node_terms(spec: PodSpec) -> tuple[NodeTerm, ...] | None:
    """nodeSelector and required node affinity as alternatives, each complete; None where the pod states neither."""
    selector = tuple(Requirement(key, IN, (value,)) for key, value in (spec.nodeSelector or {}).items())
    affinity = spec.affinity.nodeAffinity if spec.affinity else None
    required = affinity.requiredDuringSchedulingIgnoredDuringExecution if affinity else None
    if required is None:
        return (NodeTerm(selector),) if selector else None
    terms = [_term(term) for term in required.nodeSelectorTerms]
    # An empty term matches nothing, which adding the selector's requirements would hide.
    return tuple(NodeTerm(selector + term.labels, term.fields) for term in terms if term.labels or term.fields)


def preferred_terms(spec: PodSpec) -> tuple[tuple[int, NodeTerm], ...]:
    """Weight and term of each preference."""
    affinity = spec.affinity.nodeAffinity if spec.affinity else None
    preferences = (affinity.preferredDuringSchedulingIgnoredDuringExecution if affinity else None) or []
    return tuple((preference.weight, _term(preference.preference)) for preference in preferences)


def tolerated(taint: Taint, tolerations: Iterable[Toleration]) -> bool:
    return any(_tolerates(toleration, taint) for toleration in tolerations)


def _tolerates(toleration: Toleration, taint: Taint) -> bool:
    if toleration.effect and toleration.effect != taint.effect:
        return False
    if toleration.key and toleration.key != taint.key:
        return False
    if toleration.operator == "Exists":
        return True
    # Without a key only Exists is valid.
    return bool(toleration.key) and (toleration.value or "") == (taint.value or "")


def _term(term: NodeSelectorTerm) -> NodeTerm:
    return NodeTerm(_requirements(term.matchExpressions), _requirements(term.matchFields))


def _requirements(items: Any) -> tuple[Requirement, ...]:
    found: list[NodeSelectorRequirement] = items or []
    return tuple(Requirement(item.key, item.operator, tuple(item.values or ())) for item in found)
