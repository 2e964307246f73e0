"""`kernelet node`: kubelet, service proxy, overlay and DNS of one node in one process; each also runs alone.

A node is whatever network namespace this process was started in: a host's own, or one that plays a host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from kernelet.dataplane.proxy import ENGINES

PARTS = ("kubelet", "proxy", "overlay", "dns")

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--name", default="", help="The node's name; default: the host's name."),
    click.option("--cluster", default="default", show_default=True, help="The cluster's name on this host."),
    click.option("--kubeconfig", default="", metavar="FILE", help="How to reach the API server, as this node."),
    click.option("--node-ip", required=True, metavar="ADDRESS", help="The node's own address on a link that is up."),
    click.option(
        "--data-dir", default="/var/lib/kernelet/node", show_default=True, help="Pods' files and certificates."
    ),
    click.option("--docker-socket", default="/var/run/docker.sock", show_default=True, help="Where dockerd answers."),
    click.option("--cluster-cidr", default="10.244.0.0/16", show_default=True, help="Pod addresses of all nodes."),
    click.option("--service-cidr", default="10.96.0.0/16", show_default=True, help="As the API server's."),
    click.option("--dns-address", default="10.96.0.10", show_default=True, help="The DNS service's address."),
    click.option("--cluster-domain", default="cluster.local", show_default=True, help="The cluster's DNS domain."),
    click.option(
        "--engine",
        type=click.Choice(ENGINES),
        default="auto",
        show_default=True,
        help="Service proxy engine; auto: ebpf where the kernel allows, else nftables.",
    ),
    click.option("--max-pods", default=110, show_default=True, help="Most pods on this node."),
    click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label of the node; several allowed."),
    click.option("--log-level", default="INFO", show_default=True, help="DEBUG, INFO, WARNING or ERROR."),
)


def _options(function: F) -> F:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def _serve(component: str, parts: tuple[str, ...], flags: dict[str, Any]) -> None:
    import asyncio

    from kernelet.agents.nodeagents import NodeOptions, StartError, serve
    from kernelet.core.client import logs

    logs.setup(component, str(flags["log_level"]))
    try:
        asyncio.run(serve(NodeOptions.parse(flags), component, parts))
    except StartError as error:
        raise click.ClickException(str(error)) from error


@click.command("node")
@_options
def command(**flags: Any) -> None:
    """Run all agents of a node: kubelet, service proxy, overlay and DNS."""
    _serve("node", PARTS, flags)


@click.command("kubelet")
@_options
def kubelet_command(**flags: Any) -> None:
    """Run the kubelet alone."""
    _serve("kubelet", ("kubelet",), flags)


@click.command("proxy")
@_options
def proxy_command(**flags: Any) -> None:
    """Run the service proxy alone."""
    _serve("proxy", ("proxy",), flags)


@click.command("overlay")
@_options
def overlay_command(**flags: Any) -> None:
    """Run the overlay alone."""
    _serve("overlay", ("overlay",), flags)


@click.command("dns")
@_options
def dns_command(**flags: Any) -> None:
    """Run the DNS server alone."""
    _serve("dns", ("dns",), flags)
