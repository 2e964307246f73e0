"""All controllers of one leadership: shared caches, one recorder, one task group."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from kernelet.core.client.client import Client
from kernelet.core.client.events import EventRecorder
from kernelet.core.controllers.cidrs import Subnets
from kernelet.core.controllers.deployment import DeploymentController
from kernelet.core.controllers.endpoints import EndpointsController
from kernelet.core.controllers.endpointslice import EndpointSliceController
from kernelet.core.controllers.endpointslicemirroring import EndpointSliceMirroringController
from kernelet.core.controllers.garbagecollector import GarbageCollector
from kernelet.core.controllers.informers import Informers
from kernelet.core.controllers.namespaces import NamespaceController
from kernelet.core.controllers.nodeipam import NodeIPAMController
from kernelet.core.controllers.nodelifecycle import NodeLifecycleController
from kernelet.core.controllers.podgc import PodGCController
from kernelet.core.controllers.replicas import REPLICA_SET, REPLICATION_CONTROLLER
from kernelet.core.controllers.replicaset import ReplicaController
from kernelet.core.controllers.serviceaccounts import ServiceAccountsController
from kernelet.core.controllers.tainteviction import TaintEvictionController

log = logging.getLogger(__name__)

LEASE_NAME = "kernelet-controllers"


@dataclass(frozen=True)
class ManagerConfig:
    """How the controllers behave; times in seconds.

    `cluster_cidr` holds one network, or one of each family separated by a comma; "" allocates no subnets.
    `node_monitor_period` is how often a healthy node renews its lease.
    """

    cluster_cidr: str = "10.244.0.0/16"
    node_cidr_mask_size: int = 24
    node_cidr_mask_size_ipv6: int = 64
    node_monitor_grace_period: float = 4.0
    node_monitor_period: float = 1.0
    terminated_pod_gc_threshold: int = 12_500
    orphan_quarantine: float = 10.0

    def networks(self) -> list[Subnets]:
        """Raises ValueError for a CIDR or mask size that cannot be, naming it."""
        found = []
        for cidr in filter(None, (part.strip() for part in self.cluster_cidr.split(","))):
            four = ipaddress.ip_network(cidr).version == 4
            found.append(Subnets(cidr, self.node_cidr_mask_size if four else self.node_cidr_mask_size_ipv6))
        return found


async def run_controllers(client: Client, config: ManagerConfig | None = None) -> None:
    """Runs every controller until cancelled, with no election: for a caller that leads.

    Raises ValueError for a configuration that cannot be, and what ends an informer.
    """
    config = config or ManagerConfig()
    informers = Informers(client)
    async with EventRecorder(client, "kernelet-controllers") as recorder:
        parts = _controllers(informers, recorder, config)
        async with asyncio.TaskGroup() as group:
            informers.start(group)
            await informers.synced()
            log.info("caches are filled, %d controllers start", len(parts))
            for run in parts:
                group.create_task(_owned(run))


async def _owned(run: Callable[[], Awaitable[None]]) -> None:
    await run()


def _controllers(
    informers: Informers, recorder: EventRecorder, config: ManagerConfig
) -> list[Callable[[], Awaitable[None]]]:
    """What to run. Every controller subscribes to its caches here, before they fill."""
    networks = config.networks()
    # First, so that a node's silence is told before anything else that its change calls for.
    lifecycle = NodeLifecycleController(
        informers, recorder, config.node_monitor_grace_period, config.node_monitor_period
    )
    pod_gc = PodGCController(informers, config.terminated_pod_gc_threshold, config.orphan_quarantine)
    ca_pem = informers.client.config.ca_pem.decode()
    plain = [
        EndpointSliceController(informers, recorder).controller,
        EndpointSliceMirroringController(informers).controller,
        EndpointsController(informers).controller,
        TaintEvictionController(informers, recorder).controller,
        ReplicaController(informers, recorder, REPLICA_SET).controller,
        ReplicaController(informers, recorder, REPLICATION_CONTROLLER).controller,
        DeploymentController(informers, recorder).controller,
        NamespaceController(informers).controller,
        ServiceAccountsController(informers, ca_pem).controller,
        GarbageCollector(informers).controller,
    ]
    if networks:
        plain.append(NodeIPAMController(informers, recorder, networks).controller)
    return [lifecycle.run, pod_gc.run, *(controller.run for controller in plain)]
