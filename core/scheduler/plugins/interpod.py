"""Inter-pod affinity and anti-affinity, required and preferred.

Required anti-affinity holds both ways: a pod that runs keeps the pods out that it does not want near.
Looks at every placed pod, but only for pods that state affinity, or while some placed pod states anti-affinity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from kernelet.core.scheduler.cache import NodeInfo
from kernelet.core.scheduler.framework import HIGHEST, SKIP, SUCCESS, Handle, Helps, Status, unschedulable
from kernelet.core.scheduler.podinfo import PodInfo
from kernelet.core.scheduler.podterms import PodTerm

Domain = tuple[str, str]
"""A topology label and its value."""


@dataclass(eq=False, slots=True)
class _Needs:
    """What one pod's required terms come to in the cluster as it is."""

    wanted: list[tuple[str, set[str]]] = field(default_factory=list)
    """Of each affinity term: topology label, and its values where matching pods are."""
    first: bool = False
    """No pod it wants to be near exists, but it matches its own terms: it may be the first."""
    unwanted: set[Domain] = field(default_factory=set)
    taken: set[Domain] = field(default_factory=set)
    """Domains from which placed pods keep it out."""


class InterPodAffinity:
    name = "InterPodAffinity"
    helps = Helps.ANY
    weight = 2
    _not_near = unschedulable("node(s) didn't match pod affinity rules")
    _too_near = unschedulable("node(s) didn't match pod anti-affinity rules")
    _kept_out = unschedulable("node(s) didn't satisfy existing pods anti-affinity rules")

    def __init__(self, handle: Handle) -> None:
        self._cache = handle.cache
        self._labels_of = handle.namespace_labels

    def pre_filter(self, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status:
        terms = pod.terms
        exclusive = self._cache.exclusive()
        if not terms.affinity and not terms.anti_affinity and not exclusive:
            return SKIP
        needs = _Needs()
        for term in terms.affinity:
            needs.wanted.append((term.key, {domain[1] for domain in self._domains(term, nodes)}))
        nowhere = not any(values for _, values in needs.wanted)
        needs.first = nowhere and all(self._matches(term, pod) for term in terms.affinity)
        for term in terms.anti_affinity:
            needs.unwanted.update(self._domains(term, nodes))
        needs.taken = self._taken(pod, exclusive)
        pod.state[self.name] = needs
        return SUCCESS

    def filter(self, pod: PodInfo, node: NodeInfo) -> Status:
        needs: _Needs = pod.state[self.name]
        for key, values in needs.wanted:
            value = node.labels.get(key)
            if value is None or (value not in values and not needs.first):
                return self._not_near
        if needs.unwanted and not needs.unwanted.isdisjoint(node.labels.items()):
            return self._too_near
        if needs.taken and not needs.taken.isdisjoint(node.labels.items()):
            return self._kept_out
        return SUCCESS

    def pre_score(self, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status:
        if not pod.terms.preferred:
            return SKIP
        weights: Counter[Domain] = Counter()
        for weight, term in pod.terms.preferred:
            # All nodes count: the pod to be near may be on one that is not feasible, in a domain that is.
            for domain, pods in self._domains(term, self._cache.nodes()).items():
                weights[domain] += weight * pods
        pod.state["interpod/weights"] = weights
        return SUCCESS

    def score(self, pod: PodInfo, node: NodeInfo) -> float:
        weights: Counter[Domain] = pod.state["interpod/weights"]
        return float(sum(weights[domain] for domain in node.labels.items() if domain in weights))

    def normalize(self, pod: PodInfo, scores: dict[str, float]) -> None:
        least, most = min(scores.values()), max(scores.values())
        for name, score in scores.items():
            scores[name] = HIGHEST * (score - least) / (most - least) if most > least else 0.0

    def _domains(self, term: PodTerm, nodes: Iterable[NodeInfo]) -> Counter[Domain]:
        """How many pods the term finds in each domain."""
        found: Counter[Domain] = Counter()
        for node in nodes:
            value = node.labels.get(term.key)
            if value is not None:
                count = sum(1 for other in node.pods.values() if self._matches(term, other))
                if count:
                    found[term.key, value] += count
        return found

    def _taken(self, pod: PodInfo, exclusive: Iterable[tuple[NodeInfo, PodInfo]]) -> set[Domain]:
        return {
            (term.key, node.labels[term.key])
            for node, other in exclusive
            for term in other.terms.anti_affinity
            if term.key in node.labels and self._matches(term, pod)
        }

    def _matches(self, term: PodTerm, pod: PodInfo) -> bool:
        return term.matches(pod.namespace, pod.labels, self._labels_of)
