"""A node's routes as JSON.

`{node, engine, engineReason, generation, version, services: [{id, frontends: [{address, protocol, port, backends:
[{address, port}]}]}], kernel: [row], missing: [row], extra: [row]}`; a row is `{address, protocol, port, backend,
backendPort}`: missing ones are in the table and not in the kernel, extra ones the other way round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Any

from kernelet.dataplane.proxy.expected import Frontend, Row, expected
from kernelet.dataplane.routes import Protocol, RouteTable

JSON = dict[str, Any]


def report(node: str, engine: str, reason: str, table: RouteTable, kernel: frozenset[Row]) -> JSON:
    """`reason`: why it is this engine. Raises EngineError for a table that no engine could hold."""
    services = expected(table, node)
    wanted = frozenset(row for frontends in services.values() for rows in frontends.values() for row in rows)
    return {
        "node": node,
        "engine": engine,
        "engineReason": reason,
        "generation": table.generation,
        "version": table.version,
        "services": [{"id": name, "frontends": _frontends(held)} for name, held in services.items()],
        "kernel": rows_json(kernel),
        "missing": rows_json(wanted - kernel),
        "extra": rows_json(kernel - wanted),
    }


def _frontends(held: Mapping[Frontend, frozenset[Row]]) -> list[JSON]:
    return [
        _frontend(frontend) | {"backends": [{"address": _text(row[3]), "port": row[4]} for row in sorted(rows)]}
        for frontend, rows in sorted(held.items())
    ]


def rows_json(rows: Iterable[Row]) -> list[JSON]:
    return [
        _frontend((row[0], row[1], row[2])) | {"backend": _text(row[3]), "backendPort": row[4]} for row in sorted(rows)
    ]


def _frontend(frontend: Frontend) -> JSON:
    address, protocol, port = frontend
    known = protocol in Protocol.__members__.values()
    return {
        "address": _text(address),
        "protocol": Protocol(protocol).name if known else str(protocol),
        "port": port,
    }


def _text(address: bytes) -> str:
    return str(ip_address(address))
