"""Room on a node: whether a pod fits, and how well it would fill it."""

from __future__ import annotations

from kernelet.core.scheduler.cache import NodeInfo
from kernelet.core.scheduler.framework import HIGHEST, SUCCESS, Handle, Helps, Status, unschedulable
from kernelet.core.scheduler.podinfo import PodInfo


class NodeResourcesFit:
    """The sum of requests stays within what is allocatable. Prefers the least allocated node."""

    name = "NodeResourcesFit"
    helps = Helps.NODE_ADDED | Helps.NODE_CHANGED | Helps.POD_REMOVED
    weight = 1

    def __init__(self, handle: Handle) -> None:
        """Needs nothing of the handle."""

    def filter(self, pod: PodInfo, node: NodeInfo) -> Status:
        short = []
        if len(node.pods) + 1 > node.allocatable.get("pods", 0):
            short.append("Too many pods")
        short += [
            f"Insufficient {resource}"
            for resource, wanted in pod.requests.items()
            if wanted > 0 and wanted > node.allocatable.get(resource, 0) - node.requested[resource]
        ]
        return unschedulable(*short) if short else SUCCESS

    def score(self, pod: PodInfo, node: NodeInfo) -> float:
        cpu, memory = _fractions(pod, node)
        return HIGHEST * ((1 - cpu) + (1 - memory)) / 2


class NodeResourcesBalancedAllocation:
    """Prefers nodes whose CPU and memory would be used to the same degree."""

    name = "NodeResourcesBalancedAllocation"
    weight = 1

    def __init__(self, handle: Handle) -> None:
        """Needs nothing of the handle."""

    def score(self, pod: PodInfo, node: NodeInfo) -> float:
        cpu, memory = _fractions(pod, node)
        # Half the difference is the standard deviation of two numbers.
        return HIGHEST * (1 - abs(cpu - memory) / 2)


def _fractions(pod: PodInfo, node: NodeInfo) -> tuple[float, float]:
    """The parts of CPU and memory in use once the pod is there, at most 1."""
    cpu, memory = pod.scored
    return (
        _part(node.scored_cpu + cpu, node.allocatable.get("cpu", 0)),
        _part(node.scored_memory + memory, node.allocatable.get("memory", 0)),
    )


def _part(used: int, whole: int) -> float:
    return min(used / whole, 1.0) if whole > 0 else 1.0
