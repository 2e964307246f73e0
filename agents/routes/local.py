"""The routes of this network namespace's kernel, read as a bystander: for when every daemon is dead."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Any

from kernelet.core.cli.failures import CliError
from kernelet.dataplane.proxy import EngineConfig, EngineError, create_engine
from kernelet.dataplane.proxy.ebpf.kernel import PINS, pins_here
from kernelet.dataplane.proxy.expected import Row

from .report import rows_json

_EVERYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))


def kernel_routes(engine: str | None) -> dict[str, Any]:
    """`{engine, kernel: [row]}` of the engine that is asked for, else of the one whose routes clients here meet.

    Raises CliError naming why nothing can be read.
    """
    try:
        pins = pins_here()
        name = engine or ("ebpf" if pins else "nftables")
        rows = _nftables() if name == "nftables" else _ebpf(pins)
    except (EngineError, OSError) as error:
        raise CliError(f"cannot read the routes of this network namespace: {error}") from error
    return {"engine": name, "kernel": rows_json(rows)}


def _nftables() -> frozenset[Row]:
    """Of both families; a node without IPv6 has no table for it. Raises EngineError."""
    rows, errors = frozenset[Row](), []
    for network in _EVERYWHERE:
        try:
            rows |= create_engine("nftables", EngineConfig("", (), (), (network,))).restore()
        except EngineError as error:
            errors.append(error)
    if len(errors) == len(_EVERYWHERE):
        raise errors[0]
    return rows


def _ebpf(pins: Path | None) -> frozenset[Row]:
    """Raises EngineError where no node's programs are pinned for this namespace."""
    if pins is None:
        raise EngineError(
            f"no maps below {PINS} are of a node in this network namespace; run this where the node's processes run, "
            "with nsenter rather than `ip netns exec`, which hides the bpf filesystem"
        )
    return create_engine("ebpf", EngineConfig("", (), (), _EVERYWHERE, pins=pins)).restore()
