"""`kernelet status`: control plane, nodes with their routes, and pods, on one screen."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kernelet.core.api import table, times
from kernelet.core.api.errors import JSON
from kernelet.core.api.kinds import KINDS
from kernelet.core.api.table import node_status
from kernelet.core.api.table_pods import pod_status

from . import output as out
from . import yamlio
from .settings import Settings, cluster_options, pass_settings

if TYPE_CHECKING:
    from kernelet.core.client.config import ClientConfig
    from kernelet.core.client.raw import RawClient

LEASE = KINDS.by_plural("coordination.k8s.io", "v1", "leases")
NODE = KINDS.by_plural("", "v1", "nodes")
POD = KINDS.by_plural("", "v1", "pods")
ROUTES_LEASE = "kernelet-routes"
ROUTES_NAME = "kernelet-routes"
ADDRESS = "kernelet.dev/address"
_ROUTES_SECONDS = 3.0


@click.command("status")
@out.output_option("json", "yaml")
@cluster_options()
@pass_settings
def command(settings: Settings, output: str | None) -> None:
    """Show the health of the control plane, nodes and pods; exit status 1 where something is not well."""
    found = settings.run(lambda client: _gather(client, settings))
    if output:
        click.echo(out.to_json(found) if output == "json" else yamlio.dump(found), nl=output == "json")
    else:
        click.echo(render(found))
    if found["problems"]:
        raise SystemExit(1)


async def _gather(client: RawClient, settings: Settings) -> JSON:
    begin = time.perf_counter()
    nodes = await client.list(NODE)
    latency = time.perf_counter() - begin
    leases, pods = await asyncio.gather(client.list(LEASE, "kube-system"), client.list(POD))
    config = settings.client_config()
    found: JSON = {
        "apiServer": {"address": config.address, "revision": nodes.revision, "milliseconds": round(latency * 1000, 1)},
        "leaders": [leader(item, times.now()) for item in leases.items],
        "routes": await _routes(config, leases.items),
        "nodes": [{"name": item["metadata"]["name"], "status": node_status(item)} for item in nodes.items],
        "pods": count_pods(pods.items),
    }
    _join_routes(found)
    found["problems"] = problems(found)
    return found


def leader(lease: JSON, now: datetime) -> JSON:
    """Who holds a lease, and whether it was renewed in time."""
    spec = lease.get("spec") or {}
    renewed = times.parse_or_none(spec.get("renewTime"))
    age = (now - renewed).total_seconds() if renewed else None
    alive = age is not None and bool(spec.get("holderIdentity")) and age <= (spec.get("leaseDurationSeconds") or 15)
    return {
        "name": lease["metadata"]["name"],
        "holder": spec.get("holderIdentity") or "",
        "renewedSecondsAgo": None if age is None else round(age, 1),
        "alive": alive,
    }


def count_pods(pods: list[JSON]) -> JSON:
    """Pods by what kubectl shows as their status, most frequent first."""
    counts: dict[str, int] = {}
    for pod in pods:
        counts[pod_status(pod)] = counts.get(pod_status(pod), 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def routes_target(address: str, config: ClientConfig) -> str:
    """Where to ask the routes server whose lease names `address`; "" where it cannot be reached from here.

    A control plane spoken to by a unix socket may live in another network namespace, where its addresses mean
    nothing here: then a socket beside it is used, or an address of this very host, and nothing is sent elsewhere.
    """
    if not config.address.startswith("unix:"):
        return address
    beside = Path(config.address.removeprefix("unix:").removeprefix("//")).with_name("routes.sock")
    if beside.is_socket():
        return f"unix://{beside}"
    return address if _is_ours(address.rpartition(":")[0].strip("[]")) else ""


def _is_ours(host: str) -> bool:
    """Whether an address belongs to this host: only then can a socket be bound to it."""
    import socket

    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True


async def _routes(config: ClientConfig, leases: list[JSON]) -> JSON:
    """The routes server's own account: its version and what every node acknowledged; or why it cannot be had."""
    lease = next((item for item in leases if item["metadata"]["name"] == ROUTES_LEASE), None)
    address = ((lease or {}).get("metadata") or {}).get("annotations", {}).get(ADDRESS)
    if not address:
        return {"error": f"lease kube-system/{ROUTES_LEASE} names no address; are the controllers running?"}
    if config.token:
        return {"address": address, "unreachable": "it wants a client certificate, and this user has a token"}
    target = routes_target(address, config)
    if not target:
        return {"address": address, "unreachable": "it is in the control plane's own network, not this host's"}
    import grpc
    import grpc.aio

    from kernelet.proto import routes_pb2 as pb
    from kernelet.proto.routes_pb2_grpc import RoutesStub

    credentials = grpc.ssl_channel_credentials(config.ca_pem, config.key_pem or None, config.cert_pem or None)
    options = [("grpc.ssl_target_name_override", ROUTES_NAME), ("grpc.enable_http_proxy", 0)]
    async with grpc.aio.secure_channel(target, credentials, options=options) as channel:
        stub: Any = RoutesStub(channel)
        try:
            answer = await stub.Status(pb.StatusRequest(), timeout=_ROUTES_SECONDS)
        except grpc.aio.AioRpcError as error:
            return {"address": address, "error": f"no answer from {address}: {error.details()}"}
    nodes = {
        node.node: {
            "version": node.acked_version,
            "connected": node.connected,
            "lagSeconds": round(node.lag_seconds, 3),
            "error": node.error,
        }
        for node in answer.nodes
    }
    return {"address": address, "version": answer.version, "generation": answer.generation, "nodes": nodes}


