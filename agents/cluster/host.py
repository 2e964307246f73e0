"""This host as control plane and node, or as a node of another host's control plane."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable

import click

from kernelet.agents.kubelet.dockerd import ensure_dockerd
from kernelet.core.client import logs
from kernelet.core.client.client import Client
from kernelet.core.client.config import ClientConfig
from kernelet.core.security.pki import make_csr
from kernelet.core.security.tokens import JoinToken, Tokens, fetch_pinned_ca

from . import build, machine
from .command import say
from .paths import DEFAULT_CLUSTER, DOCKER_DATA, ClusterPaths
from .spec import ClusterSpec, NodeSpec
from .supervisor import Supervisor

log = logging.getLogger(__name__)

JOIN_TOKEN_SECONDS = 24 * 3600.0


async def up(address: str, node: str, store: str, cluster_cidr: str, service_cidr: str, engine: str) -> None:
    """Runs control plane and, where `node` names one, a node, until interrupted. What stood before is continued."""
    logs.setup("up", "WARNING")
    paths = ClusterPaths(DEFAULT_CLUSTER)
    url = f"https://{address}:{build.REST_PORT}"
    plane = build.ControlPlane(paths, address, url, store, cluster_cidr, service_cidr, dns_of(service_cidr))
    pki = build.prepare_control_plane(plane)
    units = build.control_plane_units(plane)
    nodes: tuple[NodeSpec, ...] = ()
    docker_socket = ""
    if node:
        say("starting dockerd")
        docker_socket = (await ensure_dockerd(DOCKER_DATA)).socket
        identity = build.NodeIdentity(
            paths, node, address, docker_socket, cluster_cidr, service_cidr, plane.dns_address, engine
        )
        build.prepare_node(pki, identity, address)
        units.append(build.node_unit(identity))
        nodes = (NodeSpec(node, address),)
    spec = ClusterSpec(paths.name, "host", build.REST_PORT, docker_socket, tuple(units), nodes)
    spec.save(paths.spec)
    secret = Tokens(pki.folder).create("system:bootstrap", ["system:bootstrappers"], JOIN_TOKEN_SECONDS)
    token = JoinToken(pki.ca_hash, secret)

    def greet() -> None:
        click.echo(f"the cluster is ready: {url}")
        click.echo(f"  kubectl --kubeconfig {paths.admin_kubeconfig} get nodes")
        click.echo("other hosts join it within a day by:")
        click.echo(f"  kernelet join {address} --token {token}")

    await _supervise(paths, spec, machine.wait_nodes_ready(paths, {known.name for known in nodes}), greet)


async def join(server: str, token: str, address: str, node: str, engine: str) -> None:
    """Runs a node of the cluster at `server` until interrupted. A node that joined before needs no valid token."""
    logs.setup("join", "WARNING")
    paths = ClusterPaths(DEFAULT_CLUSTER)
    server = server.removeprefix("https://").partition(":")[0]
    say("starting dockerd")
    docker_socket = (await ensure_dockerd(DOCKER_DATA)).socket
    identity = build.NodeIdentity(paths, node, address, docker_socket, engine=engine)
    if not (paths.node(node) / "kubeconfig").exists():
        say(f"asking {server} for a certificate")
        ca, cert, key = await _certificate(server, JoinToken.parse(token), node)
        build.write_node_files(identity, server, ca, cert, key)
    spec = ClusterSpec(paths.name, "host", 0, docker_socket, (build.node_unit(identity),), (NodeSpec(node, address),))
    spec.save(paths.spec)
    await _supervise(paths, spec, asyncio.sleep(0), lambda: click.echo(f"{node} is joining the cluster at {server}"))


async def _certificate(server: str, token: JoinToken, node: str) -> tuple[bytes, bytes, bytes]:
    """CA, certificate and key of a node. Raises TokenError, ApiError."""
    ca = await asyncio.to_thread(fetch_pinned_ca, f"https://{server}:{build.REST_PORT}", token)
    csr, key = make_csr(f"system:node:{node}", ["system:nodes"], [node])
    config = ClientConfig(f"{server}:{build.TOKEN_PORT}", ca, token=token.secret)
    async with Client(config) as client:
        certificate, _ = await client.raw.sign_node(csr)
    return ca, certificate, key


async def _supervise(paths: ClusterPaths, spec: ClusterSpec, ready: Awaitable[None], greet: Callable[[], None]) -> None:
    """Runs the units in the foreground until interrupted; greets once `ready` has come."""

    async def announce() -> None:
        await ready
        greet()

    supervisor = asyncio.create_task(Supervisor(paths, spec).run())
    announcing = asyncio.create_task(announce())
    try:
        await asyncio.wait((supervisor, announcing), return_when=asyncio.FIRST_COMPLETED)
        if not supervisor.done() and announcing.exception() is not None:
            click.echo(f"warning: {announcing.exception()}", err=True)
        await supervisor
    finally:
        announcing.cancel()
        await asyncio.gather(announcing, return_exceptions=True)


def dns_of(service_cidr: str) -> str:
    """The tenth address of the first service subnet, as Kubernetes' installers choose it."""
    return str(ipaddress.ip_network(service_cidr.split(",")[0])[10])
