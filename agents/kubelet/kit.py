"""What the kubelet's parts share: its configuration and the things they all use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lightkube.models.core_v1 import Service

from kernelet.core.client.client import Client

from .containers import NodeIdentity
from .fields import NodeFacts
from .images import ImagePuller
from .metrics import Metrics
from .objects import ObjectCache
from .payloads import TokenSource
from .plugins import PodNetwork, RouteWaiter, Runtime
from .podfiles import DnsConfig
from .probing import Prober
from .statuswriter import StatusWriter
from .volumes import Volumes

NORMAL, WARNING = "Normal", "Warning"


@dataclass(frozen=True, slots=True)
class KubeletConfig:
    """One node's kubelet."""

    node: str
    address: str
    """The node's own address: InternalIP, hostIP, and where the HTTPS endpoint listens."""
    state: Path
    """Folder for pods' files; survives restarts."""
    cluster: str = "default"
    memory: Path | None = None
    """Folder on a tmpfs for secrets; None: one below /run or /dev/shm."""
    labels: Mapping[str, str] = field(default_factory=dict)
    port: int = 10250
    """Of the HTTPS endpoint; 0: no endpoint."""
    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    """Signs the client certificates that the endpoint accepts."""
    dns: DnsConfig = field(default_factory=DnsConfig)
    max_pods: int = 110
    lease_seconds: float = 1.0
    """Between two heartbeats."""
    lease_duration: int = 4
    relist_seconds: float = 10.0
    """Between two looks at all containers, in case an event was missed."""
    route_deadline: float = 5.0
    """Longest wait for the routes to a pod to be withdrawn before its SIGTERM, seconds."""
    token_source: TokenSource | None = None


class Recorder(Protocol):
    """Where events go (core.client.events.EventRecorder)."""

    def event(self, obj: Any, type: str, reason: str, message: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Kit:
    """Everything a pod worker needs that is not the pod's own."""

    config: KubeletConfig
    identity: NodeIdentity
    facts: NodeFacts
    client: Client
    runtime: Runtime
    network: PodNetwork
    routes: RouteWaiter
    recorder: Recorder
    images: ImagePuller
    volumes: Volumes
    objects: ObjectCache
    prober: Prober
    writer: StatusWriter
    metrics: Metrics
    services: Callable[[], list[Service]]
    ensure_pause: Callable[[], Any]
    """Coroutine function: makes the pause image if it is gone; returns its name."""


async def wait_any(event: asyncio.Event, seconds: float | None) -> bool:
    """Waits for the event for at most `seconds` (None: for ever); whether it came."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
