"""Weights of pods: the annotation kernelet.dev/weight of a pod, and kernelet.dev/weights of slices. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from lightkube.models.core_v1 import Pod
from lightkube.models.discovery_v1 import Endpoint

from kernelet.core.controllers.access import annotations_of

POD_ANNOTATION = "kernelet.dev/weight"
"""On a pod: its share of a service's new connections, 1 to 255, in proportion to those of the others."""
SLICE_ANNOTATION = "kernelet.dev/weights"
"""On an EndpointSlice: a JSON object of address -> weight, for those that do not weigh 1."""
HEAVIEST = 255


def weight_of(pod: Pod) -> int:
    """1 where the pod does not say. Raises ValueError for a weight that is none, naming annotation and fix."""
    text = annotations_of(pod).get(POD_ANNOTATION, "1")
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= HEAVIEST):
        raise ValueError(f"annotation {POD_ANNOTATION}={text!r} is no weight and counts as 1: give 1 to {HEAVIEST}")
    return int(text)


def weights(pods: Iterable[Pod]) -> dict[str, int]:
    """By address, those other than 1; wrong ones are 1."""
    found: dict[str, int] = {}
    for pod in pods:
        try:
            weight = weight_of(pod)
        except ValueError:
            continue  # The controller tells the pod's owner, once.
        if weight != 1 and pod.status:
            addresses = [pod.status.podIP, *(entry.ip for entry in pod.status.podIPs or [])]
            found.update((address, weight) for address in addresses if address)
    return found


def weighted(
    present: Mapping[str, str], endpoints: Sequence[Endpoint], weights: Mapping[str, int]
) -> Mapping[str, str]:
    """A slice's annotations, those of others kept."""
    mine = {address: weights[address] for e in endpoints for address in e.addresses if address in weights}
    kept = {name: text for name, text in present.items() if name != SLICE_ANNOTATION}
    return kept | ({SLICE_ANNOTATION: json.dumps(mine, sort_keys=True)} if mine else {})
