"""What runs where, including pods whose binding is still under way.

A pod is *assumed* on its node from the decision until the API server shows it bound (or the binding failed), so that
the next decision already counts it. Everything here is for one event loop and never waits.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from lightkube.models.core_v1 import Node, Taint

from kernelet.core.api.selectors import LabelSelector
from kernelet.core.scheduler.podinfo import Amounts, HostPort, Key, PodInfo, amounts

HOSTNAME = "kubernetes.io/hostname"
SELECTORS = 1024
"""Selectors of a namespace whose counts per node are kept up to date."""


@dataclass(eq=False)
class NodeInfo:
    """One node and what is on it. `allocatable` and `requested` in the units of podinfo.Amounts."""

    name: str
    node: Node | None = None
    """None while pods are bound to a node that is not known (yet)."""
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    unschedulable: bool = False
    allocatable: Amounts = field(default_factory=dict)
    images: Mapping[str, int] = field(default_factory=dict)
    """Image name -> size in bytes."""
    requested: Counter[str] = field(default_factory=Counter)
    scored_cpu: int = 0
    scored_memory: int = 0
    pods: dict[Key, PodInfo] = field(default_factory=dict)
    ports: Counter[HostPort] = field(default_factory=Counter)

    def set_node(self, node: Node | None) -> None:
        self.node = node
        spec, status = (node.spec, node.status) if node else (None, None)
        name = {HOSTNAME: self.name}
        self.labels = name | ((node.metadata.labels if node and node.metadata else None) or {})
        self.taints = tuple((spec.taints if spec else None) or ())
        self.unschedulable = bool(spec and spec.unschedulable)
        self.allocatable = amounts((status.allocatable or status.capacity) if status else None)
        listed = (status.images if status else None) or []
        self.images = {name: image.sizeBytes or 0 for image in listed for name in image.names or []}

    def add(self, pod: PodInfo) -> None:
        self._count(pod, 1)
        self.pods[pod.key] = pod

    def remove(self, pod: PodInfo) -> None:
        del self.pods[pod.key]
        self._count(pod, -1)

    def _count(self, pod: PodInfo, sign: int) -> None:
        for name, value in pod.requests.items():
            self.requested[name] += sign * value
        for port in pod.host_ports:
            self.ports[port] += sign
            if not self.ports[port]:
                del self.ports[port]
        cpu, memory = pod.scored
        self.scored_cpu += sign * cpu
        self.scored_memory += sign * memory


class Cache:
    """Nodes by name, and where each pod is."""

    def __init__(self) -> None:
        self._nodes: dict[str, NodeInfo] = {}
        self._listed: tuple[NodeInfo, ...] | None = None
        self._where: dict[Key, tuple[str, PodInfo]] = {}
        self._assumed: set[Key] = set()
        self._exclusive: set[Key] = set()
        """Pods with required anti-affinity."""
        self._owned: dict[tuple[str, str], Counter[str]] = {}
        self._selected: dict[str, OrderedDict[LabelSelector, Counter[str]]] = {}

    def nodes(self) -> tuple[NodeInfo, ...]:
        """The nodes that exist. The same tuple until one comes or goes."""
        if self._listed is None:
            self._listed = tuple(info for info in self._nodes.values() if info.node is not None)
        return self._listed

    def node(self, name: str) -> NodeInfo | None:
        return self._nodes.get(name)

    def set_node(self, name: str, node: Node) -> None:
        self._info(name).set_node(node)
        self._listed = None

    def remove_node(self, name: str) -> None:
        info = self._nodes.get(name)
        if info is not None:
            info.set_node(None)
            self._listed = None
            self._drop_if_empty(info)

    def assume(self, pod: PodInfo, node: str) -> None:
        """Counts the pod on the node before it is bound."""
        self._put(pod, node)
        self._assumed.add(pod.key)

    def is_assumed(self, key: Key) -> bool:
        return key in self._assumed

    def holds(self, key: Key) -> bool:
        return key in self._where

    def forget(self, pod: PodInfo) -> None:
        """The binding of an assumed pod failed.

        Nothing happens where it was seen bound meanwhile, or where another pod has its name now.
        """
        if pod.key in self._assumed and self._where[pod.key][1].uid == pod.uid:
            self.remove(pod.key)

    def set_pod(self, pod: PodInfo) -> None:
        """A pod as the API server shows it, bound to a node."""
        self._assumed.discard(pod.key)
        self._put(pod, pod.node_name)

    def remove(self, key: Key) -> None:
        self._assumed.discard(key)
        self._take_out(key)

    def exclusive(self) -> list[tuple[NodeInfo, PodInfo]]:
        """The pods with required anti-affinity, and where they are."""
        found = [self._where[key] for key in self._exclusive]
        return [(self._nodes[name], pod) for name, pod in found]

    def owned(self, namespace: str, owner: str) -> Mapping[str, int]:
        """Node name -> how many pods of a controller (its uid) it has, those being deleted left out."""
        return self._owned.get((namespace, owner), {})

    def selected(self, namespace: str, selector: LabelSelector) -> Mapping[str, int]:
        """Node name -> how many pods a selector finds there, those being deleted left out.

        The first call for a selector looks at all pods; its answer is then kept up to date. Not to be changed.
        """
        selectors = self._selected.setdefault(namespace, OrderedDict())
        counter = selectors.get(selector)
        if counter is None:
            counter = Counter(
                name
                for name, pod in self._where.values()
                if pod.namespace == namespace and not pod.terminating and selector.matches(pod.labels)
            )
            selectors[selector] = counter
            if len(selectors) > SELECTORS:
                selectors.popitem(last=False)
        selectors.move_to_end(selector)
        return counter

    def _put(self, pod: PodInfo, node: str) -> None:
        where = self._where.get(pod.key)
        if where is not None and where[0] == node and _same(where[1], pod):
            self._nodes[node].pods[pod.key] = pod
            self._where[pod.key] = (node, pod)
            return
        self._take_out(pod.key)
        self._info(node).add(pod)
        self._where[pod.key] = (node, pod)
        if pod.terms.anti_affinity:
            self._exclusive.add(pod.key)
        self._recount(pod, node, 1)

    def _take_out(self, key: Key) -> None:
        where = self._where.pop(key, None)
        if where is None:
            return
        name, pod = where
        self._exclusive.discard(key)
        info = self._nodes[name]
        info.remove(pod)
        self._recount(pod, name, -1)
        self._drop_if_empty(info)

    def _recount(self, pod: PodInfo, node: str, sign: int) -> None:
        if pod.terminating:
            return
        if pod.owner:
            counter = self._owned.setdefault((pod.namespace, pod.owner), Counter())
            counter[node] += sign
            if not counter[node]:
                del counter[node]
            if not counter:
                del self._owned[pod.namespace, pod.owner]
        for selector, counter in self._selected.get(pod.namespace, {}).items():
            if selector.matches(pod.labels):
                counter[node] += sign

    def _info(self, name: str) -> NodeInfo:
        return self._nodes.setdefault(name, NodeInfo(name))

    def _drop_if_empty(self, info: NodeInfo) -> None:
        if info.node is None and not info.pods:
            self._nodes.pop(info.name, None)


def _same(old: PodInfo, new: PodInfo) -> bool:
    """Whether nothing changed that is counted."""
    return (
        old.uid == new.uid
        and old.terminating == new.terminating
        and old.labels == new.labels
        and old.requests == new.requests
        and old.host_ports == new.host_ports
    )
