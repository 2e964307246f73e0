"""`kernelet controllers`: controller manager, scheduler and routes in one process, each under its own lease."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import asyncio

    from kernelet.core.client.client import Client
    from kernelet.core.client.config import ClientConfig
    from kernelet.core.controllers.manager import ManagerConfig

PARTS = ("controllers", "scheduler", "routes")


@dataclass(frozen=True)
class Connection:
    """How to reach the API server: a kubeconfig, or address and certificate files."""

    kubeconfig: str = ""
    server: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""

    def load(self) -> ClientConfig:
        """Raises click.UsageError where files are missing from the flags, KubeconfigError, OSError."""
        from kernelet.core.client.config import ClientConfig
        from kernelet.core.security.kubeconfig import load_kubeconfig

        if not self.server:
            return load_kubeconfig(self.kubeconfig or None)
        if not (self.ca and self.cert and self.key):
            raise click.UsageError("--server needs --ca, --cert and --key, or use --kubeconfig")
        return ClientConfig(
            address=self.server,
            ca_pem=Path(self.ca).read_bytes(),
            cert_pem=Path(self.cert).read_bytes(),
            key_pem=Path(self.key).read_bytes(),
        )


@dataclass(frozen=True)
class RoutesFlags:
    """Where the route feed is served (`host`, `port`), the address nodes reach it by, and its certificate's files."""

    bind: str
    port: int
    advertise: str
    cert: str
    key: str
    socket: str = ""


async def serve(connection: ClientConfig, config: ManagerConfig, routes: RoutesFlags, parts: tuple[str, ...]) -> None:
    """Runs the parts until cancelled; each competes for its own lease and starts when it leads.

    Raises what ends a part: the others are cancelled, so that a supervisor restarts the whole.
    """
    import asyncio

    from kernelet.core.client.client import Client

    async with Client(connection) as client, asyncio.TaskGroup() as group:
        if "controllers" in parts:
            group.create_task(_run_controllers(client, config), name="controllers")
        if "scheduler" in parts:
            group.create_task(_run_scheduler(client), name="scheduler")
        if "routes" in parts:
            group.create_task(_run_routes(client, routes), name="routes")


async def _run_controllers(client: Client, config: ManagerConfig) -> None:
    from kernelet.core.client.election import LeaderElector
    from kernelet.core.controllers.manager import LEASE_NAME, run_controllers

    await LeaderElector(client, LEASE_NAME).run(lambda: run_controllers(client, config))


async def _run_scheduler(client: Client) -> None:
    from kernelet.core.scheduler.config import SchedulerConfig
    from kernelet.core.scheduler.main import run_elected

    await run_elected(client, SchedulerConfig())


async def _run_routes(client: Client, flags: RoutesFlags) -> None:
    from kernelet.core.client.election import LeaderElector
    from kernelet.core.routes.main import LEASE_NAME, RoutesConfig, run_routes

    connection = client.config
    config = RoutesConfig(
        bind=join_address(flags.bind, flags.port),
        ca_pem=connection.ca_pem,
        cert_pem=read(flags.cert) or connection.cert_pem,
        key_pem=read(flags.key) or connection.key_pem,
        socket=flags.socket,
    )
    address = flags.advertise or own_address(flags.bind)
    elector = LeaderElector(client, LEASE_NAME, address=join_address(address, flags.port))
    await elector.run(lambda: run_routes(connection, config))


def read(path: str) -> bytes:
    """A file's bytes; b"" for no path. Raises OSError."""
    return Path(path).read_bytes() if path else b""


