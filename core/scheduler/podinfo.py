"""A pod as the scheduler sees it: what it asks for, worked out once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lightkube.models.core_v1 import Container, Pod, PodSpec, Toleration, TopologySpreadConstraint

from kernelet.core.api.resources import bytes_of, cpu_millis
from kernelet.core.scheduler.podterms import PodTerms, pod_terms
from kernelet.core.scheduler.selecting import NodeTerm, node_terms, preferred_terms

Key = tuple[str, str]
Amounts = dict[str, int]
"""Resource name -> amount: `cpu` in thousandths of a core, all else in whole units (bytes)."""

DEFAULT_SCHEDULER = "default-scheduler"

# What a container that requests nothing counts for in scores (upstream's non-zero defaults): else a hundred such pods
# would leave a node looking empty.
SCORED_CPU = 100
SCORED_MEMORY = 200 * 1024 * 1024

HostPort = tuple[str, str, int]
"""Host address ("0.0.0.0" for all), protocol, port."""


@dataclass(eq=False)
class PodInfo:
    """Read-only but for `state`, in which plug-ins keep what they worked out for this attempt, under their name."""

    pod: Pod
    state: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def key(self) -> Key:
        return key_of(self.pod)

    @property
    def shown(self) -> str:
        return "/".join(self.key)

    @cached_property
    def uid(self) -> str:
        return (self.pod.metadata and self.pod.metadata.uid) or ""

    @property
    def namespace(self) -> str:
        return self.key[0]

    @cached_property
    def spec(self) -> PodSpec:
        return self.pod.spec or PodSpec(containers=[])

    @cached_property
    def labels(self) -> Mapping[str, str]:
        return (self.pod.metadata and self.pod.metadata.labels) or {}

    @property
    def node_name(self) -> str:
        return self.spec.nodeName or ""

    @property
    def priority(self) -> int:
        return self.spec.priority or 0

    @cached_property
    def owner(self) -> str:
        """The uid of the controller the pod belongs to, "" for none."""
        owners = (self.pod.metadata and self.pod.metadata.ownerReferences) or []
        return next((owner.uid for owner in owners if owner.controller), "")

    @property
    def terminating(self) -> bool:
        return bool(self.pod.metadata and self.pod.metadata.deletionTimestamp)

    @property
    def finished(self) -> bool:
        return bool(self.pod.status and self.pod.status.phase in ("Succeeded", "Failed"))

    @cached_property
    def requests(self) -> Amounts:
        return pod_requests(self.spec)

    @cached_property
    def scored(self) -> tuple[int, int]:
        """CPU and memory for scoring, containers without requests counted at their defaults."""
        containers = self.spec.containers
        missing_cpu = sum(1 for each in containers if "cpu" not in _requested(each))
        missing_memory = sum(1 for each in containers if "memory" not in _requested(each))
        cpu, memory = self.requests.get("cpu", 0), self.requests.get("memory", 0)
        return cpu + missing_cpu * SCORED_CPU, memory + missing_memory * SCORED_MEMORY

    @cached_property
    def host_ports(self) -> tuple[HostPort, ...]:
        return tuple(
            (port.hostIP or "0.0.0.0", port.protocol or "TCP", port.hostPort)
            for container in self.spec.containers
            for port in container.ports or []
            if port.hostPort
        )

    @cached_property
    def tolerations(self) -> list[Toleration]:
        return self.spec.tolerations or []

    @cached_property
    def required_terms(self) -> tuple[NodeTerm, ...] | None:
        """Node selector and required node affinity: one of the terms must match; None: any node will do."""
        return node_terms(self.spec)

    @cached_property
    def preferred_terms(self) -> tuple[tuple[int, NodeTerm], ...]:
        return preferred_terms(self.spec)

    @cached_property
    def terms(self) -> PodTerms:
        """Inter-pod affinity."""
        return pod_terms(self.spec, self.namespace, self.labels)

    @cached_property
    def spread(self) -> list[TopologySpreadConstraint]:
        return self.spec.topologySpreadConstraints or []

    @cached_property
    def images(self) -> list[str]:
        return [container.image for container in self.spec.containers if container.image]


def key_of(pod: Pod) -> Key:
    metadata = pod.metadata
    return ((metadata and metadata.namespace) or "", (metadata and metadata.name) or "")


def pod_requests(spec: PodSpec) -> Amounts:
    """What a node must have left, by the rule of KEP-753 (sidecars): the running set, or the largest moment of start.

    An init container that restarts always (a sidecar) stays; others run one at a time beside the sidecars before them.
    """
    running: Amounts = {}
    peak: Amounts = {}
    for container in spec.initContainers or []:
        if container.restartPolicy == "Always":
            _add(running, _requested(container))
            _raise(peak, running)
        else:
            moment = dict(running)
            _add(moment, _requested(container))
            _raise(peak, moment)
    for container in spec.containers:
        _add(running, _requested(container))
    _raise(running, peak)
    _add(running, amounts(spec.overhead))
    return running


def amounts(quantities: Mapping[str, Any] | None) -> Amounts:
    return {name: amount(name, value) for name, value in (quantities or {}).items()}


def amount(name: str, quantity: Any) -> int:
    return cpu_millis(str(quantity)) if name == "cpu" else bytes_of(str(quantity))


def _requested(container: Container) -> Amounts:
    return amounts(container.resources.requests if container.resources else None)


def _add(total: Amounts, more: Mapping[str, int]) -> None:
    for name, value in more.items():
        total[name] = total.get(name, 0) + value


def _raise(total: Amounts, floor: Mapping[str, int]) -> None:
    for name, value in floor.items():
        total[name] = max(total.get(name, 0), value)
