"""`kernelet completion`: the script that makes a shell ask `kernelet` for completions."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from .failures import CliError


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print a shell's completion script.

    \b
    bash: source <(kernelet completion bash)
    zsh:  source <(kernelet completion zsh)
    fish: kernelet completion fish | source
    """
    found = get_completion_class(shell)
    if found is None:
        raise CliError(f"completion: no script for {shell}; bash, zsh and fish have one")
    click.echo(found(ctx.find_root().command, {}, "kernelet", "_KERNELET_COMPLETE").source())
