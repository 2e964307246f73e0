"""A node with pods, another node's pod, and a client outside, joined by routed veth pairs."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Any

from support.netns import Lab, Namespace, Server

from kernelet.dataplane.proxy import EngineConfig
from kernelet.dataplane.proxy.ebpf.kernel import BPFFS, cgroup_root
from kernelet.dataplane.routes import Backend, BackendFlag, Delta, Peer, Protocol, ServicePort, ServiceRoute

NODE_ADDRESS, OUTSIDE_ADDRESS = "192.0.2.1", "192.0.2.2"
OTHER_NODE_ADDRESS, OTHER_OUTSIDE_ADDRESS = "203.0.113.1", "203.0.113.2"
NODE_ADDRESS6 = "2001:db8::1"
GATEWAY, GATEWAY6 = "169.254.1.1", "fe80::1"
CONFIG = EngineConfig(
    node="here",
    pod_cidrs=(ip_network("10.244.0.0/24"), ip_network("fd00:244::/64")),
    cluster_cidrs=(ip_network("10.244.0.0/16"), ip_network("fd00:244::/48")),
    service_cidrs=(ip_network("10.96.0.0/16"), ip_network("fd00:96::/112")),
)


@dataclass
class Pod:
    namespace: Namespace
    address: str
    address6: str
    node: str

    def backend(self, port: int = 8080, flags: BackendFlag = BackendFlag.READY) -> Backend:
        return Backend(ip_address(self.address).packed, port, flags, self.node)

    def backend6(self, port: int = 8080) -> Backend:
        return Backend(ip_address(self.address6).packed, port, BackendFlag.READY, self.node)

    def serve(self, port: int = 8080) -> Server:
        return self.namespace.serve("0.0.0.0", port, self.address)

    def serve_udp(self, port: int = 8080) -> Server:
        return self.namespace.serve("0.0.0.0", port, self.address, socket.SOCK_DGRAM)

    def ask(self, address: str, port: int = 80, timeout: float = 2.0) -> str:
        return self.namespace.ask(address, port, timeout)


class Topology:
    """`client`, `web1` and `web2` are pods of this node; `far` plays a pod of another one."""

    def __init__(self, lab: Lab) -> None:
        self.node = lab.namespace("node")
        self.node.sysctl("net.ipv4.ip_forward", "1")
        self.node.sysctl("net.ipv6.conf.all.forwarding", "1")
        self.outside = lab.namespace("out")
        lab.veth(self.node, "eth0", self.outside, "eth0")
        self.node.ip(f"addr add {NODE_ADDRESS}/24 dev eth0", f"route add default via {OUTSIDE_ADDRESS}")
        self.outside.ip(f"addr add {OUTSIDE_ADDRESS}/24 dev eth0", f"route add 10.96.0.0/16 via {NODE_ADDRESS}")
        self.node.ip(f"-6 addr add {NODE_ADDRESS6}/64 dev eth0 nodad", "-6 route add default via 2001:db8::2")
        self.outside.ip("-6 addr add 2001:db8::2/64 dev eth0 nodad", f"-6 route add default via {NODE_ADDRESS6}")
        self.node.ip(f"addr add {OTHER_NODE_ADDRESS}/24 dev eth0")
        self.outside.ip(f"addr add {OTHER_OUTSIDE_ADDRESS}/24 dev eth0")
        self.outside.ip(f"route add 198.51.100.0/24 via {NODE_ADDRESS}")
        self.client = self._pod(lab, "client", "10.244.0.2", "fd00:244::2", "here")
        self.web1 = self._pod(lab, "web1", "10.244.0.3", "fd00:244::3", "here")
        self.web2 = self._pod(lab, "web2", "10.244.0.4", "fd00:244::4", "here")
        self.far = self._pod(lab, "far", "10.244.1.5", "fd00:244:0:1::5", "there")
        self.servers: dict[str, Server] = {}

    def _pod(self, lab: Lab, role: str, address: str, address6: str, node: str) -> Pod:
        pod = lab.namespace(role)
        lab.veth(self.node, f"kl{role}", pod, "eth0")
        self.node.ip(
            f"addr add {GATEWAY}/32 dev kl{role}",
            f"route add {address} dev kl{role}",
            f"-6 addr add {GATEWAY6}/64 dev kl{role} nodad",
            f"-6 route add {address6} dev kl{role}",
        )
        pod.ip(
            f"addr add {address}/32 dev eth0",
            f"route add {GATEWAY} dev eth0",
            f"route add default via {GATEWAY} dev eth0",
            f"-6 addr add {address6}/128 dev eth0 nodad",
            f"-6 route add default via {GATEWAY6} dev eth0",
        )
        return Pod(pod, address, address6, node)


@contextlib.contextmanager
def own_cgroup() -> Iterator[EngineConfig]:
    """The settings with a cgroup and a folder of pins that nobody else has; the cgroup is gone afterwards."""
    name = f"kl-test-{secrets.token_hex(4)}"
    cgroup = cgroup_root() / name
    cgroup.mkdir()
    try:
        yield replace(CONFIG, cgroups=(cgroup,), host_cgroup=cgroup_root(), pins=BPFFS / "kernelet" / name)
    finally:
        if cgroup.exists():
            cgroup.rmdir()


def service(
    name: str,
    ip: str,
    *backends: Backend,
    port: int = 80,
    node_port: int = 0,
    protocol: Protocol = Protocol.TCP,
    external_ips: tuple[str, ...] = (),
    **fields: Any,
) -> ServiceRoute:
    """One port at one cluster IP; `fields` are those of ServiceRoute."""
    return ServiceRoute(
        f"default/{name}",
        (ip_address(ip).packed,),
        (ServicePort("main", protocol, port, node_port, tuple(backends)),),
        tuple(ip_address(address).packed for address in external_ips),
        **fields,
    )


def serving(lab: Lab) -> Topology:
    """Pods that serve TCP and UDP on 8080, over IPv6 on 8081 and 8082, and answer with their IPv4 address."""
    made = Topology(lab)
    for pod in (made.web1, made.web2, made.far):
        made.servers[pod.address] = pod.serve()
        pod.serve_udp()
        pod.namespace.serve("::", 8081, pod.address)
        pod.namespace.serve("::", 8082, pod.address, socket.SOCK_DGRAM)
    return made


class Feed:
    """Makes the deltas that a route server would send."""

    def __init__(self) -> None:
        self.version = 0
        self.services: dict[str, ServiceRoute] = {}
        self.peers: dict[str, Peer] = {}

    def change(self, *services: ServiceRoute, removed: tuple[str, ...] = (), peers: tuple[Peer, ...] = ()) -> Delta:
        for item in services:
            self.services[item.id] = item
        names = [f"default/{name}" for name in removed]
        for name in names:
            self.services.pop(name, None)
        for peer in peers:
            self.peers[peer.node] = peer
        self.version += 1
        if self.version == 1:
            return self.snapshot()
        return Delta("g", self.version, self.version - 1, list(services), names, list(peers))

    def zone(self, zone: str) -> Delta:
        """This node moves to another zone."""
        return self.change(peers=(Peer(CONFIG.node, (), NODE_ADDRESS, "", zone),))

    def snapshot(self) -> Delta:
        return Delta("g", self.version, 0, list(self.services.values()), peers=list(self.peers.values()))
