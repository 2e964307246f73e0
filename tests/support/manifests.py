"""Objects of the cluster tests."""

from __future__ import annotations

from typing import Any

from .images import LOAD, SERVER, TOOLS

JSON = dict[str, Any]
PORT = 8000
STATS_PORT = 8081
SLEEP = ["/bin/sh", "-c", "trap 'exit 0' TERM; while true; do sleep 0.2; done"]


def container(*command: str, **fields: Any) -> JSON:
    """The test server, or another command."""
    env = [
        {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        *fields.pop("env", []),
    ]
    made = {"name": "main", "image": TOOLS, "command": list(command) or [*SERVER, str(PORT)], "env": env}
    if not command:
        made["readinessProbe"] = {"httpGet": {"path": "/readyz", "port": PORT}, "periodSeconds": 1}
    return made | fields


def pod_spec(*command: str, node: str = "", **fields: Any) -> JSON:
    """One container; `container` changes its fields, `node` binds the pod to a node."""
    made: JSON = {
        "terminationGracePeriodSeconds": 5,
        "containers": [container(*command, **fields.pop("container", {}))],
    }
    if node:
        made["nodeSelector"] = {"kubernetes.io/hostname": node}
    return made | fields


def pod(name: str, *command: str, labels: dict[str, str] | None = None, **fields: Any) -> JSON:
    metadata = {"name": name, "labels": labels or {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod_spec(*command, **fields)}


def deployment(name: str, replicas: int, *command: str, strategy: JSON | None = None, **fields: Any) -> JSON:
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": pod_spec(*command, **fields)}
    spec: JSON = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
    if strategy:
        spec["strategy"] = strategy
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}


def service(name: str, app: str = "", **fields: Any) -> JSON:
    """TCP and UDP port 80 to the servers labelled `app`."""
    ports = [
        {"name": "http", "port": 80, "targetPort": PORT, "protocol": "TCP"},
        {"name": "udp", "port": 80, "targetPort": PORT, "protocol": "UDP"},
    ]
    spec = {"selector": {"app": app or name}, "ports": ports} | fields
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def load_pod(name: str, address: str, port: int = 80, *, node: str = "", workers: int = 4, pause: float = 0.02) -> JSON:
    """A pod that sends a steady load to an address; see image/load.py."""
    return pod(
        name, *LOAD, address, str(port), str(workers), str(pause),
        node=node, container={"readinessProbe": {"tcpSocket": {"port": STATS_PORT}, "periodSeconds": 1}},
    )  # fmt: skip


def apart(app: str) -> JSON:
    """Affinity: no two pods of an app on one node."""
    term = {"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": "kubernetes.io/hostname"}
    return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def spread(app: str) -> JSON:
    """Affinity: pods of an app on different nodes as long as there are any left."""
    term = {"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": "kubernetes.io/hostname"}
    weighted = {"weight": 100, "podAffinityTerm": term}
    return {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [weighted]}}
