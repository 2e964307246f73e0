"""`kernelet trace SERVICE`: connections, chosen backends, latencies and drops of a service, live."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kernelet.core.cli.settings import Settings, cluster_options, pass_settings

if TYPE_CHECKING:
    from .session import Options


@click.command("trace")
@click.argument("service", metavar="SERVICE")
@click.option(
    "--duration", type=click.FloatRange(min=0.1), metavar="SECONDS", help="Then end; default: Ctrl-C ends it."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line: every event, and a summary at the end.")
@click.option("--node", default="", metavar="NAME", help="This node only; default: all nodes on this machine.")
@click.option("--cluster", default="default", show_default=True, help="The cluster's name on this machine.")
@cluster_options()
@pass_settings
def command(settings: Settings, service: str, duration: float | None, as_json: bool, node: str, cluster: str) -> None:
    """Show a service's connections, backends, latencies and drops, as the kernel sees them.

    Run it as root on a node's host. Sockets on this machine are seen, wherever the backend is.

    \b
    kernelet trace web -n shop
    kernelet trace web --duration 10 --json
    """
    from .session import Options

    _run(settings, Options(service, settings.namespace, duration, as_json, node, cluster))


def _run(settings: Settings, options: Options) -> None:
    import asyncio
    import os

    from kernelet.core.cli.failures import CliError

    from .errors import TraceError
    from .session import trace

    # Its failures come as exceptions; what gRPC itself logs would only repeat them.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        asyncio.run(trace(settings.client_config(), options))
    except TraceError as error:
        raise CliError(str(error)) from error
