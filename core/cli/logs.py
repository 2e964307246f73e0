"""`kernelet logs`: a container's log, proxied from its node."""

from __future__ import annotations

import re
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING

import click

from .complete import complete_pod
from .pods import choose_container, find_pod, pod_target
from .settings import Settings, cluster_options, pass_settings

if TYPE_CHECKING:
    from kernelet.core.api.errors import JSON
    from kernelet.core.client.raw import LogOptions, RawClient

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration(text: str) -> float:
    """Seconds of `90`, `90s`, `1h30m`: a type of options. Raises click.BadParameter."""
    text = str(text).strip()
    try:
        return float(text)
    except ValueError:
        parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise click.BadParameter(f"{text!r} is not a duration; write 90s, 5m or 1h30m")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


@click.command("logs")
@click.argument("target", metavar="POD | TYPE/NAME", shell_complete=complete_pod)
@click.option("-c", "--container", default="", metavar="NAME", help="Which container; default: the first.")
@click.option("--all-containers", is_flag=True, help="One container after the other.")
@click.option("-f", "--follow", is_flag=True, help="Go on as the log grows.")
@click.option("-p", "--previous", is_flag=True, help="Of the instance before the last restart.")
@click.option("--tail", type=click.IntRange(min=-1), default=-1, metavar="LINES", help="The last lines only; -1: all.")
@click.option("--since", type=duration, default=0.0, metavar="DURATION", help="Not older: 30s, 5m, 1h.")
@click.option("--limit-bytes", type=click.IntRange(min=0), default=0, metavar="BYTES", help="Not more; 0: all.")
@click.option("--timestamps", is_flag=True, help="Each line with its time.")
@cluster_options()
@pass_settings
def command(
    settings: Settings,
    target: str,
    container: str,
    all_containers: bool,
    follow: bool,
    previous: bool,
    tail: int,
    since: float,
    limit_bytes: int,
    timestamps: bool,
) -> None:
    """Print a container's log.

    \b
    kernelet logs web-1 -f --tail 20
    kernelet logs deploy/web -c nginx --since 5m
    """
    if all_containers and (container or follow):
        raise click.UsageError("--all-containers prints logs one after the other: leave out -c and -f")
    wanted = pod_target(target)

    async def work(client: RawClient) -> None:
        from kernelet.core.client.raw import LogOptions

        pod = await find_pod(client, wanted, settings.namespace)
        names = [c["name"] for c in pod["spec"]["containers"]] if all_containers else [choose_container(pod, container)]
        for name in names:
            seconds = max(1, round(since)) if since else 0
            await _print(client, pod, LogOptions(name, follow, previous, timestamps, tail, seconds, limit_bytes))

    settings.run(work)


async def _print(client: RawClient, pod: JSON, options: LogOptions) -> None:
    metadata = pod["metadata"]
    async with aclosing(client.logs(metadata["namespace"], metadata["name"], options)) as chunks:
        async for chunk in chunks:
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
