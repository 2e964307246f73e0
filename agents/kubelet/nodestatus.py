"""The node in the API: its Node object, its conditions and its heartbeat.

The heartbeat is a task of its own with a deadline of its own: a slow dockerd or a slow pod never makes a living node
look dead. Conditions are written when they change. Taints are the node lifecycle controller's and are never touched.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from lightkube.models.coordination_v1 import Lease, LeaseSpec
from lightkube.models.core_v1 import Node, NodeSpec
from lightkube.models.meta_v1 import ObjectMeta

from kernelet.core.api.errors import AlreadyExists, ApiError, Conflict, NotFound
from kernelet.core.api.times import now, now_rfc3339
from kernelet.core.client.client import STRATEGIC_PATCH, Client
from kernelet.core.client.informer import Change, Informer

from .containers import NodeIdentity
from .kit import KubeletConfig
from .machine import allocatable, architecture, capacity, node_info

log = logging.getLogger(__name__)

JSON = dict[str, Any]
LEASE_NAMESPACE = "kube-node-lease"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
_PRESSURES = {
    "MemoryPressure": ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    "DiskPressure": ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    "PIDPressure": ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
}


class NodeAgent:
    """Registers the node and keeps its object true. `run` until cancelled."""

    def __init__(self, config: KubeletConfig, identity: NodeIdentity, client: Client) -> None:
        self._config = config
        self._identity = identity
        self._client = client
        self._informer = Informer(client, Node, fields=f"metadata.name={config.node}")
        self._informer.subscribe(self._node_changed)
        self._dirty = asyncio.Event()
        self._cidr = asyncio.Event()
        self._problem: str | None = None
        self._starting = "the kubelet is starting"
        self._runtime_version = ""
        self._since: dict[str, tuple[str, str]] = {}

    def set_health(self, problem: str, runtime_version: str = "") -> None:
        """Says whether pods can run: "" for yes, else why not."""
        if problem != self._problem or (runtime_version and runtime_version != self._runtime_version):
            self._problem = problem
            self._runtime_version = runtime_version or self._runtime_version
            self._dirty.set()

    def set_starting(self, what: str) -> None:
        """Says what the kubelet waits for before its health is known; a node that is new to the API reports it.

        A node that is known to the API keeps what stands there: a kubelet that was restarted must not take the
        node's endpoints away for as long as it starts.
        """
        if what != self._starting:
            self._starting = what
            self._dirty.set()

    async def wait_pod_cidr(self) -> str:
        """The node's pod subnet, once it has one."""
        await self._cidr.wait()
        node = self._informer.get("", self._config.node)
        return str(node.spec.podCIDR) if node and node.spec else ""

    def _node_changed(self, change: Change[Node]) -> None:
        if change.new is None:
            # Deleted under our feet: registered again, as by a start.
            self._cidr.clear()
            self._dirty.set()
            return
        if change.new.spec and change.new.spec.podCIDR:
            self._cidr.set()
        if change.old is None or self._differs(change.new):
            self._dirty.set()

    def _differs(self, node: Node) -> bool:
        """Whether someone else changed what is ours, as the lifecycle controller does when it heard no heartbeat."""
        held = {one.type: one.status for one in (node.status.conditions if node.status else None) or []}
        return any(held.get(kind) != status for kind, (status, _) in self._since.items())

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            self._informer.start(group)
            group.create_task(self._heartbeat(), name="node lease")
            group.create_task(self._keep_status(), name="node status")

    async def _keep_status(self) -> None:
        pause = _FIRST_PAUSE
        self._dirty.set()
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                await self._register()
                # What the API says of the node decides what a starting kubelet says.
                await self._informer.synced()
                await self._write_status()
                pause = _FIRST_PAUSE
            except ApiError as error:
                log.warning("node %s cannot be reported yet: %s", self._config.node, error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
                self._dirty.set()

    async def _register(self) -> None:
        labels = self._labels()
        held = self._informer.get("", self._config.node)
        if held is not None:
            have = (held.metadata.labels if held.metadata else None) or {}
            missing = {key: value for key, value in labels.items() if have.get(key) != value}
            if missing:
                await self._client.patch(Node, self._config.node, {"metadata": {"labels": missing}})
            return
        node = Node(metadata=ObjectMeta(name=self._config.node, labels=labels), spec=NodeSpec())
        try:
            await self._client.create(node)
            log.info("registered node %s", self._config.node)
        except AlreadyExists:
            await self._client.patch(Node, self._config.node, {"metadata": {"labels": labels}})

    def _labels(self) -> dict[str, str]:
        return {
            "kubernetes.io/hostname": self._config.node,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": architecture(),
            **self._config.labels,
        }

    async def _write_status(self) -> None:
        whole = capacity(self._config.state, self._config.max_pods)
        status: JSON = {
            "capacity": whole,
            "allocatable": allocatable(whole),
            "addresses": [
                {"type": "InternalIP", "address": self._config.address},
                {"type": "Hostname", "address": self._config.node},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._config.port}},
            "nodeInfo": node_info(self._runtime_version),
            "conditions": self._conditions(),
        }
        await self._client.patch(
            Node, self._config.node, {"status": status}, subresource="status", media_type=STRATEGIC_PATCH
        )

    def _conditions(self) -> list[JSON]:
        """Merged by type, so that conditions of others stay."""
        rows = [(kind, "False", reason, message) for kind, (reason, message) in _PRESSURES.items()]
        if self._problem is None:
            if not self._is_judged():
                rows.append(("Ready", "False", "KubeletNotReady", self._starting))
        elif self._problem:
            rows.append(("Ready", "False", "KubeletNotReady", self._problem))
        else:
            rows.append(("Ready", "True", "KubeletReady", "kubelet is posting ready status"))
        moment = now_rfc3339()
        conditions = []
        for kind, status, reason, message in rows:
            before = self._since.get(kind)
            since = before[1] if before and before[0] == status else self._held_since(kind, status) or moment
            self._since[kind] = (status, since)
            conditions.append(
                {"type": kind, "status": status, "reason": reason, "message": message}
                | {"lastHeartbeatTime": moment, "lastTransitionTime": since}
            )
        return conditions

    def _is_judged(self) -> bool:
        """Whether the API says of the node, from before this start, that it is Ready, or that it was not heard of."""
        node = self._informer.get("", self._config.node)
        conditions = (node.status.conditions if node and node.status else None) or []
        return any(one.type == "Ready" and one.status != "False" for one in conditions)

    def _held_since(self, kind: str, status: str) -> str:
        node = self._informer.get("", self._config.node)
        for one in (node.status.conditions if node and node.status else None) or []:
            if one.type == kind and one.status == status and one.lastTransitionTime:
                return one.lastTransitionTime.strftime("%Y-%m-%dT%H:%M:%SZ")
        return ""

    async def _heartbeat(self) -> None:
        """Renews the node's Lease at a steady beat; a renewal that takes too long is given up for the next one."""
        lease: Lease | None = None
        beat = self._config.lease_seconds
        due = time.monotonic()
        while True:
            try:
                async with asyncio.timeout(max(beat, 1.0)):
                    lease = await self._renew(lease)
            except (ApiError, TimeoutError) as error:
                log.warning("lease of node %s was not renewed: %s", self._config.node, error or "no answer in time")
                lease = None
            due = max(due + beat, time.monotonic())
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _renew(self, lease: Lease | None) -> Lease:
        name = self._config.node
        if lease is None:
            try:
                lease = await self._client.get(Lease, name, LEASE_NAMESPACE)
            except NotFound:
                meta = ObjectMeta(name=name, namespace=LEASE_NAMESPACE)
                fresh = Lease(metadata=meta, spec=self._lease_spec())
                return await self._client.create(fresh)
        lease.spec = self._lease_spec()
        try:
            return await self._client.update(lease)
        except (Conflict, NotFound):
            return await self._renew(None)

    def _lease_spec(self) -> LeaseSpec:
        return LeaseSpec(
            holderIdentity=self._config.node, leaseDurationSeconds=self._config.lease_duration, renewTime=now()
        )
