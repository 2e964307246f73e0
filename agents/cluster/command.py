"""`kernelet cluster ...`: clusters on one machine, each node a network namespace."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any

import click

from kernelet.dataplane.proxy import ENGINES

from .paths import DEFAULT_CLUSTER, ClusterPaths, check_name, existing_clusters


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs a command's coroutine; what a person can mend becomes one line and exit status 1."""
    from kernelet.agents.cluster.machine import ClusterError
    from kernelet.agents.cluster.topology import TopologyError
    from kernelet.agents.kubelet.plugins import RuntimeFailure
    from kernelet.core.api.errors import ApiError

    try:
        return asyncio.run(work)
    except (ClusterError, TopologyError, RuntimeFailure, ApiError, ConnectionError, RuntimeError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        raise click.Abort from None


def need_root(what: str) -> None:
    if os.geteuid() != 0:
        raise click.ClickException(f"{what} needs root for network namespaces and containers; run it with sudo")


def _valid_name(context: click.Context, parameter: click.Parameter, value: str) -> str:
    try:
        return check_name(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def say(text: str) -> None:
    click.echo(f"  {text}", err=True)


engine_option = click.option(
    "--engine", type=click.Choice(ENGINES), default="auto", show_default=True, help="what makes services work on nodes"
)
_named = click.argument("name", default=DEFAULT_CLUSTER, callback=_valid_name)


@click.group("cluster")
def command() -> None:
    """Clusters on one machine, each node a network namespace."""


@command.command("create")
@click.option("--nodes", default=3, show_default=True, type=click.IntRange(1, 200), help="how many nodes")
@click.option("--name", default=DEFAULT_CLUSTER, show_default=True, callback=_valid_name, help="the cluster's name")
@click.option(
    "--store", default="", help="store URL such as etcd://127.0.0.1:2379; default: sqlite in the state folder"
)
@click.option("--toleration-seconds", default=30, show_default=True, help="before pods of a lost node are replaced")
@engine_option
def create(nodes: int, name: str, store: str, toleration_seconds: int, engine: str) -> None:
    """Create a cluster and wait until its nodes are Ready."""
    from kernelet.agents.cluster import machine

    need_root("cluster create")
    spec = run(machine.create(name, nodes, say, store=store, toleration_seconds=toleration_seconds, engine=engine))
    paths = ClusterPaths(name)
    click.echo(f"cluster {name} is ready: {nodes} nodes, API server https://127.0.0.1:{spec.api_port}")
    click.echo(f"  kubectl --kubeconfig {paths.admin_kubeconfig} get nodes")
    click.echo(f"  kernelet --kubeconfig {paths.admin_kubeconfig} get nodes")


@command.command("list")
def list_clusters() -> None:
    """List the clusters of this machine."""
    from kernelet.agents.cluster import machine
    from kernelet.agents.cluster.supervisor import ask

    row = "{:<22} {:<8} {:<10} {}"
    click.echo(row.format("NAME", "NODES", "STATUS", "API SERVER"))
    for name in existing_clusters():
        paths, spec = machine.load(name)
        try:
            asyncio.run(ask(paths, {"op": "status"}))
            status = "running"
        except ConnectionError:
            status = "stopped"
        click.echo(row.format(name, len(spec.nodes) or 1, status, f"https://127.0.0.1:{spec.api_port}"))


@command.command("kubeconfig")
@_named
def kubeconfig(name: str) -> None:
    """Print the administrator's kubeconfig."""
    paths = ClusterPaths(name)
    try:
        click.echo(paths.admin_kubeconfig.read_text(), nl=False)
    except FileNotFoundError:
        raise click.ClickException(
            f"there is no cluster {name!r} on this machine; see `kernelet cluster list`"
        ) from None
    except PermissionError:
        raise click.ClickException(f"{paths.admin_kubeconfig} is readable by root only; run it with sudo") from None


@command.command("stop-node")
@click.argument("node")
@click.option("--name", default=DEFAULT_CLUSTER, show_default=True, callback=_valid_name, help="the cluster's name")
def stop_node(node: str, name: str) -> None:
    """Power a node off: its link, processes, containers and kernel state go at once."""
    from kernelet.agents.cluster import machine

    need_root("cluster stop-node")
    run(machine.stop_node(name, node))
    click.echo(f"{node} is off")


@command.command("start-node")
@click.argument("node")
@click.option("--name", default=DEFAULT_CLUSTER, show_default=True, callback=_valid_name, help="the cluster's name")
def start_node(node: str, name: str) -> None:
    """Power a node on again and wait until it is Ready."""
    from kernelet.agents.cluster import machine

    need_root("cluster start-node")
    run(machine.start_node(name, node))
    click.echo(f"{node} is Ready")


@command.command("delete")
@_named
def delete(name: str) -> None:
    """Remove a cluster with everything it has."""
    from kernelet.agents.cluster import machine

    need_root("cluster delete")
    existed = name in existing_clusters()
    run(machine.delete(name, say))
    click.echo(f"cluster {name} is gone" if existed else f"there was no cluster {name}")