def _join_routes(found: JSON) -> None:
    for node in found["nodes"]:
        node["routes"] = found["routes"].get("nodes", {}).get(node["name"])


def problems(found: JSON) -> list[str]:
    """What is not well, one line each."""
    lines = [f"{item['name']}: no live leader" for item in found["leaders"] if not item["alive"]]
    if found["routes"].get("error"):
        lines.append(f"routes: {found['routes']['error']}")
    for node in found["nodes"]:
        routes = node["routes"]
        if not node["status"].startswith("Ready"):
            lines.append(f"node {node['name']}: {node['status']}")
        elif routes is None:
            if "nodes" in found["routes"]:
                lines.append(f"node {node['name']}: does not take routes")
        elif routes["error"] or not routes["connected"]:
            lines.append(f"node {node['name']}: routes: {routes['error'] or 'not connected'}")
    if not found["nodes"]:
        lines.append("no nodes: start one with `kernelet node`, or `kernelet join` on another host")
    return lines


def render(found: JSON) -> str:
    """The screen."""
    server, routes = found["apiServer"], found["routes"]
    rows = [["api server", "ok", f"{server['address']}, revision {server['revision']}, {server['milliseconds']} ms"]]
    for item in found["leaders"]:
        seconds = item["renewedSecondsAgo"]
        detail = f"{item['holder'] or 'nobody'}, renewed {table.human_age(seconds)} ago" if seconds is not None else "-"
        rows.append([item["name"], "ok" if item["alive"] else "DOWN", detail])
    rows.append(["route feed", *_routes_cells(routes)])
    parts = [out.columns_of_text(["COMPONENT", "STATE", "DETAIL"], rows)]
    if found["nodes"]:
        header = ["NODE", "STATUS", "ROUTES", "LAG"]
        parts.append(out.columns_of_text(header, [_node_row(node) for node in found["nodes"]]))
    pods = ", ".join(f"{count} {status}" for status, count in found["pods"].items()) or "none"
    parts.append(f"Pods: {pods}")
    if found["problems"]:
        parts.append("\n".join(["Not well:", *(f"  {line}" for line in found["problems"])]))
    return "\n\n".join(parts)


def _routes_cells(routes: JSON) -> list[str]:
    if "error" in routes:
        return ["DOWN", routes["error"]]
    if "unreachable" in routes:
        return ["-", f"{routes['address']}: not asked: {routes['unreachable']}"]
    return ["ok", f"{routes['address']}, version {routes['version']}"]


def _node_row(node: JSON) -> list[str]:
    routes = node["routes"]
    if routes is None:
        return [node["name"], node["status"], "-", "-"]
    version = str(routes["version"]) + ("" if routes["connected"] else " (disconnected)")
    return [node["name"], node["status"], version, f"{routes['lagSeconds']:.1f}s"]
