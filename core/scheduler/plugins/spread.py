"""Spreading over topology domains: topologySpreadConstraints (KEP-895), hard and soft.

A pod that states none is spread softly over hosts together with the other pods of its controller and of the services
that select it, which is what keeps a service up when a node fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lightkube.models.core_v1 import TopologySpreadConstraint

from kernelet.core.api.selectors import LabelSelector
from kernelet.core.scheduler.cache import HOSTNAME, NodeInfo
from kernelet.core.scheduler.framework import HIGHEST, SKIP, SUCCESS, Handle, Helps, Status, unschedulable
from kernelet.core.scheduler.plugins.nodes import matches_node
from kernelet.core.scheduler.podinfo import PodInfo
from kernelet.core.scheduler.podterms import selector_of
from kernelet.core.scheduler.selecting import tolerated

HARD, SOFT = "DoNotSchedule", "ScheduleAnyway"


@dataclass(eq=False, slots=True)
class _Rule:
    """One constraint against the cluster as it is."""

    key: str
    most: int
    """maxSkew."""
    own: int
    """1 where the pod counts itself."""
    domains: dict[str, int] = field(default_factory=dict)
    """Value of the topology label -> matching pods there."""
    least: int = 0


class PodTopologySpread:
    name = "PodTopologySpread"
    helps = Helps.ANY
    weight = 2
    _skewed = unschedulable("node(s) didn't match pod topology spread constraints")
    _unlabelled = unschedulable("node(s) didn't match pod topology spread constraints (missing required label)")

    def __init__(self, handle: Handle) -> None:
        self._cache = handle.cache
        self._services = handle.services

    def pre_filter(self, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status:
        hard = [constraint for constraint in pod.spread if constraint.whenUnsatisfiable == HARD]
        if not hard:
            return SKIP
        keys = [constraint.topologyKey for constraint in hard]
        complete = [node for node in nodes if all(key in node.labels for key in keys)]
        pod.state["spread/hard"] = [self._rule(pod, constraint, complete) for constraint in hard]
        return SUCCESS

    def filter(self, pod: PodInfo, node: NodeInfo) -> Status:
        rules: list[_Rule] = pod.state["spread/hard"]
        for rule in rules:
            domain = node.labels.get(rule.key)
            if domain is None:
                return self._unlabelled
            if rule.domains.get(domain, 0) + rule.own - rule.least > rule.most:
                return self._skewed
        return SUCCESS

    def pre_score(self, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status:
        soft = [constraint for constraint in pod.spread if constraint.whenUnsatisfiable == SOFT]
        if soft:
            rules = [self._rule(pod, constraint, nodes) for constraint in soft]
        else:
            rules = [] if pod.spread else [_over_hosts(counts, nodes) for counts in self._default_groups(pod)]
        if not rules:
            return SKIP
        pod.state["spread/soft"] = rules
        return SUCCESS

    def score(self, pod: PodInfo, node: NodeInfo) -> float:
        """How many pods of the same kind are there already; nodes outside the topology come last."""
        rules: list[_Rule] = pod.state["spread/soft"]
        total = 0.0
        for rule in rules:
            domain = node.labels.get(rule.key)
            if domain is None:
                return float("inf")
            total += rule.domains.get(domain, 0)
        return total

    def normalize(self, pod: PodInfo, scores: dict[str, float]) -> None:
        """The fewest score HIGHEST, more score less in proportion (upstream's 100 * (max + min - count) / max)."""
        finite = [score for score in scores.values() if score != float("inf")]
        least, most = min(finite, default=0.0), max(finite, default=0.0)
        for name, score in scores.items():
            if score == float("inf"):
                scores[name] = 0.0
            else:
                scores[name] = HIGHEST * (most + least - score) / most if most else float(HIGHEST)

    def _rule(self, pod: PodInfo, constraint: TopologySpreadConstraint, nodes: Iterable[NodeInfo]) -> _Rule:
        selector = selector_of(constraint.labelSelector, pod.labels, constraint.matchLabelKeys)
        counts = self._cache.selected(pod.namespace, selector)
        rule = _Rule(constraint.topologyKey, constraint.maxSkew, int(selector.matches(pod.labels)))
        domains: Counter[str] = Counter()
        for node in nodes:
            domain = node.labels.get(rule.key)
            if domain is not None and _counted(pod, constraint, node):
                domains[domain] += counts.get(node.name, 0)
        rule.domains = domains
        enough = len(domains) >= (constraint.minDomains or 1)
        rule.least = min(domains.values(), default=0) if enough else 0
        return rule

    def _default_groups(self, pod: PodInfo) -> list[Mapping[str, int]]:
        """Pods per node of the pod's controller, and of each service that selects it."""
        groups = [self._cache.owned(pod.namespace, pod.owner)] if pod.owner else []
        for service in self._services(pod.namespace):
            wanted = (service.spec.selector if service.spec else None) or {}
            if wanted and all(pod.labels.get(key) == value for key, value in wanted.items()):
                groups.append(self._cache.selected(pod.namespace, LabelSelector.from_map(wanted)))
        return groups


def _over_hosts(counts: Mapping[str, int], nodes: Iterable[NodeInfo]) -> _Rule:
    rule = _Rule(HOSTNAME, 1, 1)
    rule.domains = Counter()
    for node in nodes:
        rule.domains[node.labels[HOSTNAME]] += counts.get(node.name, 0)
    return rule


def _counted(pod: PodInfo, constraint: TopologySpreadConstraint, node: NodeInfo) -> bool:
    """Whether a node takes part: by default those the pod's affinity allows, tainted ones included."""
    if constraint.nodeAffinityPolicy != "Ignore" and not matches_node(pod, node):
        return False
    if constraint.nodeTaintsPolicy != "Honor":
        return True
    hard = [taint for taint in node.taints if taint.effect in ("NoSchedule", "NoExecute")]
    return all(tolerated(taint, pod.tolerations) for taint in hard)
