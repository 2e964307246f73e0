"""The command group: built-in commands by a table, all others by entry points, each loaded when first needed."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from .failures import CliError, reported
from .settings import Settings, cluster_options

ENTRY_POINTS = "kernelet.commands"

# Command -> module and what --help says of it; the module's `command` is the click command.
BUILT_IN = {
    "get": ("get", "Show objects as a table, or as YAML or JSON."),
    "describe": ("describe", "Show all about objects, with their events."),
    "apply": ("apply", "Make the cluster hold what files say."),
    "create": ("create", "Create objects from files, or a namespace by name."),
    "delete": ("delete", "Delete objects and wait until they are gone."),
    "logs": ("logs", "Print a container's log."),
    "exec": ("execute", "Run a command in a container."),
    "scale": ("scale", "Set the number of replicas."),
    "label": ("label", "Set or remove labels."),
    "annotate": ("annotate", "Set or remove annotations."),
    "rollout": ("rollout", "Follow, restart, undo or pause deployments."),
    "events": ("events", "Show what happened, oldest first."),
    "status": ("status", "Show the health of the control plane, nodes and pods."),
    "api-resources": ("resources", "List the kinds of objects."),
    "completion": ("completion", "Print a shell's completion script."),
}


class Commands(click.Group):
    """Knows every command by name without importing it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*BUILT_IN, *sorted(set(_entry_points()) - set(BUILT_IN))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in BUILT_IN:
            module = importlib.import_module(f"{__package__}.{BUILT_IN[cmd_name][0]}")
            command: click.Command = module.command
            return command
        found = _entry_points().get(cmd_name)
        if found is None:
            return None
        try:
            loaded: click.Command = found.load()
        except ImportError as error:
            raise CliError(f"command {cmd_name}: cannot be loaded from {found.value}: {error}") from error
        return loaded

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Objects of the cluster"):
            formatter.write_dl([(name, text) for name, (_, text) in BUILT_IN.items()])
        others = [(name, self._short_help(ctx, name)) for name in self.list_commands(ctx) if name not in BUILT_IN]
        if others:
            with formatter.section("Cluster and daemons"):
                formatter.write_dl(others)

    def _short_help(self, ctx: click.Context, name: str) -> str:
        try:
            command = self.get_command(ctx, name)
        except CliError as error:
            return f"({error.message})"
        return command.get_short_help_str(70) if command is not None else ""

    def invoke(self, ctx: click.Context) -> Any:
        with reported():
            return super().invoke(ctx)


def _entry_points() -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="kernelet", prog_name="kernelet")
@cluster_options()
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Runs containers on Linux hosts behind the Kubernetes API, with every packet kept in the kernel."""
    ctx.ensure_object(Settings)


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script. A reader that went away (`kernelet get pods | head`) ends it quietly."""
    try:
        cli.main(args=arguments, prog_name="kernelet")
    except BrokenPipeError:
        # The interpreter would flush stdout once more at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
