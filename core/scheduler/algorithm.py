"""The default ScheduleAlgorithm: filter, score, choose among the best at random.

In large clusters not every node is looked at: once enough feasible ones are found, the search ends, and the next one
begins where it ended. How many are enough is kube-scheduler's rule (percentageOfNodesToScore): all below 100 nodes,
then a share that falls from 50 % to 5 % as the cluster grows, never under 100.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from kernelet.core.scheduler.cache import NodeInfo
from kernelet.core.scheduler.framework import (
    HIGHEST,
    Code,
    FilterPlugin,
    Framework,
    Helps,
    NormalizePlugin,
    Unschedulable,
    helps_of,
)
from kernelet.core.scheduler.podinfo import PodInfo

ALL_BELOW = 100


class FrameworkAlgorithm:
    """`random_source` breaks ties."""

    def __init__(self, framework: Framework, random_source: random.Random | None = None) -> None:
        self._framework = framework
        self._random = random_source or random.Random()
        self._start = 0

    def schedule(self, pod: PodInfo, nodes: Sequence[NodeInfo]) -> NodeInfo:
        """Raises Unschedulable, with every node's reasons."""
        pod.state.clear()
        feasible = self._feasible(pod, nodes)
        if len(feasible) == 1:
            return feasible[0]
        totals = self._score(pod, feasible)
        best = max(totals)
        return self._random.choice([node for node, total in zip(feasible, totals, strict=True) if total == best])

    def _feasible(self, pod: PodInfo, nodes: Sequence[NodeInfo]) -> list[NodeInfo]:
        filters = self._pre_filter(pod, nodes)
        feasible: list[NodeInfo] = []
        reasons: Counter[str] = Counter()
        refused: set[str] = set()
        enough, start, looked = enough_nodes(len(nodes)), self._start, 0
        while looked < len(nodes) and len(feasible) < enough:
            node = nodes[(start + looked) % len(nodes)]
            looked += 1
            for name, plugin in filters:
                status = plugin.filter(pod, node)
                if not status.ok:
                    reasons.update(status.reasons)
                    refused.add(name)
                    break
            else:
                feasible.append(node)
        self._start = (start + looked) % len(nodes) if nodes else 0
        if not feasible:
            raise Unschedulable(len(nodes), reasons, frozenset(refused), self._helps(refused))
        return feasible

    def _pre_filter(self, pod: PodInfo, nodes: Sequence[NodeInfo]) -> list[tuple[str, FilterPlugin]]:
        """The filters that have a say on this pod."""
        skipped = set()
        for name, plugin in self._framework.pre_filters:
            status = plugin.pre_filter(pod, nodes)
            if status.code is Code.SKIP:
                skipped.add(name)
            elif not status.ok:
                reasons = Counter({reason: len(nodes) for reason in status.reasons})
                raise Unschedulable(len(nodes), reasons, frozenset({name}), self._helps({name}))
        return [(name, plugin) for name, plugin in self._framework.filters if name not in skipped]

    def _score(self, pod: PodInfo, nodes: Sequence[NodeInfo]) -> list[int]:
        """Whole numbers, so that nodes that differ by nothing that matters are equal."""
        skipped = {n for n, plugin in self._framework.pre_scores if plugin.pre_score(pod, nodes).code is Code.SKIP}
        totals = [0] * len(nodes)
        for name, plugin in self._framework.scores:
            if name in skipped:
                continue
            scores = {node.name: plugin.score(pod, node) for node in nodes}
            if isinstance(plugin, NormalizePlugin):
                plugin.normalize(pod, scores)
            for index, node in enumerate(nodes):
                totals[index] += plugin.weight * min(max(int(scores[node.name]), 0), HIGHEST)
        return totals

    def _helps(self, refused: set[str]) -> Helps:
        helps = Helps.NODE_ADDED
        for plugin in self._framework.plugins:
            if plugin.name in refused:
                helps |= helps_of(plugin)
        return helps


def enough_nodes(nodes: int) -> int:
    """How many feasible nodes end the search."""
    if nodes < ALL_BELOW:
        return nodes
    percent = max(50 - nodes // 125, 5)
    return max(nodes * percent // 100, ALL_BELOW)
