"""The built-in plug-ins, one rule a class, with kube-scheduler's names, reasons and default weights."""

from __future__ import annotations

from kernelet.core.scheduler.framework import Handle, Plugin
from kernelet.core.scheduler.plugins.binder import DefaultBinder
from kernelet.core.scheduler.plugins.images import ImageLocality
from kernelet.core.scheduler.plugins.interpod import InterPodAffinity
from kernelet.core.scheduler.plugins.nodes import NodeAffinity, NodeName, NodePorts, NodeUnschedulable, TaintToleration
from kernelet.core.scheduler.plugins.resources import NodeResourcesBalancedAllocation, NodeResourcesFit
from kernelet.core.scheduler.plugins.spread import PodTopologySpread

# The cheapest and most telling filters first: a node's first refusal is the one that is told.
_BUILT_IN = (
    NodeUnschedulable,
    NodeName,
    TaintToleration,
    NodeAffinity,
    NodePorts,
    NodeResourcesFit,
    PodTopologySpread,
    InterPodAffinity,
    NodeResourcesBalancedAllocation,
    ImageLocality,
    DefaultBinder,
)


def built_in(handle: Handle) -> list[Plugin]:
    return [factory(handle) for factory in _BUILT_IN]
