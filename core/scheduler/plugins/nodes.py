"""What a pod and a node say of each other: names, selectors, taints, ports."""

from __future__ import annotations

from collections.abc import Sequence

from lightkube.models.core_v1 import Taint

from kernelet.core.scheduler.cache import NodeInfo
from kernelet.core.scheduler.framework import SKIP, SUCCESS, Handle, Helps, Status, unschedulable
from kernelet.core.scheduler.plugins.scores import scale_to_highest
from kernelet.core.scheduler.podinfo import HostPort, PodInfo
from kernelet.core.scheduler.selecting import tolerated

ALL_ADDRESSES = frozenset({"0.0.0.0", "::"})
_OF_NODES = Helps.NODE_ADDED | Helps.NODE_CHANGED
_UNSCHEDULABLE = Taint(effect="NoSchedule", key="node.kubernetes.io/unschedulable")


class NodeUnschedulable:
    """Leaves cordoned nodes out, unless the pod tolerates the taint that stands for it."""

    name = "NodeUnschedulable"
    helps = _OF_NODES
    _refusal = unschedulable("node(s) were unschedulable")

    def __init__(self, handle: Handle) -> None:
        """Needs nothing of the handle."""

    def filter(self, pod: PodInfo, node: NodeInfo) -> Status:
        if not node.unschedulable or tolerated(_UNSCHEDULABLE, pod.tolerations):
            return SUCCESS
        return self._refusal


class NodeName:
    name = "NodeName"
    helps = _OF_NODES
    _refusal = unschedulable("node(s) didn't match the requested node name")

    def __init__(self, handle: Handle) -> None:
        """Needs nothing of the handle."""

    def pre_filter(self, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status:
        return SUCCESS if pod.node_name else SKIP

    def filter(self, pod: PodInfo, node: NodeInfo) -> Status:
        return SUCCESS if pod.node_name == node.name else self._refusal


class TaintToleration:
    """NoSchedule and NoExecute taints keep pods out; PreferNoSchedule ones make a node less wanted."""

    name = "TaintToleration"
    helps = _OF_NODES
    weight = 3

    def __init__(self, handle: Handle) -> None:
        """Needs nothing of the handle."""

    def filter(self, pod: PodInfo, node: NodeInfo) -> Status:
        for taint in node.taints:
            if taint.effect in ("NoSchedule", "NoExecute") and not tolerated(taint, pod.tolerations):
                return unschedulable(f"node(s) had untolerated taint {{{taint.key}: {taint.value or ''}}}")
        return SUCCESS

    def pre_score(self, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status:
        return SUCCESS if any(node.taints for node in nodes) else SKIP

    def score(self, pod: PodInfo, node: NodeInfo) -> float:
        mild = [taint for taint in node.taints if taint.effect == "PreferNoSchedule"]
        return sum(1 for taint in mild if not tolerated(taint, pod.tolerations))

    def normalize(self, pod: PodInfo, scores: dict[str, float]) -> None:
        scale_to_highest(scores, inverted=True)


class NodeAffinity:
    """nodeSelector, required and preferred node affinity."""

    name = "NodeAffinity"
    helps = _OF_NODES
    weight = 2
    _refusal = unschedulable("node(s) didn't match Pod's node affinity/selector")

    def __init__(self, handle: Handle) -> None:
        """Needs nothing of the handle."""

    def pre_filter(self, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status:
        return SKIP if pod.required_terms is None else SUCCESS

    def filter(self, pod: PodInfo, node: NodeInfo) -> Status:
        return SUCCESS if matches_node(pod, node) else self._refusal

    def pre_score(self, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status:
        return SUCCESS if pod.preferred_terms else SKIP

    def score(self, pod: PodInfo, node: NodeInfo) -> float:
        return sum(weight for weight, term in pod.preferred_terms if term.matches(node.labels, node.name))

    def normalize(self, pod: PodInfo, scores: dict[str, float]) -> None:
        scale_to_highest(scores)


class NodePorts:
    """Two pods of one node cannot have one host port, unless on different addresses."""

    name = "NodePorts"
    helps = _OF_NODES | Helps.POD_REMOVED
    _refusal = unschedulable("node(s) didn't have free ports for the requested pod ports")

    def __init__(self, handle: Handle) -> None:
        """Needs nothing of the handle."""

    def pre_filter(self, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status:
        return SUCCESS if pod.host_ports else SKIP

    def filter(self, pod: PodInfo, node: NodeInfo) -> Status:
        if any(_clash(wanted, used) for wanted in pod.host_ports for used in node.ports):
            return self._refusal
        return SUCCESS


def matches_node(pod: PodInfo, node: NodeInfo) -> bool:
    """Whether the pod's node selector and required node affinity allow the node."""
    terms = pod.required_terms
    return terms is None or any(term.matches(node.labels, node.name) for term in terms)


def _clash(one: HostPort, other: HostPort) -> bool:
    if one[1:] != other[1:]:
        return False
    return one[0] == other[0] or one[0] in ALL_ADDRESSES or other[0] in ALL_ADDRESSES
