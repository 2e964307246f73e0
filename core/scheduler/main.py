"""`kernelet scheduler`, and the same for processes that run the scheduler beside other things."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from kernelet.core.client.client import Client
    from kernelet.core.scheduler.config import SchedulerConfig


async def run_scheduler(client: Client, config: SchedulerConfig | None = None) -> None:
    """Schedules until cancelled, with no election: for a caller that leads.

    Raises ValueError for an algorithm or plug-in that is not there.
    """
    import asyncio

    from kernelet.core.scheduler.scheduler import Scheduler, informers

    sources = informers(client)
    scheduler = Scheduler(client, *sources, config=config)
    async with asyncio.TaskGroup() as group:
        for informer in sources:
            informer.start(group)
        await scheduler.run()


async def run_elected(client: Client, config: SchedulerConfig) -> None:
    """Competes for the scheduler's lease, and schedules while it leads, until cancelled."""
    from kernelet.core.client.election import LeaderElector

    elector = LeaderElector(client, config.lease)
    await elector.run(lambda: run_scheduler(client, config))


async def _serve(config: SchedulerConfig, kubeconfig: str, context: str, elect: bool) -> None:
    """Until SIGTERM or SIGINT."""
    import asyncio
    import signal

    from kernelet.core.client.client import Client
    from kernelet.core.security.kubeconfig import load_kubeconfig

    loop = asyncio.get_running_loop()
    async with Client(load_kubeconfig(kubeconfig or None, context)) as client:
        work = asyncio.ensure_future(run_elected(client, config) if elect else run_scheduler(client, config))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, work.cancel)
        await asyncio.wait([work])
        if not work.cancelled():
            work.result()


@click.command()
@click.option("--kubeconfig", default="", metavar="FILE", help="How to reach the cluster.")
@click.option("--context", default="", help="The kubeconfig's context to use.")
@click.option(
    "--name", default="default-scheduler", show_default=True, help="Schedules the pods of this schedulerName."
)
@click.option("--algorithm", default="", help="An installed schedule algorithm, in place of the plug-in framework.")
@click.option("--disable", multiple=True, metavar="PLUGIN", help="Leave this plug-in out. May be repeated.")
@click.option(
    "--leader-elect/--no-leader-elect", default=True, show_default=True, help="One of several instances acts."
)
@click.option("--log-level", default="INFO", show_default=True, help="DEBUG, INFO, WARNING or ERROR.")
def command(
    kubeconfig: str,
    context: str,
    name: str,
    algorithm: str,
    disable: tuple[str, ...],
    leader_elect: bool,
    log_level: str,
) -> None:
    """Run the scheduler alone."""
    import asyncio

    from kernelet.core.client import logs
    from kernelet.core.scheduler.config import SchedulerConfig

    logs.setup("scheduler", log_level)
    config = SchedulerConfig(name=name, algorithm=algorithm, disabled=disable)
    asyncio.run(_serve(config, kubeconfig, context, leader_elect))
