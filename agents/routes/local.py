"""The routes of this network namespace's kernel, read as a bystander: for when every daemon is dead."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any

from kernelet.core.cli.failures import CliError
from kernelet.dataplane.proxy import EngineConfig, EngineError, create_engine
from kernelet.dataplane.proxy.expected import Row

from .report import rows_json

ENGINES = ("nftables", "ebpf")
_PINS = Path("/sys/fs/bpf/kernelet")
_EVERYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))


def kernel_routes(engine: str | None, node: str) -> dict[str, Any]:
    """`{engine, kernel: [row]}` of the engine that is asked for, else of the first that has routes here.

    Raises CliError naming why nothing can be read.
    """
    reasons = []
    for name in (engine,) if engine else ENGINES:
        try:
            rows = _nftables() if name == "nftables" else _restore(name, node or _only_node(), _EVERYWHERE)
            return {"engine": name, "kernel": rows_json(rows)}
        except (EngineError, PermissionError) as error:
            reasons.append(f"{name}: {error}")
    raise CliError("; ".join(reasons))


def _nftables() -> frozenset[Row]:
    """Of both families; a node without IPv6 has no table for it. Raises EngineError."""
    rows, errors = frozenset[Row](), []
    for network in _EVERYWHERE:
        try:
            rows |= _restore("nftables", "", (network,))
        except EngineError as error:
            errors.append(error)
    if len(errors) == len(_EVERYWHERE):
        raise errors[0]
    return rows


def _only_node() -> str:
    """The node whose maps are pinned on this machine. Raises EngineError where that is not one."""
    found = sorted(path.name for path in _PINS.iterdir()) if _PINS.is_dir() else []
    if len(found) != 1:
        which = ", ".join(found) or "no node"
        raise EngineError(f"{_PINS} has maps of {which}; name one: kernelet routes --local --engine ebpf NODE")
    return found[0]


def _restore(engine: str, node: str, networks: tuple[IPv4Network | IPv6Network, ...]) -> frozenset[Row]:
    """Before start(), an engine only looks."""
    return create_engine(engine, EngineConfig(node, (), (), networks)).restore()
