"""Where a cluster's files are on this host."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

STATE_ROOT = Path("/var/lib/kernelet")
RUN_ROOT = Path("/run/kernelet")
DEFAULT_CLUSTER = "default"
DOCKER_DATA = STATE_ROOT / "docker"
RESERVED = ("docker",)
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?")


def check_name(name: str) -> str:
    """The name itself. Raises ValueError: names become parts of namespace and cgroup names."""
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise ValueError(
            f"cluster name {name!r}: use up to 22 lower-case letters, digits and dashes, and none of {RESERVED}"
        )
    return name


@dataclass(frozen=True, slots=True)
class ClusterPaths:
    """All paths of one cluster."""

    name: str
    state_root: Path = STATE_ROOT
    run_root: Path = RUN_ROOT

    @property
    def state(self) -> Path:
        return self.state_root / self.name

    @property
    def run(self) -> Path:
        return self.run_root / self.name

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def admin_kubeconfig(self) -> Path:
        return self.state / "admin.kubeconfig"

    @property
    def controllers_kubeconfig(self) -> Path:
        return self.state / "controllers.kubeconfig"

    @property
    def spec(self) -> Path:
        """The cluster's units, as the supervisor reads them."""
        return self.state / "cluster.json"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def registry_socket(self) -> Path:
        return self.run / "registry.sock"

    @property
    def supervisor_socket(self) -> Path:
        return self.run / "supervisor.sock"

    def pid_file(self, unit: str) -> Path:
        return self.run / f"{unit}.pid"

    def log_file(self, unit: str) -> Path:
        return self.logs / f"{unit}.log"

    def node(self, node: str) -> Path:
        return self.state / "nodes" / node


def existing_clusters() -> list[str]:
    """Names of the clusters that have state on this host."""
    return sorted(path.parent.name for path in STATE_ROOT.glob("*/cluster.json"))
