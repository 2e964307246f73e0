"""Reports of nodes as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kernelet.core.cli.output import columns_of_text

JSON = dict[str, Any]


def difference(report: JSON) -> str:
    """`equal`, or how far the kernel is from the table."""
    counts = ((len(report["missing"]), "missing"), (len(report["extra"]), "extra"))
    return ", ".join(f"{count} {name}" for count, name in counts if count) or "equal"


def summary(reports: Sequence[JSON]) -> str:
    """One line a node; a report with `error` is a node that did not answer."""
    rows: list[tuple[Any, ...]] = []
    for report in reports:
        if "error" in report:
            rows.append((report["node"], "-", "-", "-", "unknown: the node does not answer", "-"))
            continue
        frontends = [frontend for service in report["services"] for frontend in service["frontends"]]
        backends = sum(len(frontend["backends"]) for frontend in frontends)
        counts = (report["version"], len(report["services"]), backends)
        rows.append((report["node"], *counts, difference(report), report["engine"]))
    return columns_of_text(("NODE", "VERSION", "SERVICES", "BACKENDS", "KERNEL", "ENGINE"), rows)


def only(report: JSON, service: str) -> JSON:
    """The part of a report that is about one service: its frontends' rows. Raises KeyError for an unknown one."""
    [found] = [one for one in report["services"] if one["id"] == service] or [None]
    if found is None:
        raise KeyError(service)
    mine = {_key(frontend) for frontend in found["frontends"]}
    rows = {part: [row for row in report[part] if _key(row) in mine] for part in ("kernel", "missing", "extra")}
    return report | {"services": [found]} | rows


def table(report: JSON) -> str:
    """Everything a node holds; the last column says what the kernel does."""
    missing = {_row(row) for row in report["missing"]}
    rows: list[tuple[str, ...]] = []
    for service in report["services"]:
        for frontend in service["frontends"]:
            where = _where(frontend)
            for backend in frontend["backends"]:
                key = (*_key(frontend), backend["address"], backend["port"])
                held = "MISSING" if key in missing else "yes"
                rows.append((service["id"], where, join(backend["address"], backend["port"]), held))
            if not frontend["backends"]:
                rows.append((service["id"], where, "-", "-"))
    owners = {_key(frontend): one["id"] for one in report["services"] for frontend in one["frontends"]}
    for row in report["extra"]:
        backend = join(row["backend"], row["backendPort"])
        rows.append((owners.get(_key(row), "-"), _where(row), backend, "EXTRA"))
    reason = f" ({report['engineReason']})" if report["engineReason"] else ""
    head = f"node {report['node']}: version {report['version']}, engine {report['engine']}{reason}"
    text = columns_of_text(("SERVICE", "ADDRESS", "BACKEND", "IN KERNEL"), rows)
    return f"{head}, kernel: {difference(report)}\n\n{text}"


def kernel_table(rows: Sequence[JSON]) -> str:
    """What a kernel holds, with nothing to compare it with."""
    texts = [(_where(row), join(row["backend"], row["backendPort"])) for row in rows]
    return columns_of_text(("ADDRESS", "BACKEND"), texts)


def join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _where(part: JSON) -> str:
    return f"{join(part['address'], part['port'])}/{part['protocol']}"


def _key(part: JSON) -> tuple[str, str, int]:
    return part["address"], part["protocol"], part["port"]


def _row(row: JSON) -> tuple[str, str, int, str, int]:
    return (*_key(row), row["backend"], row["backendPort"])
