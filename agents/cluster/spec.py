"""What a cluster on this host consists of: plain data, kept as JSON beside the cluster's state."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Unit:
    """One supervised process."""

    name: str
    argv: tuple[str, ...]
    netns: str = ""
    """Path of the network namespace it starts in; "" for the host's."""
    listen: str = ""
    """`address:port` that the supervisor binds in the host's network namespace and passes on as --listen-fd."""


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One node of a cluster whose nodes are network namespaces."""

    name: str
    address: str


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    name: str
    kind: str
    """`host`: the node is this host. `namespaces`: each node is a network namespace."""
    api_port: int
    docker_socket: str
    units: tuple[Unit, ...]
    nodes: tuple[NodeSpec, ...] = field(default=())

    def save(self, path: Path) -> None:
        """Atomically, so that a reader sees the old or the new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(asdict(self), indent=1))
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> ClusterSpec:
        """Raises FileNotFoundError, and ValueError naming the file where it is damaged."""
        try:
            data: dict[str, Any] = json.loads(path.read_text())
            units = tuple(Unit(u["name"], tuple(u["argv"]), u["netns"], u["listen"]) for u in data["units"])
            nodes = tuple(NodeSpec(**node) for node in data["nodes"])
            return cls(data["name"], data["kind"], data["api_port"], data["docker_socket"], units, nodes)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: damaged: {error}; remove the cluster with `kernelet reset`") from error

    def unit(self, name: str) -> Unit:
        """Raises KeyError naming what there is."""
        for unit in self.units:
            if unit.name == name:
                return unit
        raise KeyError(f"cluster {self.name} has no unit {name!r}, only {', '.join(u.name for u in self.units)}")
