"""Reading pods: what the API server has defaulted is taken for granted, what is optional gets its default here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
from lightkube.models.core_v1 import Container, Pod, PodSpec, PodStatus
from lightkube.models.meta_v1 import ObjectMeta

from kernelet.core.api.resources import bytes_of, cpu_millis, qos_class

DEFAULT_GRACE_SECONDS = 30


def meta(pod: Pod) -> ObjectMeta:
    return pod.metadata or ObjectMeta()


def spec(pod: Pod) -> PodSpec:
    return pod.spec or PodSpec(containers=[])


def status(pod: Pod) -> PodStatus:
    return pod.status or PodStatus()


def uid(pod: Pod) -> str:
    return meta(pod).uid or ""


def namespace(pod: Pod) -> str:
    return meta(pod).namespace or "default"


def name(pod: Pod) -> str:
    return meta(pod).name or ""


def key(pod: Pod) -> str:
    """`namespace/name`, for people."""
    return f"{namespace(pod)}/{name(pod)}"


def deletion_time(pod: Pod) -> datetime | None:
    return meta(pod).deletionTimestamp


def grace_seconds(pod: Pod) -> float:
    """Seconds between SIGTERM and SIGKILL: of the deletion where there is one, else of the spec."""
    for seconds in (meta(pod).deletionGracePeriodSeconds, spec(pod).terminationGracePeriodSeconds):
        if seconds is not None:
            return float(seconds)
    return float(DEFAULT_GRACE_SECONDS)


def is_terminal(pod: Pod) -> bool:
    """Whether the pod has run to its end, for good or bad."""
    return status(pod).phase in ("Succeeded", "Failed")


def is_sidecar(container: Container) -> bool:
    """An init container that goes on running beside the others (KEP-753)."""
    return container.restartPolicy == "Always"


def quality(pod: Pod) -> str:
    """`Guaranteed`, `Burstable` or `BestEffort`."""
    return qos_class(msgspec.to_builtins(spec(pod)))


def spec_hash(container: Container) -> str:
    """Changes exactly when a running container must be replaced: its image is the one thing that may change."""
    return hashlib.sha256(f"{container.name}\0{container.image}".encode()).hexdigest()[:16]


def amount(amounts: Mapping[str, Any] | None, resource: str) -> int | None:
    """Milli-cores of `cpu`, bytes of anything else; None where it is not stated."""
    if not amounts or resource not in amounts:
        return None
    text = str(amounts[resource])
    return cpu_millis(text) if resource == "cpu" else bytes_of(text)


def limit(container: Container, resource: str) -> int | None:
    return amount(container.resources.limits if container.resources else None, resource)


def request(container: Container, resource: str) -> int | None:
    """What is asked for; a limit alone asks for as much."""
    asked = amount(container.resources.requests if container.resources else None, resource)
    return limit(container, resource) if asked is None else asked
