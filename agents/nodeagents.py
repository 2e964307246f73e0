"""The agents of one node, wired together in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import platform
import signal
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from lightkube.models.core_v1 import Node

from kernelet.agents.dns.agent import DnsAgent
from kernelet.agents.healthcheck import HealthChecks
from kernelet.agents.kubelet.containers import NodeIdentity, cgroup_parent
from kernelet.agents.kubelet.docker import DockerConfig, DockerRuntime
from kernelet.agents.kubelet.kit import KubeletConfig
from kernelet.agents.kubelet.kubelet import Kubelet
from kernelet.agents.kubelet.plugins import PodNetwork, PodNetworkStatus, RuntimeFailure
from kernelet.agents.kubelet.podfiles import DnsConfig
from kernelet.agents.overlay import OverlayAgent
from kernelet.agents.proxy import ProxyAgent
from kernelet.agents.routefeed import RouteFeedClient, Sink
from kernelet.core.client.client import Client
from kernelet.core.client.config import ClientConfig
from kernelet.core.client.events import EventRecorder
from kernelet.core.client.informer import Change, Informer
from kernelet.core.security.kubeconfig import KubeconfigError, load_kubeconfig
from kernelet.dataplane.overlay import OverlayConfig, OverlayError
from kernelet.dataplane.podnet import DEFAULT_MTU, AddressesExhausted, PodNet, PodNetConfig, PodNetworkError
from kernelet.dataplane.proxy import EngineConfig, EngineError, choose
from kernelet.dataplane.proxy.ebpf.kernel import PINS, cgroup_path, cgroup_root, pin_name, serve_namespace

log = logging.getLogger(__name__)

UNDERLAY_PREFIX = 24
RETRY_SECONDS = 5.0


class StartError(Exception):
    """The agents cannot start as asked; the message names the flag or the missing thing, and the fix."""


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """The command's flags, checked."""

    name: str
    cluster: str
    connection: ClientConfig
    address: IPv4Address
    state: Path
    docker_socket: str
    cluster_cidr: IPv4Network
    service_cidrs: tuple[IPv4Network | IPv6Network, ...]
    dns: DnsConfig
    engine: str = "auto"
    max_pods: int = 110
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, flags: Mapping[str, Any]) -> NodeOptions:
        """Raises StartError naming the flag."""
        try:
            connection = load_kubeconfig(flags["kubeconfig"] or None)
            labels = dict(_label(text) for text in flags["labels"])
            return cls(
                name=flags["name"] or platform.node().lower(),
                cluster=flags["cluster"],
                connection=connection,
                address=ipaddress.IPv4Address(flags["node_ip"]),
                state=Path(flags["data_dir"]),
                docker_socket=flags["docker_socket"],
                cluster_cidr=ipaddress.IPv4Network(flags["cluster_cidr"]),
                service_cidrs=tuple(ipaddress.ip_network(part.strip()) for part in flags["service_cidr"].split(",")),
                dns=DnsConfig(flags["dns_address"], flags["cluster_domain"]),
                engine=flags["engine"],
                max_pods=flags["max_pods"],
                labels=labels,
            )
        except (ValueError, KubeconfigError) as error:
            raise StartError(str(error)) from error


