"""Typical objects of every kind, as a user writes them."""

from __future__ import annotations

import json
from typing import Any

from kernelet.core.api.kinds import KINDS, Kind

JSON = dict[str, Any]

POD_SPEC: JSON = {
    "initContainers": [{"name": "init", "image": "tools@sha256:abc"}],
    "containers": [
        {
            "name": "web",
            "image": "nginx:1.27",
            "ports": [{"containerPort": 80, "name": "http"}],
            "env": [
                {"name": "A", "value": "b"},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            ],
            "resources": {"limits": {"cpu": "0.5", "memory": "64Mi"}, "requests": {"cpu": "100m"}},
            "livenessProbe": {"httpGet": {"port": "http"}},
            "readinessProbe": {"tcpSocket": {"port": 80}, "periodSeconds": 1},
            "volumeMounts": [{"name": "conf", "mountPath": "/etc/conf"}, {"name": "tmp", "mountPath": "/tmp"}],
        }
    ],
    "volumes": [{"name": "conf", "configMap": {"name": "conf"}}, {"name": "tmp"}],
    "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}],
}
TEMPLATE: JSON = {"metadata": {"labels": {"app": "web"}}, "spec": POD_SPEC}
SELECTED: JSON = {"selector": {"matchLabels": {"app": "web"}}, "template": TEMPLATE}

BODIES: dict[str, JSON] = {
    "Namespace": {},
    "Node": {"spec": {"podCIDRs": ["10.244.1.0/24"]}, "status": {"capacity": {"cpu": "2", "memory": "4Gi"}}},
    "Pod": {"spec": POD_SPEC},
    "Service": {"spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}},
    "Endpoints": {"subsets": [{"addresses": [{"ip": "10.244.1.2"}], "ports": [{"port": 80}]}]},
    "ReplicationController": {"spec": {"replicas": 2, "template": TEMPLATE}},
    "ConfigMap": {"data": {"a.conf": "x"}, "binaryData": {"b": "AAE="}},
    "Secret": {"data": {"a": "AAE="}, "stringData": {"password": "secret"}},
    "Event": {"involvedObject": {"kind": "Pod", "name": "web"}, "reason": "Started", "message": "started"},
    "ServiceAccount": {},
    "ReplicaSet": {"spec": SELECTED},
    "Deployment": {"spec": SELECTED},
    "EndpointSlice": {
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.244.1.2"], "conditions": {"ready": True}}],
        "ports": [{"port": 80}],
    },
    "Lease": {"spec": {"holderIdentity": "me", "renewTime": "2026-01-02T03:04:05.678901Z", "leaseDurationSeconds": 4}},
}


def kind_of(name: str) -> Kind:
    return next(kind for kind in KINDS if kind.kind == name)


def sample(name: str) -> tuple[Kind, JSON]:
    """A fresh object of a kind, by the kind's name."""
    kind = kind_of(name)
    metadata: JSON = {"name": "web", "labels": {"app": "web"}}
    if kind.namespaced:
        metadata["namespace"] = "default"
    body: JSON = json.loads(json.dumps(BODIES[name]))
    return kind, {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, **body}
