"""Running the routes server: while it leads, one RouteFeed behind one mTLS port."""

from __future__ import annotations

import asyncio
import logging
import uuid
from dataclasses import dataclass

import click

from kernelet.core.client.config import ClientConfig

log = logging.getLogger(__name__)

LEASE_NAME = "kernelet-routes"
SERVER_NAME = "kernelet-routes"
"""The name in the server's certificate, whatever address it is reached by."""


@dataclass(frozen=True)
class RoutesConfig:
    """Where to serve, and with which certificate (its SANs include `kernelet-routes`)."""

    bind: str
    """`host:port` or `[host]:port`"""
    ca_pem: bytes
    cert_pem: bytes
    key_pem: bytes
    socket: str = ""
    """Also serve on this unix socket: for people on this host whose network is another one."""


async def run_routes(client_config: ClientConfig, config: RoutesConfig) -> None:
    """Serves the route feed until cancelled. Run it under leader election: one generation is one call.

    Raises OSError where the port is taken.
    """
    import grpc.aio

    from kernelet.core.client.client import Client

    from .feed import RouteFeed

    # The generation needs no order, only to differ from every other one.
    async with Client(client_config) as client:
        feed = RouteFeed(client, uuid.uuid4().hex)
        server = grpc.aio.server(
            options=[
                ("grpc.max_send_message_length", -1),
                ("grpc.keepalive_time_ms", 10_000),
                ("grpc.keepalive_timeout_ms", 5_000),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
                ("grpc.so_reuseport", 0),
            ]
        )
        server.add_generic_rpc_handlers((feed.handler(),))
        credentials = grpc.ssl_server_credentials(
            [(config.key_pem, config.cert_pem)], root_certificates=config.ca_pem, require_client_auth=True
        )
        try:
            server.add_secure_port(config.bind, credentials)
            if config.socket:
                server.add_secure_port(f"unix:{config.socket}", credentials)
        except RuntimeError as error:
            raise OSError(
                f"routes server: cannot listen on {config.bind}: {error}; free the port or choose another"
            ) from error
        await server.start()
        log.info("serving the route feed address=%s", config.bind)
        try:
            await feed.run()
        finally:
            await server.stop(grace=None)


@click.command("routes-server")
@click.option("--kubeconfig", type=click.Path(dir_okay=False), help="how to reach the API server, and as whom")
@click.option("--bind", default="0.0.0.0:6446", show_default=True, help="address of the route feed")
@click.option("--advertise", default="", help="address nodes reach it by; default: --bind")
def command(kubeconfig: str | None, bind: str, advertise: str) -> None:
    """Serve the route feed alone (usually part of `kernelet controllers`)."""
    from kernelet.core.client import logs
    from kernelet.core.client.client import Client
    from kernelet.core.client.election import LeaderElector
    from kernelet.core.security.kubeconfig import load_kubeconfig

    logs.setup("routes", "INFO")
    client_config = load_kubeconfig(kubeconfig)
    config = RoutesConfig(bind, client_config.ca_pem, client_config.cert_pem, client_config.key_pem)

    async def lead() -> None:
        async with Client(client_config) as client:
            elector = LeaderElector(client, LEASE_NAME, address=advertise or bind)
            await elector.run(lambda: run_routes(client_config, config))

    asyncio.run(lead())