def _label(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ValueError(f"--label {text!r}: expected KEY=VALUE")
    return key, value


async def serve(options: NodeOptions, component: str, parts: tuple[str, ...]) -> None:
    """Runs the parts until SIGTERM or SIGINT. What they put into the kernel stays. Raises StartError."""
    task = asyncio.create_task(_serve(options, component, parts))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    await asyncio.wait([task])
    with contextlib.suppress(asyncio.CancelledError):
        try:
            task.result()
        except* (EngineError, OverlayError, PodNetworkError, RuntimeFailure) as group:
            raise StartError("; ".join(str(error) for error in group.exceptions)) from group


async def _serve(options: NodeOptions, component: str, parts: tuple[str, ...]) -> None:
    async with Client(options.connection) as client, EventRecorder(client, "kubelet", options.name) as recorder:
        await NodeAgents(options, client, recorder, component, parts).run()


class NodeAgents:
    """Owns every task of a node. The pod network, overlay and proxy start once the node has its pod subnet."""

    def __init__(
        self, options: NodeOptions, client: Client, recorder: EventRecorder, component: str, parts: tuple[str, ...]
    ) -> None:
        self._options = options
        self._client = client
        self._recorder = recorder
        self._parts = parts
        self._sinks: list[Sink] = []
        self._proxy: ProxyAgent | None = None
        self._feed = RouteFeedClient(client, options.connection, options.name, component, self._sinks)
        self._stack = AsyncExitStack()
        self._tasks = asyncio.TaskGroup()
        self._pins = PINS / pin_name(options.cluster, options.name)

    async def run(self) -> None:
        """Until cancelled."""
        async with self._stack, self._tasks:
            if "kubelet" in self._parts:
                await self._run_kubelet()
            else:
                await self._start_network(await self._pod_cidr())

    async def _run_kubelet(self) -> None:
        options = self._options
        identity = NodeIdentity(options.cluster, options.name)
        driver = await _cgroup_driver(options.docker_socket)
        parent = cgroup_parent(identity, driver)
        runtime = DockerRuntime(DockerConfig(socket=options.docker_socket, cgroup_parent=parent))
        self._stack.push_async_callback(runtime.close)
        config = KubeletConfig(
            node=options.name,
            address=str(options.address),
            state=options.state,
            cluster=options.cluster,
            labels=options.labels,
            cert=options.state / "kubelet.crt",
            key=options.state / "kubelet.key",
            client_ca=options.state / "ca.crt",
            dns=options.dns,
            max_pods=options.max_pods,
        )
        kubelet = Kubelet(config, self._client, runtime, self._start_network, self._feed, self._recorder, self._routes)
        self._tasks.create_task(kubelet.run(), name="kubelet")

    async def _pod_cidr(self) -> str:
        """This node's pod subnet, once it has one; for agents that run without a kubelet beside them."""
        known: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def look(change: Change[Node]) -> None:
            if change.new is not None and change.new.spec and change.new.spec.podCIDR and not known.done():
                known.set_result(change.new.spec.podCIDR)

        informer = Informer(self._client, Node, fields=f"metadata.name={self._options.name}")
        informer.subscribe(look)
        informer.start(self._tasks)
        return await known

    async def _start_network(self, pod_cidr: str) -> PodNetwork:
        """Overlay first, since it tells the pods' MTU; the route feed last, since it programs what must be there."""
        options, subnet = self._options, IPv4Network(pod_cidr)
        mtu = await self._start_overlay(subnet) if "overlay" in self._parts else DEFAULT_MTU
        podnet = PodNet(PodNetConfig(subnet, options.cluster_cidr, mtu))
        if "kubelet" in self._parts:
            await podnet.start()
            self._stack.push_async_callback(podnet.close)
            self._tasks.create_task(podnet.watch(), name="pod network watch")
        if "proxy" in self._parts:
            await self._start_proxy(subnet)
        self._tasks.create_task(self._feed.run(), name="route feed")
        if "dns" in self._parts:
            self._tasks.create_task(self._keep_dns(podnet.gateway), name="dns")
        return KubeletNetwork(podnet, self._pins)

    async def _start_overlay(self, subnet: IPv4Network) -> int:
        options = self._options
        address = IPv4Interface(f"{options.address}/{UNDERLAY_PREFIX}")
        overlay = OverlayAgent(self._client, OverlayConfig(options.name, address, subnet, options.cluster_cidr))
        await overlay.start()
        self._stack.push_async_callback(overlay.close)
        self._sinks.append(overlay)
        self._tasks.create_task(overlay.watch(), name="overlay watch")
        return overlay.mtu

    async def _start_proxy(self, subnet: IPv4Network) -> None:
        options = self._options
        config = EngineConfig(options.name, (subnet,), (options.cluster_cidr,), options.service_cidrs)
        config = replace(config, pins=self._pins)
        if options.engine in ("auto", "ebpf"):
            config = await self._with_cgroups(config)
        choice = await asyncio.to_thread(choose, options.engine, config)
        log.info("proxy engine %s: %s", *choice)
        proxy = ProxyAgent(choice, config)
        await proxy.start()
        self._stack.push_async_callback(proxy.close)
        checks = HealthChecks(options.name, self._recorder)
        self._sinks += [proxy, checks]
        self._proxy = proxy
        self._tasks.create_task(proxy.watch(), name="proxy watch")
        self._tasks.create_task(checks.run(), name="health checks")

    async def _routes(self) -> dict[str, Any]:
        """For the kubelet's endpoint. Raises RuntimeFailure where this process has no routes to tell of."""
        if self._proxy is None:
            raise RuntimeFailure(f"the kubelet of node {self._options.name} runs without a service proxy beside it")
        try:
            return await self._proxy.routes()
        except EngineError as error:
            raise RuntimeFailure(str(error)) from error

    async def _with_cgroups(self, config: EngineConfig) -> EngineConfig:
        """With the cgroups of this node's sockets; without them where this host has no cgroup2 hierarchy."""
        options = self._options
        try:
            root = cgroup_root()
        except EngineError as error:
            log.warning("%s", error)
            return config
        driver = await _cgroup_driver(options.docker_socket)
        pods = root / cgroup_path(cgroup_parent(NodeIdentity(options.cluster, options.name), driver))
        return replace(config, cgroups=(pods,), host_cgroup=root)

    async def _keep_dns(self, address: str) -> None:
        """A DNS server that cannot listen must not take the pods' kubelet with it."""
        while True:
            try:
                await DnsAgent(self._client, self._options.name, self._options.dns.domain).run(address)
            except* OSError as group:
                causes = "; ".join(str(error) for error in group.exceptions)
                log.error("%s; free the port, the next attempt is in %.0f s", causes, RETRY_SECONDS)
            await asyncio.sleep(RETRY_SECONDS)


async def _cgroup_driver(docker_socket: str) -> str:
    """Of the dockerd on this socket. Waits for it, since a host's dockerd may still be starting."""
    probe = DockerRuntime(DockerConfig(socket=docker_socket, threads=1))
    try:
        while True:
            try:
                return await probe.cgroup_driver()
            except RuntimeFailure as error:
                log.warning("waiting for dockerd on %s: %s", docker_socket, error)
            await asyncio.sleep(1)
    finally:
        await probe.close()


@contextlib.contextmanager
def _as_runtime_failure() -> Iterator[None]:
    try:
        yield
    except (PodNetworkError, AddressesExhausted) as error:
        raise RuntimeFailure(str(error)) from error


class KubeletNetwork:
    """The built-in pod network in the shape that the kubelet plugs in."""

    def __init__(self, podnet: PodNet, pins: Path) -> None:
        """`pins`: where this node's socket programs are, if any."""
        self._podnet = podnet
        self._pins = pins

    async def start(self) -> None:
        """Started by its owner."""

    async def attach(self, pod_id: str, pid: int) -> PodNetworkStatus:
        """Raises RuntimeFailure, which the kubelet reports on the pod and tries again."""
        with _as_runtime_failure():
            attached = await self._podnet.attach(pod_id, pid)
        try:
            await asyncio.to_thread(serve_namespace, self._pins, pid)
        except OSError as error:
            raise RuntimeFailure(f"pod {pod_id}: {error.strerror or error}") from error
        return PodNetworkStatus(attached.addresses, attached.gateway)

    async def detach(self, pod_id: str) -> None:
        with _as_runtime_failure():
            await self._podnet.detach(pod_id)

    async def reconcile(self, pod_ids: frozenset[str]) -> None:
        with _as_runtime_failure():
            await self._podnet.reconcile(pod_ids)

    async def close(self, *, keep: bool = True) -> None:
        """Closed by its owner."""
