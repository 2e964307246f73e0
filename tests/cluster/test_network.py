"""Who reaches whom: pods, services, nodes, outsiders, names. Every request is made in the sender's own namespace."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest
from dnslib import QTYPE, RCODE, RR, DNSRecord
from support.cluster import Cluster, Space, address_of, eventually, make_space, run
from support.manifests import PORT, pod, service
from support.netns import Lab, Namespace
from support.traffic import Answer, ask_udp, get, greeting, resolve

from kernelet.agents.dns.forward import upstreams_of

DNS = "10.96.0.10"
NODE_PORT = 30100
_outside = itertools.count(200)
"""Last bytes of outsiders' addresses: nodes remember for a while which link an address was on."""


@dataclass(frozen=True, slots=True)
class Net:
    """Two servers `web-1`, `web-2` of service `web` on the nodes of these numbers, and `client` beside `web-1`."""

    cluster: Cluster
    namespace: str
    address: dict[str, str]
    """By pod name."""
    where: dict[str, str]
    """Network namespaces by pod name."""
    service: dict[str, str]
    """ClusterIPs."""

    def name(self, service: str) -> str:
        return f"{service}.{self.namespace}.svc.cluster.local"


@pytest.fixture(scope="module")
def net(cluster: Cluster) -> Net:
    return asyncio.run(_build(cluster))


async def _build(cluster: Cluster) -> Net:
    async with cluster.client() as client:
        space = await make_space(cluster, client, "net")
        headless = service("peers", "web", clusterIP="None")
        open_outside = service("open", "web-2", type="NodePort", selector={"name": "web-2"})
        open_outside["spec"]["ports"] = [{"port": 80, "targetPort": PORT, "nodePort": NODE_PORT}]
        await space.create(
            service("web"), headless, open_outside, service("itself", "client"), service("none"),
            service("elsewhere", type="ExternalName", externalName="example.test"),
        )  # fmt: skip
        await space.create(
            pod("web-1", node="node-1", labels={"app": "web", "name": "web-1"}, hostname="web-1", subdomain="peers"),
            pod("web-2", node="node-2", labels={"app": "web", "name": "web-2"}, hostname="web-2", subdomain="peers"),
            pod("client", node="node-1"),
        )
        pods = [*await space.pods_ready("app=web", 2), *await space.pods_ready("app=client", 1)]
        await _routed(space, pods)
        return Net(
            cluster,
            space.name,
            {one["metadata"]["name"]: address_of(one) for one in pods},
            {one["metadata"]["name"]: cluster.pod_netns(one["metadata"]["uid"]) for one in pods},
            {one["metadata"]["name"]: one["spec"].get("clusterIP", "") for one in await space.list("services")},
        )


async def _routed(space: Space, pods: list[dict[str, object]]) -> None:
    await space.routed({address_of(one) for one in pods}, space.cluster.nodes)


@dataclass(frozen=True, slots=True)
class Outsider:
    """A host beside the nodes, on their network: it has routes to them and to nothing else."""

    namespace: Namespace
    address: str

    @property
    def where(self) -> str:
        return f"/run/netns/{self.namespace.name}"


@pytest.fixture
def outsider(cluster: Cluster) -> Iterator[Outsider]:
    with Lab() as lab:
        made = lab.namespace("outside")
        bridge = Namespace(lab, f"kl-{cluster.name}")
        lab.veth(made, "eth0", bridge, "klout")
        lab.callback(lambda: bridge.ip("link del klout"))
        bridge.ip("link set klout master klsw0")
        address = f"172.30.0.{next(_outside)}"
        made.ip(f"addr add {address}/24 dev eth0")
        yield Outsider(made, address)


async def answering_pods(net: Net, where: str, host: str, wanted: set[str]) -> set[str]:
    """Who answers, asked until all of `wanted` have; each answer is one connection."""
    found: set[str] = set()
    for _ in range(60):
        found.add((await get(where, host)).body["pod"])
        if found >= wanted:
            break
    return found


async def test_a_pod_reaches_a_pod_on_its_own_node_and_is_seen_with_its_own_address(net: Net) -> None:
    answer = await get(net.where["client"], net.address["web-1"], PORT)
    assert answer == Answer(200, {"pod": "web-1", "node": "node-1", "version": "", "peer": net.address["client"]})


