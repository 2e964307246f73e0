"""What the kubelet counts."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_BUCKETS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """Counters of one kubelet in a registry of their own, so that two of them in one process do not collide."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.pods = Gauge("kubelet_running_pods", "Pods that have a worker", registry=self.registry)
        self.starts = Counter("kubelet_started_containers", "Containers started", registry=self.registry)
        self.errors = Counter("kubelet_pod_sync_errors", "Pod syncs that failed", registry=self.registry)
        self.phases = Histogram(
            "kubelet_pod_start_phase_seconds",
            "Time of each phase of a pod's start",
            ["phase"],
            registry=self.registry,
            buckets=_BUCKETS,
        )
        self.withdrawn = Histogram(
            "kubelet_route_withdrawal_seconds",
            "Wait for the routes to a pod to be withdrawn",
            registry=self.registry,
            buckets=_BUCKETS,
        )
        self.missed = Counter(
            "kubelet_route_withdrawal_missed", "Pods stopped before their routes were withdrawn", registry=self.registry
        )

    def text(self) -> bytes:
        """The exposition format of Prometheus."""
        return generate_latest(self.registry)
