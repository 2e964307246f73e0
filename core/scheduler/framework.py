"""What a plug-in or a whole algorithm is, and how both are found.

A decision runs through: PreFilter (look at the pod; may refuse it or step aside), Filter (each node), PreScore, Score
(each feasible node), Reserve, then, outside the decision loop, Bind. A plug-in is any object with a `name` that has the
methods of one or more of the protocols below. All but Bind are plain functions: they must not wait.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

from lightkube.models.core_v1 import Service

from kernelet.core.client.client import Client
from kernelet.core.scheduler.cache import Cache, NodeInfo
from kernelet.core.scheduler.podinfo import PodInfo

PLUGINS = "kernelet.scheduler.plugins"
ALGORITHMS = "kernelet.scheduler.algorithms"

HIGHEST = 100
"""Scores go from 0 to this, after `normalize`."""


class Code(enum.Enum):
    SUCCESS = "Success"
    UNSCHEDULABLE = "Unschedulable"
    """Not on this node as things are."""
    SKIP = "Skip"
    """PreFilter or PreScore: this plug-in has no say on this pod. Bind: the next one shall bind."""


@dataclass(frozen=True, slots=True)
class Status:
    """A verdict. `reasons` are for people, in the form `Insufficient cpu`, which a count of nodes goes before."""

    code: Code
    reasons: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.code is Code.SUCCESS


SUCCESS = Status(Code.SUCCESS)
SKIP = Status(Code.SKIP)


def unschedulable(*reasons: str) -> Status:
    return Status(Code.UNSCHEDULABLE, reasons)


class Helps(enum.Flag):
    """What may make a pod fit that did not: a refused pod is tried again when one of these happens."""

    NODE_ADDED = enum.auto()
    NODE_CHANGED = enum.auto()
    """Labels, taints, allocatable or unschedulable."""
    POD_ADDED = enum.auto()
    """Bound, or its labels changed."""
    POD_REMOVED = enum.auto()
    """Deleted or finished."""
    ANY = NODE_ADDED | NODE_CHANGED | POD_ADDED | POD_REMOVED


class Plugin(Protocol):
    @property
    def name(self) -> str: ...


@runtime_checkable
class PreFilterPlugin(Protocol):
    def pre_filter(self, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status:
        """SKIP leaves this plug-in's filter out for this pod; UNSCHEDULABLE refuses the pod on all nodes."""
        ...


@runtime_checkable
class FilterPlugin(Protocol):
    def filter(self, pod: PodInfo, node: NodeInfo) -> Status: ...


