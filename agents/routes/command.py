"""`kernelet routes [NODE]`: outside `core`, because --local reads the kernel."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from kernelet.core.api.errors import InternalError, ServiceUnavailable
from kernelet.core.api.kinds import KINDS
from kernelet.core.cli.complete import names
from kernelet.core.cli.failures import CliError
from kernelet.core.cli.settings import Settings, cluster_options, pass_settings, settings_of

if TYPE_CHECKING:
    from kernelet.core.client.raw import RawClient

JSON = dict[str, Any]
NODE = KINDS.by_plural("", "v1", "nodes")


def _complete(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return names(settings_of(ctx), NODE, incomplete)


@click.command("routes")
@click.argument("node", default="", shell_complete=_complete)
@click.option("--service", default="", metavar="NAMESPACE/NAME", help="This service only.")
@click.option("-o", "--output", type=click.Choice(["json"]), help="How to print.")
@click.option("--local", is_flag=True, help="Read this network namespace's kernel, with no help of any daemon.")
@click.option(
    "--engine", type=click.Choice(["nftables", "ebpf"]), help="With --local: default, what clients here meet."
)
@cluster_options()
@pass_settings
def command(settings: Settings, node: str, service: str, output: str | None, local: bool, engine: str | None) -> None:
    """Show the routes a node holds, what its kernel holds, and their difference.

    \b
    kernelet routes                        one line a node
    kernelet routes node-1 --service shop/web
    nsenter --net=/run/netns/kl-default-node-1 kernelet routes --local
    """
    from kernelet.core.cli.output import to_json

    from . import render

    if local:
        from .local import kernel_routes

        if node:
            raise click.UsageError("--local reads the network namespace it runs in; a node's name has no part in that")

        found = kernel_routes(engine)
        click.echo(to_json(found) if output else render.kernel_table(found["kernel"]))
        return
    if engine:
        raise click.UsageError("--engine goes with --local: a node knows which engine it runs")
    reports = settings.run(lambda client: _reports(client, node))
    if service:
        reports = [_only(report, service) for report in reports]
    if output:
        click.echo(to_json(reports[0] if node else reports))
    else:
        click.echo(render.table(reports[0]) if node else render.summary(reports))
    if any("error" in report for report in reports):
        raise CliError("; ".join(report["error"] for report in reports if "error" in report))


async def _reports(client: RawClient, node: str) -> list[JSON]:
    """One node's report, or all nodes', where `error` stands for one that does not answer. Raises ApiError."""
    if node:
        return [await client.node_document(node, "routes")]
    nodes = [item["metadata"]["name"] for item in (await client.list(NODE)).items]
    return await asyncio.gather(*(_report_or_error(client, name) for name in sorted(nodes)))


async def _report_or_error(client: RawClient, node: str) -> JSON:
    try:
        return await client.node_document(node, "routes")
    except (ServiceUnavailable, InternalError) as error:
        return {"node": node, "error": error.message}


def _only(report: JSON, service: str) -> JSON:
    from .render import only

    if "error" in report:
        return report
    try:
        return only(report, service)
    except KeyError:
        raise CliError(
            f"node {report['node']} holds no service {service} at version {report['version']}; "
            "`kernelet get services -A` shows what there is"
        ) from None
