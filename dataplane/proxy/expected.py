"""What an engine is wanted to hold on a node, in the form in which `Engine.restore` tells what it does hold."""

from __future__ import annotations

from itertools import chain, product

from ..routes import RouteTable
from .semantics import views

Frontend = tuple[bytes, int, int]
"""Service address, protocol, port."""
Row = tuple[bytes, int, int, bytes, int]
"""A frontend, backend address and backend port."""


def expected(table: RouteTable, node: str) -> dict[str, dict[Frontend, frozenset[Row]]]:
    """Rows by service id and frontend, a frontend without backends included. Node ports are not among them.

    Of services that claim the same frontend the one whose id sorts first has it, as in every engine. Raises EngineError
    for an address that is none.
    """
    found: dict[str, dict[Frontend, frozenset[Row]]] = {}
    taken: set[Frontend] = set()
    zone = table.zone_of(node)
    for name, service in sorted(table.services.items()):
        mine = found.setdefault(name, {})
        for view in views(service, node, zone):
            pairs = chain(
                product(view.cluster_ips, (view.internal,)),
                product((*view.external_ips, *view.balancer_ips), (view.everyone,)),
            )
            for address, backends in pairs:
                frontend = (address, int(view.protocol), view.port)
                if frontend not in taken:
                    mine[frontend] = frozenset((*frontend, backend.address, backend.port) for backend in backends)
        taken.update(mine)
    return found
