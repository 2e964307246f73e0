"""Nodes that have the pod's images already, the larger the better."""

from __future__ import annotations

from collections.abc import Sequence

from kernelet.core.scheduler.cache import NodeInfo
from kernelet.core.scheduler.framework import HIGHEST, SUCCESS, Handle, Status
from kernelet.core.scheduler.podinfo import PodInfo

# Upstream's bounds: below the first, pulling is cheap; beyond the second (for each container), it is all the same.
LEAST = 23 * 1024 * 1024
MOST = 1000 * 1024 * 1024


class ImageLocality:
    """An image counts by the share of nodes that have it: replicas shall not pile up on the first that pulled it."""

    name = "ImageLocality"
    weight = 1

    def __init__(self, handle: Handle) -> None:
        """Needs nothing of the handle."""

    def pre_score(self, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status:
        names = {_normalized(image) for image in pod.images}
        pod.state[self.name] = {
            name: sum(1 for node in nodes if name in node.images) / len(nodes) for name in names if nodes
        }
        return SUCCESS

    def score(self, pod: PodInfo, node: NodeInfo) -> float:
        shares: dict[str, float] = pod.state[self.name]
        present = sum(node.images.get(name, 0) * share for name, share in shares.items())
        most = MOST * max(len(pod.images), 1)
        return HIGHEST * (min(max(present, LEAST), most) - LEAST) / (most - LEAST)


def _normalized(image: str) -> str:
    """With `:latest` where no tag and no digest is named."""
    return image if ":" in image.rpartition("/")[2] or "@" in image else f"{image}:latest"
