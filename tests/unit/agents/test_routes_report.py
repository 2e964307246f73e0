"""A node's table beside its kernel: what a report holds, and how it is shown."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any

import click
import pytest
from click.testing import CliRunner

from kernelet.agents.routes import render
from kernelet.agents.routes.command import command
from kernelet.agents.routes.report import report
from kernelet.dataplane.proxy.expected import Row, expected
from kernelet.dataplane.routes import Backend, BackendFlag, Protocol, RouteTable, ServicePort, ServiceRoute


def packed(address: str) -> bytes:
    return ip_address(address).packed


def row(address: str, port: int, backend: str, backend_port: int) -> Row:
    return packed(address), 6, port, packed(backend), backend_port


def route(name: str, address: str, *backends: Backend, **fields: Any) -> ServiceRoute:
    port = ServicePort("http", Protocol.TCP, 80, 0, backends)
    return ServiceRoute(f"shop/{name}", (packed(address),), (port,), **fields)


def table(*routes: ServiceRoute) -> RouteTable:
    return RouteTable("g", 7, {one.id: one for one in routes})


def backend(address: str, node: str = "", flags: BackendFlag = BackendFlag.READY) -> Backend:
    return Backend(packed(address), 8080, flags, node)


WEB = route("web", "10.96.0.1", backend("10.244.0.3"), backend("10.244.1.3"))
WEB_ROWS = frozenset((row("10.96.0.1", 80, "10.244.0.3", 8080), row("10.96.0.1", 80, "10.244.1.3", 8080)))


def rows_of(held: RouteTable, node: str) -> frozenset[Row]:
    return frozenset(one for frontends in expected(held, node).values() for rows in frontends.values() for one in rows)


def test_backends_that_are_not_ready_are_not_expected() -> None:
    gone = backend("10.244.0.9", flags=BackendFlag.NONE)
    assert rows_of(table(route("web", "10.96.0.1", *WEB.ports[0].backends, gone)), "n") == WEB_ROWS


def test_of_a_service_with_a_local_policy_only_the_nodes_own_backends_are_expected() -> None:
    local = route("web", "10.96.0.1", backend("10.244.0.3", "a"), backend("10.244.1.3", "b"), internal_local=True)
    assert rows_of(table(local), "a") == {row("10.96.0.1", 80, "10.244.0.3", 8080)}
    assert rows_of(table(local), "c") == frozenset()


def test_an_address_that_two_services_claim_is_the_firsts() -> None:
    other = route("zoo", "10.96.0.2", backend("10.244.0.9"), external_ips=(packed("10.96.0.1"),))
    held = table(other, WEB)
    assert rows_of(held, "n") == WEB_ROWS | {row("10.96.0.2", 80, "10.244.0.9", 8080)}


def test_a_kernel_that_holds_the_table_is_equal() -> None:
    found = report("n", "nftables", "asked for auto", table(WEB), WEB_ROWS)
    assert (found["node"], found["engine"], found["generation"], found["version"]) == ("n", "nftables", "g", 7)
    assert (found["missing"], found["extra"]) == ([], [])
    assert render.difference(found) == "equal"
    [service] = found["services"]
    backends = [{"address": "10.244.0.3", "port": 8080}, {"address": "10.244.1.3", "port": 8080}]
    frontend = {"address": "10.96.0.1", "protocol": "TCP", "port": 80, "backends": backends}
    assert service == {"id": "shop/web", "frontends": [frontend]}
    assert json.loads(json.dumps(found)) == found


def differing() -> dict[str, Any]:
    kernel = frozenset((row("10.96.0.1", 80, "10.244.0.3", 8080), row("10.96.0.9", 443, "10.244.0.8", 8443)))
    return report("n", "nftables", "", table(WEB, route("idle", "10.96.0.5")), kernel)


def test_missing_and_extra_rows_are_shown_where_they_belong() -> None:
    found = differing()
    assert render.difference(found) == "1 missing, 1 extra"
    head, _, _, *lines = (line.split() for line in render.table(found).splitlines())
    assert head[-4:] == ["1", "missing,", "1", "extra"]
    assert lines == [
        ["shop/idle", "10.96.0.5:80/TCP", "-", "-"],
        ["shop/web", "10.96.0.1:80/TCP", "10.244.0.3:8080", "yes"],
        ["shop/web", "10.96.0.1:80/TCP", "10.244.1.3:8080", "MISSING"],
        ["-", "10.96.0.9:443/TCP", "10.244.0.8:8443", "EXTRA"],
    ]


def test_one_service_is_shown_alone() -> None:
    found = render.only(differing(), "shop/web")
    assert [one["id"] for one in found["services"]] == ["shop/web"]
    assert render.difference(found) == "1 missing"
    with pytest.raises(KeyError):
        render.only(differing(), "shop/none")


def test_a_summary_has_a_line_a_node_also_for_one_that_does_not_answer() -> None:
    lines = render.summary([differing(), {"node": "dead", "error": "unreachable"}]).splitlines()[1:]
    assert lines[0].split() == ["n", "7", "2", "2", "1", "missing,", "1", "extra", "nftables"]
    assert lines[1].split()[:2] == ["dead", "-"]
    assert "does not answer" in lines[1]


def test_an_engine_is_chosen_for_the_local_kernel_only() -> None:
    result = CliRunner().invoke(command, ["node-1", "--engine", "ebpf"])
    assert result.exit_code == click.UsageError.exit_code
    assert "--engine goes with --local" in result.output
