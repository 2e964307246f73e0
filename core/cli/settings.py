"""Which cluster, as whom, which namespace: options every command takes, before or after its name."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from kernelet.core.client.config import ClientConfig
    from kernelet.core.client.raw import RawClient

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

INTERRUPTED = 130


@dataclass
class Settings:
    """What the options said; the kubeconfig is read when first needed."""

    kubeconfig: str = ""
    context: str = ""
    namespace_option: str = ""
    all_namespaces: bool = False
    request_timeout: float = 10.0

    @property
    def namespace(self) -> str:
        """The namespace objects are in that name none themselves. Raises KubeconfigError."""
        if self.namespace_option:
            return self.namespace_option
        from kernelet.core.security.kubeconfig import default_namespace

        return default_namespace(self.kubeconfig or None, self.context)

    @property
    def scope(self) -> str:
        """The namespace to look in, "" for all of them."""
        return "" if self.all_namespaces else self.namespace

    def client_config(self) -> ClientConfig:
        """How to reach the API server. Raises KubeconfigError."""
        from kernelet.core.security.kubeconfig import load_kubeconfig

        config = load_kubeconfig(self.kubeconfig or None, self.context)
        return dataclasses.replace(config, timeout=self.request_timeout, user_agent="kernelet-cli")

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[RawClient]:
        """A client for the time of a command."""
        # Its failures come as exceptions; what gRPC itself logs would only repeat them.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from kernelet.core.client.raw import RawClient
        from kernelet.core.client.transport import Transport

        transport = Transport(self.client_config())
        try:
            yield RawClient(transport)
        finally:
            await transport.close()

    def run(self, work: Callable[[RawClient], Awaitable[T]]) -> T:
        """Connects and does the work; Ctrl-C ends it quietly with status 130."""

        async def connected() -> T:
            async with self.connect() as client:
                return await work(client)

        try:
            return asyncio.run(connected())
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)


def settings_of(ctx: click.Context) -> Settings:
    """The one Settings object of a command line."""
    return ctx.find_root().ensure_object(Settings)


def _store(field: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    def callback(ctx: click.Context, _parameter: click.Parameter, value: Any) -> Any:
        if value not in (None, False):
            setattr(settings_of(ctx), field, value)
        return value

    return callback


def _complete_namespace(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    from .complete import namespaces

    return namespaces(settings_of(ctx), incomplete)


def cluster_options(*, everywhere: bool = False) -> Callable[[F], F]:
    """--kubeconfig, --context, --namespace and, for commands that list (`everywhere`), --all-namespaces."""

    def decorate(function: F) -> F:
        options = [
            click.option("--kubeconfig", metavar="FILE", expose_value=False, callback=_store("kubeconfig"),
                         help="How to reach the cluster; else $KERNELET_CONFIG, $KUBECONFIG, this host's cluster."),
            click.option("--context", metavar="NAME", expose_value=False, callback=_store("context"),
                         help="Which entry of the kubeconfig to use."),
            click.option("-n", "--namespace", metavar="NAME", expose_value=False, callback=_store("namespace_option"),
                         shell_complete=_complete_namespace, help="Where to look."),
            click.option("--request-timeout", type=click.FloatRange(min=0.1), metavar="SECONDS", expose_value=False,
                         callback=_store("request_timeout"), help="How long one request may take (10)."),
        ]  # fmt: skip
        if everywhere:
            options.append(
                click.option(
                    "-A", "--all-namespaces", is_flag=True, expose_value=False, callback=_store("all_namespaces"),
                    help="Look in all namespaces.",
                )
            )  # fmt: skip
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


pass_settings = click.make_pass_decorator(Settings, ensure=True)
