"""`kernelet reset`: removes everything that Kernelet made on this host, with every daemon dead or alive."""

from __future__ import annotations

import asyncio
import logging
import subprocess
from contextlib import suppress

import click

from .command import need_root, run, say
from .paths import DOCKER_DATA, RUN_ROOT, STATE_ROOT, ClusterPaths

log = logging.getLogger(__name__)

TABLES = ("kernelet", "kernelet_podnet")


@click.command("reset")
@click.option("--yes", is_flag=True, help="do not ask")
def command(yes: bool) -> None:
    """Remove all clusters, containers, links, tables, pins and files of Kernelet from this host."""
    need_root("reset")
    if not yes:
        click.confirm("Remove every Kernelet cluster on this host, with its data?", abort=True)
    run(reset())
    click.echo("nothing of Kernelet is left on this host")


async def reset() -> None:
    """Idempotent: a second run finds nothing. Raises where something cannot be removed, naming it."""
    from kernelet.agents.cluster import containers, machine, topology
    from kernelet.agents.kubelet.dockerd import stop_dockerd
    from kernelet.agents.kubelet.volumes import memory_root

    for paths in _clusters():
        say(f"stopping the processes of cluster {paths.name}")
        await machine.stop_processes(paths)
    for socket in containers.sockets():
        say("removing containers")
        await asyncio.to_thread(containers.remove_all, socket)
    say("removing network namespaces, links and tables")
    for name in topology.namespaces():
        topology.delete_namespace(name)
    remove_links()
    remove_tables()
    await stop_dockerd(DOCKER_DATA)
    machine.unmount(STATE_ROOT, RUN_ROOT)
    say("removing files")
    machine.remove_programs("*")
    machine.remove_cgroups("")
    for folder in (RUN_ROOT, STATE_ROOT, memory_root("")):
        machine.remove_folder(folder)


def _clusters() -> list[ClusterPaths]:
    """By state and by run folder, since either may be all that is left."""
    found = {path.name for root in (STATE_ROOT, RUN_ROOT) if root.exists() for path in root.iterdir() if path.is_dir()}
    return [ClusterPaths(name) for name in sorted(found - {"docker"})]


def remove_links() -> None:
    """Kernelet's links in this host's own namespace, and the node's address among the pods."""
    from kernelet.dataplane.podnet.network import GATEWAY_LABEL

    listed = subprocess.run(["ip", "-o", "link", "show"], capture_output=True, text=True, check=True, timeout=20)
    for line in listed.stdout.splitlines():
        link = line.split(": ")[1].split("@")[0]
        if link.startswith("kl"):
            # The other end of a pair removed before has gone with it.
            subprocess.run(["ip", "link", "del", link], capture_output=True, check=False, timeout=20)
    flush = ["ip", "-4", "addr", "flush", "dev", "lo", "label", GATEWAY_LABEL]
    subprocess.run(flush, capture_output=True, check=True, timeout=20)


def remove_tables() -> None:
    """Kernelet's nftables tables in this host's own namespace."""
    with suppress(FileNotFoundError):
        for family in ("ip", "ip6", "inet"):
            for table in TABLES:
                # Fails where the table does not exist, which is what is wanted.
                subprocess.run(["nft", "delete", "table", family, table], capture_output=True, check=False, timeout=20)