@runtime_checkable
class PreScorePlugin(Protocol):
    def pre_score(self, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status:
        """Sees the feasible nodes. SKIP leaves this plug-in's score out for this pod."""
        ...


@runtime_checkable
class ScorePlugin(Protocol):
    @property
    def weight(self) -> int: ...

    def score(self, pod: PodInfo, node: NodeInfo) -> float: ...


@runtime_checkable
class NormalizePlugin(Protocol):
    def normalize(self, pod: PodInfo, scores: dict[str, float]) -> None:
        """Brings this plug-in's scores (by node name) into 0 to HIGHEST, in place."""
        ...


@runtime_checkable
class ReservePlugin(Protocol):
    def reserve(self, pod: PodInfo, node: NodeInfo) -> Status:
        """The node was chosen. UNSCHEDULABLE sends the pod back."""
        ...

    def unreserve(self, pod: PodInfo, node: str) -> None:
        """A later step failed. Called for every plug-in, also where `reserve` was not; must not raise."""
        ...


@runtime_checkable
class BindPlugin(Protocol):
    async def bind(self, pod: PodInfo, node: str) -> Status:
        """SKIP passes to the next. Raises ApiError when the API server refuses."""
        ...


@dataclass
class Unschedulable(Exception):
    """No node will do. `reasons`: reason -> how many nodes gave it; `plugins`: whose verdicts they are."""

    nodes: int
    reasons: Mapping[str, int]
    plugins: frozenset[str] = frozenset()
    helps: Helps = Helps.ANY

    def __str__(self) -> str:
        if not self.nodes:
            return "no nodes available to schedule pods"
        counted = sorted(f"{count} {reason}" for reason, count in self.reasons.items())
        return f"0/{self.nodes} nodes are available: {', '.join(counted)}."


class ScheduleAlgorithm(Protocol):
    """The whole decision, replaceable. Must not wait, and must choose among `nodes`."""

    def schedule(self, pod: PodInfo, nodes: Sequence[NodeInfo]) -> NodeInfo:
        """Raises Unschedulable."""
        ...


@dataclass
class Handle:
    """What plug-ins and algorithms may use: the services and the labels of a namespace."""

    client: Client | None = None
    cache: Cache = field(default_factory=Cache)
    services: Callable[[str], Iterable[Service]] = lambda namespace: ()
    namespace_labels: Callable[[str], Mapping[str, str]] = lambda namespace: {}


PluginFactory = Callable[[Handle], Plugin]
AlgorithmFactory = Callable[[Handle], ScheduleAlgorithm]


class Framework:
    """The plug-ins of one scheduler, sorted by what they do."""

    def __init__(self, plugins: Iterable[Plugin]) -> None:
        self.plugins = list(plugins)
        self.pre_filters = [(each.name, each) for each in self.plugins if isinstance(each, PreFilterPlugin)]
        self.filters = [(each.name, each) for each in self.plugins if isinstance(each, FilterPlugin)]
        self.pre_scores = [(each.name, each) for each in self.plugins if isinstance(each, PreScorePlugin)]
        self.scores = [(each.name, each) for each in self.plugins if isinstance(each, ScorePlugin)]
        self.reserves = [(each.name, each) for each in self.plugins if isinstance(each, ReservePlugin)]
        self.binds = [(each.name, each) for each in self.plugins if isinstance(each, BindPlugin)]

    def reserve(self, pod: PodInfo, node: NodeInfo) -> Status:
        """The first refusal, after which nothing stays reserved, or success."""
        for _, plugin in self.reserves:
            status = plugin.reserve(pod, node)
            if not status.ok:
                self.unreserve(pod, node.name)
                return status
        return SUCCESS

    def unreserve(self, pod: PodInfo, node: str) -> None:
        for _, plugin in reversed(self.reserves):
            plugin.unreserve(pod, node)

    async def bind(self, pod: PodInfo, node: str) -> None:
        """By the first plug-in that does not step aside. Raises ApiError."""
        for _, plugin in self.binds:
            if (await plugin.bind(pod, node)).code is not Code.SKIP:
                return
        raise LookupError(f"no bind plug-in took pod {pod.shown}; the default one must not be disabled")


def helps_of(plugin: object) -> Helps:
    """What a plug-in says may help the pods it refuses, as its attribute `helps`; anything, if it does not say."""
    found = getattr(plugin, "helps", Helps.ANY)
    return found if isinstance(found, Helps) else Helps.ANY


def load_plugins(handle: Handle) -> list[Plugin]:
    """The plug-ins of other packages, found by entry points. Raises what importing or making one raises."""
    return [factory(handle) for factory in _load(PLUGINS).values()]


def load_algorithm(name: str, handle: Handle) -> ScheduleAlgorithm:
    """Raises ValueError naming the algorithms there are."""
    found = _load(ALGORITHMS)
    if name not in found:
        known = ", ".join(sorted(found)) or "none"
        raise ValueError(f'no schedule algorithm "{name}" is installed (entry points {ALGORITHMS}: {known})')
    algorithm: ScheduleAlgorithm = found[name](handle)
    return algorithm


def _load(group: str) -> dict[str, Any]:
    return {entry.name: entry.load() for entry in entry_points(group=group)}
