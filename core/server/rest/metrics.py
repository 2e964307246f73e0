"""Prometheus metrics of the REST face, under the names Kubernetes' dashboards know."""

from __future__ import annotations


class Metrics:
    """Counts requests and their durations by verb and resource; few labels, so that the series stay few."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        from prometheus_client.process_collector import ProcessCollector

        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "apiserver_request",
            "Requests by verb, resource and HTTP code.",
            ("verb", "resource", "code"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "apiserver_request_duration_seconds",
            "Seconds from request to answer, by verb and resource; watches, logs and exec are not in it.",
            ("verb", "resource"),
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0),
            registry=self._registry,
        )
        self._running = Gauge(
            "apiserver_current_inflight_requests",
            "Requests being served, streams included.",
            registry=self._registry,
        )

    def begin(self) -> None:
        self._running.inc()

    def end(self, verb: str, resource: str, code: int, seconds: float, *, stream: bool) -> None:
        """`verb` and `resource` come from known kinds only, never from what a client typed."""
        self._running.dec()
        self._requests.labels(verb, resource, str(code)).inc()
        if not stream:
            self._seconds.labels(verb, resource).observe(seconds)

    def text(self) -> bytes:
        """The exposition format (text, version 0.0.4)."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry)
