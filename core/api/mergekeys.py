"""How strategic merge patches treat lists: Kubernetes' x-kubernetes-patch-strategy and -merge-key, as one table.

Keyed by struct and field, so that OpenAPI documents can publish the same facts. Fields not named here are replaced
whole when they are lists and merged key by key when they are objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Strategy:
    """Of one field: the struct below it, the key list elements are matched by, and what a patch may do to it."""

    struct: str = ""
    key: str = ""
    """Merge key of a list of objects."""
    primitives: bool = False
    """A list of plain values merged as a set."""
    retain_keys: bool = False
    """The patch may list, in $retainKeys, the only keys that stay."""

    @property
    def patch_strategy(self) -> str:
        """The value of x-kubernetes-patch-strategy, "" for replace."""
        parts = ["merge"] if self.key or self.primitives else []
        return ",".join([*parts, "retainKeys"] if self.retain_keys else parts)


_META = Strategy("ObjectMeta")
_CONDITIONS = Strategy(key="type")
_CONTAINERS = Strategy("Container", key="name")
_TEMPLATE = Strategy("PodTemplateSpec")

STRUCTS: Mapping[str, Mapping[str, Strategy]] = {
    "ObjectMeta": {"ownerReferences": Strategy(key="uid"), "finalizers": Strategy(primitives=True)},
    "PodTemplateSpec": {"metadata": _META, "spec": Strategy("PodSpec")},
    "PodSpec": {
        "containers": _CONTAINERS,
        "initContainers": _CONTAINERS,
        "ephemeralContainers": _CONTAINERS,
        "volumes": Strategy(key="name", retain_keys=True),
        "imagePullSecrets": Strategy(key="name"),
        "hostAliases": Strategy(key="ip"),
        "topologySpreadConstraints": Strategy(key="topologyKey"),
        "resourceClaims": Strategy(key="name", retain_keys=True),
        "schedulingGates": Strategy(key="name"),
    },
    "Container": {
        "env": Strategy(key="name"),
        "ports": Strategy(key="containerPort"),
        "volumeMounts": Strategy(key="mountPath"),
        "volumeDevices": Strategy(key="devicePath"),
    },
    "PodStatus": {"conditions": _CONDITIONS, "podIPs": Strategy(key="ip"), "hostIPs": Strategy(key="ip")},
    "Pod": {"metadata": _META, "spec": Strategy("PodSpec"), "status": Strategy("PodStatus")},
    "ServiceSpec": {"ports": Strategy(key="port")},
    "ServiceStatus": {"conditions": _CONDITIONS},
    "Service": {"metadata": _META, "spec": Strategy("ServiceSpec"), "status": Strategy("ServiceStatus")},
    "DeploymentSpec": {"template": _TEMPLATE, "strategy": Strategy(retain_keys=True)},
    "DeploymentStatus": {"conditions": _CONDITIONS},
    "Deployment": {"metadata": _META, "spec": Strategy("DeploymentSpec"), "status": Strategy("DeploymentStatus")},
    "ReplicaSetSpec": {"template": _TEMPLATE},
    "ReplicaSetStatus": {"conditions": _CONDITIONS},
    "ReplicaSet": {"metadata": _META, "spec": Strategy("ReplicaSetSpec"), "status": Strategy("ReplicaSetStatus")},
    "ReplicationControllerSpec": {"template": _TEMPLATE},
    "ReplicationControllerStatus": {"conditions": _CONDITIONS},
    "ReplicationController": {
        "metadata": _META,
        "spec": Strategy("ReplicationControllerSpec"),
        "status": Strategy("ReplicationControllerStatus"),
    },
    "NodeSpec": {"podCIDRs": Strategy(primitives=True)},
    "NodeStatus": {"conditions": _CONDITIONS, "addresses": Strategy(key="type")},
    "Node": {"metadata": _META, "spec": Strategy("NodeSpec"), "status": Strategy("NodeStatus")},
    "NamespaceStatus": {"conditions": _CONDITIONS},
    "Namespace": {"metadata": _META, "status": Strategy("NamespaceStatus")},
    "ServiceAccount": {
        "metadata": _META,
        "secrets": Strategy(key="name"),
        "imagePullSecrets": Strategy(key="name"),
    },
}

REPLACE = Strategy()


def strategy(struct: str, field: str) -> Strategy:
    """How a field of a struct is merged; metadata is merged alike in every kind."""
    if field == "metadata" and struct not in STRUCTS:
        return _META
    return STRUCTS.get(struct, {}).get(field, REPLACE)
