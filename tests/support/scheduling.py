"""Nodes and pods, in few words."""

from __future__ import annotations

import itertools
from typing import Any

from lightkube.models.core_v1 import Node, Pod, Service

from kernelet.core.api.models import to_model
from kernelet.core.scheduler.algorithm import FrameworkAlgorithm
from kernelet.core.scheduler.framework import Framework, Handle
from kernelet.core.scheduler.plugins import built_in
from kernelet.core.scheduler.podinfo import PodInfo

_uids = itertools.count(1)


def node(name: str, *, cpu: str = "4", memory: str = "8Gi", pods: int = 110, **spec: Any) -> Node:
    labels = spec.pop("labels", {})
    amounts = {"cpu": cpu, "memory": memory, "pods": str(pods)}
    status = {"allocatable": amounts, "capacity": amounts, "images": spec.pop("images", [])}
    metadata = {"name": name, "labels": {"kubernetes.io/hostname": name, **labels}}
    return to_model(Node, {"metadata": metadata, "spec": spec, "status": status})


def pod(name: str, *, cpu: str = "", memory: str = "", **spec: Any) -> Pod:
    metadata = {"name": name, "namespace": spec.pop("namespace", "default"), "uid": f"uid-{next(_uids)}"}
    metadata["labels"] = spec.pop("labels", {})
    owner = spec.pop("owner", "")
    if owner:
        reference = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": owner, "controller": True}
        metadata["ownerReferences"] = [reference]
    requests = {key: value for key, value in (("cpu", cpu), ("memory", memory)) if value}
    container = {"name": "main", "image": spec.pop("image", "app"), "resources": {"requests": requests}}
    container["ports"] = spec.pop("ports", [])
    return to_model(Pod, {"metadata": metadata, "spec": {"containers": [container], **spec}})


def service(selector: dict[str, str]) -> Service:
    return to_model(Service, {"metadata": {"name": "web", "namespace": "default"}, "spec": {"selector": selector}})


class Cluster:
    """A cache, all built-in plug-ins and the default algorithm, with no API server."""

    def __init__(self, *nodes: Node, services: list[Service] | None = None) -> None:
        self.handle = Handle(services=lambda namespace: services or [])
        self.cache = self.handle.cache
        self.algorithm = FrameworkAlgorithm(Framework(built_in(self.handle)))
        for each in nodes:
            assert each.metadata and each.metadata.name
            self.cache.set_node(each.metadata.name, each)

    def schedule(self, pod: Pod) -> str:
        """The chosen node's name; the pod is assumed there. Raises Unschedulable."""
        info = PodInfo(pod)
        chosen = self.algorithm.schedule(info, self.cache.nodes())
        self.cache.assume(info, chosen.name)
        return chosen.name
