"""`kernelet exec`: a command in a container, with its terminal and exit status."""

from __future__ import annotations

import sys
from contextlib import aclosing
from typing import TYPE_CHECKING

import click

from .complete import complete_pod
from .failures import CliError
from .pods import choose_container, find_pod, pod_target
from .settings import Settings, cluster_options, pass_settings
from .targets import Target
from .terminal import raw_mode, typed

if TYPE_CHECKING:
    from kernelet.core.client.raw import RawClient


@click.command("exec")
@click.argument("target", metavar="POD | TYPE/NAME", shell_complete=complete_pod)
@click.argument("arguments", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND [ARGUMENT]...")
@click.option("-i", "--stdin", is_flag=True, help="Pass stdin on.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.option("-c", "--container", default="", metavar="NAME", help="Which container; default: the first.")
@cluster_options()
@pass_settings
def command(
    settings: Settings, target: str, arguments: tuple[str, ...], stdin: bool, tty: bool, container: str
) -> None:
    """Run a command in a container; its exit status becomes this one's.

    \b
    kernelet exec web-1 -- ls -l /
    kernelet exec -it deploy/web -c nginx -- sh
    """
    if tty and stdin and not sys.stdin.isatty():
        click.echo("stdin is not a terminal; the command gets none", err=True)
        tty = False
    status = settings.run(lambda client: _exec(client, settings, pod_target(target), arguments, stdin, tty, container))
    sys.exit(status)


async def _exec(
    client: RawClient,
    settings: Settings,
    target: Target,
    arguments: tuple[str, ...],
    stdin: bool,
    tty: bool,
    container: str,
) -> int:
    pod = await find_pod(client, target, settings.namespace)
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    chosen = choose_container(pod, container)
    keyboard = typed(stdin=stdin, tty=tty) if stdin or tty else None
    status: int | None = None
    with raw_mode(tty and stdin):
        stream = client.exec(namespace, name, arguments, container=chosen, tty=tty, stdin=keyboard)
        async with aclosing(stream) as frames:
            async for frame in frames:
                if frame.exit_code is not None:
                    status = frame.exit_code
                    break
                _write(frame.stdout, frame.stderr)
    if status is None:
        raise CliError(f"pod/{name}: the connection ended before the command did; run it again")
    return status


def _write(stdout: bytes, stderr: bytes) -> None:
    for data, stream in ((stdout, sys.stdout), (stderr, sys.stderr)):
        if data:
            stream.buffer.write(data)
            stream.buffer.flush()