def join_address(host: str, port: int) -> str:
    """`host:port`, or `[host]:port` for an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def own_address(bind: str) -> str:
    """The address others reach a server bound to `bind` by: itself, or for a wildcard the one of the default route.

    No packet is sent: connecting a UDP socket only asks the kernel for the route (ip(7)).
    """
    import socket

    if bind not in ("", "0.0.0.0", "::"):
        return bind
    family, far = (socket.AF_INET6, "2001:db8::1") if bind == "::" else (socket.AF_INET, "192.0.2.1")
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((far, 9))
        except OSError:
            return "::1" if family == socket.AF_INET6 else "127.0.0.1"
        return str(probe.getsockname()[0])


def stop_on_signals(task: asyncio.Task[None]) -> None:
    """SIGTERM and SIGINT cancel the task, which releases the leases."""
    import asyncio
    import signal

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)


async def _until_stopped(
    connection: ClientConfig, config: ManagerConfig, routes: RoutesFlags, parts: tuple[str, ...]
) -> None:
    import asyncio

    task = asyncio.create_task(serve(connection, config, routes, parts), name="serve")
    stop_on_signals(task)
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


@click.command("controllers")
@click.option("--kubeconfig", default="", metavar="FILE", help="How to reach the API server, and as whom.")
@click.option("--server", default="", metavar="ADDRESS", help="host:port or unix:///path, with --ca, --cert and --key.")
@click.option("--ca", default="", metavar="FILE", help="The cluster's CA certificate.")
@click.option("--cert", default="", metavar="FILE", help="The client's certificate.")
@click.option("--key", default="", metavar="FILE", help="The client's key.")
@click.option("--only", default=",".join(PARTS), show_default=True, help="The parts to run, separated by commas.")
@click.option("--cluster-cidr", default="10.244.0.0/16", show_default=True, help="Pod addresses of all nodes.")
@click.option("--node-cidr-mask-size", default=24, show_default=True, help="Size of a node's pod subnet.")
@click.option("--node-cidr-mask-size-ipv6", default=64, show_default=True, help="The same, of an IPv6 network.")
@click.option("--node-monitor-grace-period", default="4s", show_default=True, help="Silence that loses a node.")
@click.option("--node-monitor-period", default="1s", show_default=True, help="How often a node renews its lease.")
@click.option("--terminated-pod-gc-threshold", default=12_500, show_default=True, help="Finished pods kept; 0: all.")
@click.option("--orphan-quarantine", default="10s", show_default=True, help="Before pods of a deleted node go.")
@click.option("--bind", default="0.0.0.0", show_default=True, help="Address of the route feed.")
@click.option("--routes-port", default=6446, show_default=True, help="Port of the route feed.")
@click.option("--advertise-address", default="", help="Where nodes reach the route feed; default: this host's address.")
@click.option("--routes-cert", default="", metavar="FILE", help="The route feed's certificate; default: the client's.")
@click.option("--routes-key", default="", metavar="FILE", help="Its key.")
@click.option("--routes-socket", default="", metavar="PATH", help="Also serve the route feed on this unix socket.")
@click.option("--log-level", default="INFO", show_default=True, help="DEBUG, INFO, WARNING or ERROR.")
def command(
    kubeconfig: str,
    server: str,
    ca: str,
    cert: str,
    key: str,
    only: str,
    cluster_cidr: str,
    node_cidr_mask_size: int,
    node_cidr_mask_size_ipv6: int,
    node_monitor_grace_period: str,
    node_monitor_period: str,
    terminated_pod_gc_threshold: int,
    orphan_quarantine: str,
    bind: str,
    routes_port: int,
    advertise_address: str,
    routes_cert: str,
    routes_key: str,
    routes_socket: str,
    log_level: str,
) -> None:
    """Run the controllers, the scheduler and the routes server."""
    import asyncio

    from kernelet.core.client import logs
    from kernelet.core.controllers.manager import ManagerConfig
    from kernelet.core.security.kubeconfig import KubeconfigError

    logs.setup("controllers", log_level)
    try:
        config = ManagerConfig(
            cluster_cidr=cluster_cidr,
            node_cidr_mask_size=node_cidr_mask_size,
            node_cidr_mask_size_ipv6=node_cidr_mask_size_ipv6,
            node_monitor_grace_period=seconds(node_monitor_grace_period),
            node_monitor_period=seconds(node_monitor_period),
            terminated_pod_gc_threshold=terminated_pod_gc_threshold,
            orphan_quarantine=seconds(orphan_quarantine),
        )
        config.networks()
        connection = Connection(kubeconfig, server, ca, cert, key).load()
        routes = RoutesFlags(bind, routes_port, advertise_address, routes_cert, routes_key, routes_socket)
        asyncio.run(_until_stopped(connection, config, routes, parse_parts(only)))
    except (ValueError, OSError, KubeconfigError) as error:
        raise click.ClickException(str(error)) from error


def parse_parts(text: str) -> tuple[str, ...]:
    """The parts named; raises ValueError for one there is not."""
    parts = tuple(part for part in (piece.strip() for piece in text.split(",")) if part)
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise ValueError(f"--only {text!r}: choose from {', '.join(PARTS)}, separated by commas")
    return parts


def seconds(text: str) -> float:
    """`4`, `4s`, `500ms`, `2m` or `1h`, in seconds. Raises ValueError."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    unit = next((unit for unit in ("ms", "s", "m", "h") if text.endswith(unit)), "")
    try:
        return float(text.removesuffix(unit)) * units.get(unit, 1.0)
    except ValueError:
        raise ValueError(f"{text!r} is no duration: write 4s, 500ms, 2m or 1h") from None
