"""`kernelet demo`: a three-node cluster with a real application, and a table of what was shown."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import click

CLUSTER = "demo"


@click.command("demo")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="write the checks as JSON")
@click.option("--nodes", default=3, show_default=True, type=click.IntRange(3, 20), help="how many nodes")
@click.option(
    "--packages",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("build/debs"),
    show_default=True,
    help="folder of the Debian packages that the images are made of",
)
def command(json_file: Path | None, nodes: int, packages: Path) -> None:
    """Run a three-node cluster with an application and show, by real traffic, what it is for."""
    from kernelet.agents.cluster.command import need_root, run
    from kernelet.agents.demo.checks import Checks

    need_root("demo")
    checks = Checks()
    try:
        run(_demo(checks, nodes, packages))
    finally:
        if checks.rows:
            click.echo(f"\n{checks.table()}\n")
        if json_file is not None:
            checks.write(json_file)
    click.echo(f"{len(checks.rows)} checks in {checks.elapsed():.0f} s: {'all hold' if checks.ok else 'NOT all hold'}")
    raise SystemExit(0 if checks.ok else 1)


async def _demo(checks: object, nodes: int, packages: Path) -> None:
    from lightkube.models.core_v1 import Pod

    from kernelet.agents.cluster import containers, machine, topology
    from kernelet.agents.cluster.paths import ClusterPaths
    from kernelet.agents.demo import images
    from kernelet.agents.demo.checks import Checks
    from kernelet.agents.demo.scenario import Scenario
    from kernelet.agents.demo.traffic import NAMESPACE
    from kernelet.core.client.client import Client
    from kernelet.core.client.informer import Informer
    from kernelet.core.security.kubeconfig import load_kubeconfig

    assert isinstance(checks, Checks)
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    checks.chapter("0. A cluster")
    try:
        await machine.delete(CLUSTER, lambda _: None)  # what an interrupted run may have left
        spec = await machine.create(CLUSTER, nodes, checks.say)
        checks.say("making the application's images from Debian packages")
        await asyncio.to_thread(images.ensure_images, spec.docker_socket, packages)
        config = load_kubeconfig(ClusterPaths(CLUSTER).admin_kubeconfig)
        async with Client(config) as client:
            pods = Informer(client, Pod, namespace=NAMESPACE)
            following = asyncio.create_task(pods.run())
            try:
                await Scenario(CLUSTER, client, pods, checks).run()
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
    finally:
        checks.say("removing the cluster")
        for socket in containers.sockets():
            await asyncio.to_thread(images.remove_images, socket)
        await machine.delete(CLUSTER, lambda _: None)
        left = [name for name in topology.namespaces() if name.startswith(f"kl-{CLUSTER}")]
        checks.add("nothing is left of the cluster", not left, f"network namespaces left: {left or 'none'}")