async def test_a_pod_reaches_a_pod_on_another_node_and_is_seen_with_its_own_address(net: Net) -> None:
    answer = await get(net.where["client"], net.address["web-2"], PORT)
    assert (answer.body["node"], answer.body["peer"]) == ("node-2", net.address["client"])


async def test_a_pod_reaches_every_server_of_a_service_by_its_cluster_ip(net: Net) -> None:
    assert await answering_pods(net, net.where["client"], net.service["web"], {"web-1", "web-2"}) == {"web-1", "web-2"}


async def test_datagrams_reach_a_service_by_its_cluster_ip(net: Net) -> None:
    found = {(await ask_udp(net.where["client"], net.service["web"]))["pod"] for _ in range(30)}
    assert found == {"web-1", "web-2"}


async def test_a_node_reaches_a_service_by_its_cluster_ip_also_without_a_server_of_its_own(net: Net) -> None:
    for node in net.cluster.nodes:
        where = net.cluster.node_netns(node)
        assert await answering_pods(net, where, net.service["web"], {"web-1", "web-2"}) == {"web-1", "web-2"}


async def test_an_outsider_reaches_the_node_port_of_every_node(net: Net, outsider: Outsider) -> None:
    for node in net.cluster.nodes:
        answer = await get(outsider.where, net.cluster.node_address(node), NODE_PORT)
        assert answer.body["pod"] == "web-2", f"through {node}"
    with pytest.raises(ConnectionRefusedError):
        await get(outsider.where, net.cluster.node_address("node-3"), NODE_PORT + 1)


async def test_a_pod_reaches_itself_through_its_service(net: Net) -> None:
    answer = await get(net.where["client"], net.service["itself"])
    assert answer.body["pod"] == "client"
    assert (await ask_udp(net.where["client"], net.service["itself"]))["pod"] == "client"


async def test_what_a_pod_sends_outside_comes_from_its_nodes_address(net: Net, outsider: Outsider) -> None:
    server = outsider.namespace.serve("0.0.0.0", 9000, "outsider")
    assert await greeting(net.where["client"], outsider.address, 9000) == "outsider\n"
    assert await greeting(net.where["web-2"], outsider.address, 9000) == "outsider\n"
    assert server.peers == [net.cluster.node_address("node-1"), net.cluster.node_address("node-2")]


async def test_a_service_without_endpoints_refuses_at_once(net: Net) -> None:
    for where in (net.where["client"], net.cluster.node_netns("node-2")):
        began = time.monotonic()
        with pytest.raises(ConnectionRefusedError):
            await get(where, net.service["none"])
        assert time.monotonic() - began < 1.0


# Names


async def addresses(net: Net, name: str, kind: str = "A") -> list[str]:
    answer = await resolve(net.where["client"], DNS, name, kind)
    return sorted(str(row.rdata).rstrip(".") for row in answer.rr if QTYPE[row.rtype] == kind)


async def test_a_services_name_is_its_cluster_ip(net: Net) -> None:
    assert await addresses(net, net.name("web")) == [net.service["web"]]
    assert await addresses(net, "kubernetes.default.svc.cluster.local") == ["10.96.0.1"]


async def test_a_headless_services_name_is_its_pods_addresses(net: Net) -> None:
    assert await addresses(net, net.name("peers")) == sorted([net.address["web-1"], net.address["web-2"]])


async def test_a_pod_of_a_headless_service_has_a_name_of_its_own(net: Net) -> None:
    assert await addresses(net, f"web-2.{net.name('peers')}") == [net.address["web-2"]]


async def test_ports_are_found_by_srv_records(net: Net) -> None:
    found = await addresses(net, f"_http._tcp.{net.name('web')}", "SRV")
    assert [row.rstrip(".").split()[2:] for row in found] == [["80", net.name("web")]]
    found = await addresses(net, f"_http._tcp.{net.name('peers')}", "SRV")
    assert {tuple(row.rstrip(".").split()[2:]) for row in found} == {
        (str(PORT), f"{name}.{net.name('peers')}") for name in ("web-1", "web-2")
    }


async def test_addresses_have_names(net: Net) -> None:
    reverse = ".".join(reversed(net.service["web"].split("."))) + ".in-addr.arpa"
    assert await addresses(net, reverse, "PTR") == [net.name("web")]
    reverse = ".".join(reversed(net.address["web-1"].split("."))) + ".in-addr.arpa"
    assert await addresses(net, reverse, "PTR") == [f"web-1.{net.name('peers')}"]


