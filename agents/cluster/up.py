"""`kernelet up` and `kernelet join`: this host as control plane and node, or as one more node."""

from __future__ import annotations

import ipaddress
import platform
import socket

import click

from .command import engine_option, need_root, run


def host_address() -> str:
    """The address this host reaches others by; nothing is sent to find it. Raises ClickException without a route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1 (RFC 5737): connecting a datagram socket only asks for a route
        except OSError as error:
            raise click.ClickException(f"cannot tell this host's address ({error}); give it with --address") from error
        return str(probe.getsockname()[0])


def _valid_address(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if not value:
        return host_address()
    try:
        return str(ipaddress.IPv4Address(value))
    except ValueError as error:
        raise click.BadParameter(f"{error}; give an IPv4 address of this host") from error


_address = click.option(
    "--address", default="", callback=_valid_address, help="this host's address as other hosts see it"
)
RESERVED = ("apiserver", "controllers", "etcd", "supervisor")
"""Other processes of a cluster, whose pid and log files a node of that name would take."""


def _valid_node_name(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if value.lower() in RESERVED:
        raise click.BadParameter(f"{value!r} is the name of another process of the cluster; give the node another name")
    return value.lower()


_node_name = click.option(
    "--node-name", default=platform.node, callback=_valid_node_name, show_default="host name", help="the node's name"
)


@click.command("up")
@_address
@_node_name
@click.option("--store", default="", help="store URL such as etcd://10.0.0.5:2379; default: sqlite in the state folder")
@click.option("--control-plane-only", is_flag=True, help="run no pods on this host")
@click.option("--cluster-cidr", default="10.244.0.0/16", show_default=True, help="addresses of pods")
@click.option("--service-cidr", default="10.96.0.0/16", show_default=True, help="addresses of services")
@engine_option
def command(
    address: str,
    node_name: str,
    store: str,
    control_plane_only: bool,
    cluster_cidr: str,
    service_cidr: str,
    engine: str,
) -> None:
    """Run a cluster on this host until interrupted; other hosts join it with the command that it prints."""
    from kernelet.agents.cluster import host

    need_root("up")
    node = "" if control_plane_only else node_name
    run(host.up(address, node, store, cluster_cidr, service_cidr, engine))


@click.command("join")
@click.argument("server")
@click.option("--token", required=True, help="the token that `kernelet up` printed")
@_address
@_node_name
@engine_option
def join_command(server: str, token: str, address: str, node_name: str, engine: str) -> None:
    """Make this host a node of the cluster at SERVER, until interrupted."""
    from kernelet.agents.cluster import host

    need_root("join")
    run(host.join(server, token, address, node_name, engine))
