"""From a pod's container to what the runtime is asked for: names, labels, resources, security."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightkube.models.core_v1 import Container, Pod, PodSecurityContext, SecurityContext

from . import pods
from .env import expand
from .plugins import ContainerSpec, ContainerStatus, Mount
from .podfiles import hostname

LABEL_CLUSTER = "io.kernelet.cluster"
LABEL_NODE = "io.kernelet.node"
LABEL_POD_UID = "io.kernelet.pod.uid"
LABEL_POD_NAMESPACE = "io.kernelet.pod.namespace"
LABEL_POD_NAME = "io.kernelet.pod.name"
LABEL_CONTAINER = "io.kernelet.container.name"
LABEL_KIND = "io.kernelet.kind"
LABEL_RESTART = "io.kernelet.restart"
LABEL_HASH = "io.kernelet.hash"
LABEL_GRACE = "io.kernelet.grace"
"""Seconds of grace that a container gets when its pod is gone from the API."""

SANDBOX, CONTAINER = "sandbox", "container"

_MIN_SHARES, _MAX_SHARES = 2, 262_144
_MIN_QUOTA = 1_000
_PERIOD = 100_000
_GUARANTEED_OOM, _BEST_EFFORT_OOM, _SANDBOX_OOM = -997, 1000, -998


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """Whose containers these are."""

    cluster: str
    node: str

    def labels(self) -> dict[str, str]:
        return {LABEL_CLUSTER: self.cluster, LABEL_NODE: self.node}


def cgroup_parent(identity: NodeIdentity, driver: str) -> str:
    """The parent cgroup of a node's containers, in the form that docker's cgroup driver wants (systemd.slice(5))."""
    if driver == "systemd":
        return f"kernelet-{slice_part(identity.cluster)}-{slice_part(identity.node)}.slice"
    return f"/kernelet/{identity.cluster}.{identity.node}/"


def slice_part(name: str) -> str:
    """A name as a part of a slice's: a dash would mean a child slice, so it is escaped as systemd-escape(1) does."""
    return re.sub(r"[^A-Za-z0-9_.]", lambda found: f"\\x{ord(found[0]):02x}", name)


def restart_of(status: ContainerStatus) -> int:
    """Which attempt a container is: 0 for the first."""
    return int(status.labels.get(LABEL_RESTART, "0"))


def is_sandbox(status: ContainerStatus) -> bool:
    return status.labels.get(LABEL_KIND) == SANDBOX


def runtime_name(container: str, pod: Pod, attempt: int) -> str:
    """`kl_web_shop_front-1_<uid>_0`: unique, and readable in `docker ps`."""
    return f"kl_{container}_{pods.namespace(pod)}_{pods.name(pod)}_{pods.uid(pod)}_{attempt}"


def pod_labels(identity: NodeIdentity, pod: Pod, kind: str, container: str, attempt: int) -> dict[str, str]:
    return identity.labels() | {
        LABEL_POD_UID: pods.uid(pod),
        LABEL_POD_NAMESPACE: pods.namespace(pod),
        LABEL_POD_NAME: pods.name(pod),
        LABEL_CONTAINER: container,
        LABEL_KIND: kind,
        LABEL_RESTART: str(attempt),
        LABEL_GRACE: str(int(pods.grace_seconds(pod))),
    }


def sandbox_spec(identity: NodeIdentity, pod: Pod, image: str, attempt: int) -> ContainerSpec:
    """The pause container, which holds the pod's namespaces."""
    spec = pods.spec(pod)
    return ContainerSpec(
        name=runtime_name("pause", pod, attempt),
        image=image,
        labels=pod_labels(identity, pod, SANDBOX, "pause", attempt),
        hostname="" if spec.hostNetwork else hostname(pod),
        host_network=bool(spec.hostNetwork),
        host_pid=bool(spec.hostPID),
        oom_score_adj=_SANDBOX_OOM,
    )


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a container is started into."""

    identity: NodeIdentity
    sandbox: str
    attempt: int
    env: Mapping[str, str]
    mounts: Sequence[Mount]
    node_memory: int
    """Bytes, for the out-of-memory score."""


def container_spec(pod: Pod, container: Container, around: Surroundings) -> ContainerSpec:
    spec = pods.spec(pod)
    own = container.securityContext or SecurityContext()
    shared = spec.securityContext or PodSecurityContext()
    capabilities = own.capabilities
    labels = pod_labels(around.identity, pod, CONTAINER, container.name, around.attempt)
    limit = pods.limit(container, "memory") or 0
    return ContainerSpec(
        name=runtime_name(container.name, pod, around.attempt),
        image=container.image or "",
        labels=labels | {LABEL_HASH: pods.spec_hash(container)},
        command=[expand(word, around.env) for word in container.command or []],
        args=[expand(word, around.env) for word in container.args or []],
        working_dir=container.workingDir or "",
        env=around.env,
        mounts=around.mounts,
        cpu_shares=cpu_shares(pods.request(container, "cpu") or 0),
        cpu_quota=cpu_quota(pods.limit(container, "cpu") or 0),
        memory_limit=limit,
        sandbox=around.sandbox,
        privileged=bool(own.privileged),
        read_only_root=bool(own.readOnlyRootFilesystem),
        user=user_of(own, shared),
        groups=[*(shared.supplementalGroups or []), *([] if shared.fsGroup is None else [shared.fsGroup])],
        add_capabilities=(capabilities.add or []) if capabilities else [],
        drop_capabilities=(capabilities.drop or []) if capabilities else [],
        tty=bool(container.tty),
        stdin=bool(container.stdin),
        oom_score_adj=oom_score_adj(pod, container, around.node_memory),
        share_processes=bool(spec.shareProcessNamespace),
        host_pid=bool(spec.hostPID),
        no_new_privileges=own.allowPrivilegeEscalation is False,
    )


def user_of(own: SecurityContext, shared: PodSecurityContext) -> str:
    """`uid[:gid]`, the container's own setting before the pod's."""
    user = own.runAsUser if own.runAsUser is not None else shared.runAsUser
    group = own.runAsGroup if own.runAsGroup is not None else shared.runAsGroup
    if group is None:
        return "" if user is None else str(user)
    return f"{user or 0}:{group}"


def cpu_shares(millis: int) -> int:
    """Relative weight of a CPU request: 1024 a core."""
    return min(max(millis * 1024 // 1000, _MIN_SHARES), _MAX_SHARES)


def cpu_quota(millis: int) -> int:
    """Microseconds a period of 100 ms; 0: no limit."""
    return max(millis * _PERIOD // 1000, _MIN_QUOTA) if millis else 0


def oom_score_adj(pod: Pod, container: Container, node_memory: int) -> int:
    """Who dies first when the node is out of memory: best effort, then who asked for least, guaranteed last."""
    quality = pods.quality(pod)
    if quality == "Guaranteed":
        return _GUARANTEED_OOM
    if quality == "BestEffort":
        return _BEST_EFFORT_OOM
    share = 1000 * (pods.request(container, "memory") or 0) // max(node_memory, 1)
    return min(max(1000 - share, 3), _BEST_EFFORT_OOM - 1)