async def test_pods_have_names_made_of_their_addresses(net: Net) -> None:
    dashed = net.address["web-1"].replace(".", "-")
    assert await addresses(net, f"{dashed}.{net.namespace}.pod.cluster.local") == [net.address["web-1"]]


async def test_an_external_service_is_an_alias(net: Net) -> None:
    assert await addresses(net, net.name("elsewhere"), "CNAME") == ["example.test"]


async def test_a_name_that_is_not_there_is_said_not_to_be(net: Net) -> None:
    answer = await resolve(net.where["client"], DNS, net.name("nobody"))
    assert RCODE[answer.header.rcode] == "NXDOMAIN"


async def test_short_names_are_found_by_the_search_path(net: Net) -> None:
    for name in ("web", f"web.{net.namespace}", f"web.{net.namespace}.svc", net.name("web")):
        answer = await get(net.where["client"], net.address["client"], PORT, f"/lookup?name={name}", 10)
        assert answer.body == {"addresses": [net.service["web"]]}, name
    answer = await get(net.where["client"], net.address["client"], PORT, "/get?url=http://web/", 10)
    assert answer.body["status"] == 200


async def test_every_node_answers_names(net: Net) -> None:
    for node in net.cluster.nodes:
        answer = await resolve(net.cluster.node_netns(node), DNS, net.name("web"))
        assert [str(row.rdata) for row in answer.rr] == [net.service["web"]]


async def test_services_are_found_by_environment_variables(net: Net) -> None:
    env = (await get(net.where["client"], net.address["client"], PORT, "/env")).body
    assert (env["WEB_SERVICE_HOST"], env["WEB_SERVICE_PORT"]) == (net.service["web"], "80")
    assert env["WEB_SERVICE_PORT_HTTP"] == "80"
    assert env["KUBERNETES_SERVICE_HOST"] == "10.96.0.1"


async def test_the_api_server_is_reached_by_its_service_from_a_pod(net: Net) -> None:
    answer = await run("nsenter", f"--net={net.where['client']}", "curl", "-sk", "https://10.96.0.1/readyz")
    assert answer.out == "ok", answer


async def test_flushed_rules_are_mended(net: Net) -> None:
    node = net.cluster.node_netns("node-1")
    done = await run("nsenter", f"--net={node}", "nft", "flush", "ruleset")
    assert done.code == 0, done
    await eventually(lambda: net.address["web-2"] in net.cluster.routed("node-1"), 5, "the routes of node-1")
    assert await answering_pods(net, net.where["client"], net.service["web"], {"web-1", "web-2"}) == {"web-1", "web-2"}


async def test_a_name_that_is_not_the_clusters_fails_at_once_without_an_upstream(net: Net) -> None:
    answer = await resolve(net.where["client"], DNS, "www.example.test")
    assert RCODE[answer.header.rcode] == "SERVFAIL"


async def test_other_names_are_asked_of_the_nodes_nameserver(net: Net) -> None:
    upstream = next(iter(upstreams_of(Path("/etc/resolv.conf"), ())), "")
    if not upstream or ip_address(upstream).is_loopback:
        pytest.skip("needs a nameserver in /etc/resolv.conf that is not on loopback")
    with Lab() as lab:
        between = Namespace(lab, f"kl-{net.cluster.name}")
        between.ip(f"addr add {upstream}/32 dev lo")
        lab.callback(lambda: between.ip(f"addr del {upstream}/32 dev lo"))
        server = between.open(socket.SOCK_DGRAM, upstream)
        server.bind((upstream, 53))
        answering = asyncio.create_task(asyncio.to_thread(answer_one, server))
        answer = await resolve(net.where["client"], DNS, "www.example.test")
        await answering
    assert [str(row.rdata) for row in answer.rr] == ["192.0.2.7"]


def answer_one(server: socket.socket) -> None:
    server.settimeout(5)
    data, peer = server.recvfrom(4096)
    reply = DNSRecord.parse(data).reply()
    reply.add_answer(*RR.fromZone("www.example.test 60 A 192.0.2.7"))
    server.sendto(reply.pack(), peer)
