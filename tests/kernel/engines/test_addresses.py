"""Who reaches which addresses of a service, over which protocol."""

from __future__ import annotations

import socket
from dataclasses import replace

from support.sctp import SctpServer, raw_socket

from kernelet.dataplane.routes import Protocol, ServicePort

from ..proxy.topology import NODE_ADDRESS, NODE_ADDRESS6, OTHER_NODE_ADDRESS, OTHER_OUTSIDE_ADDRESS, Pod, service
from .kernel import leftovers
from .offers import row
from .proxy import (
    BALANCER,
    EXTERNAL,
    EXTERNAL6,
    LOST,
    NODE_PORT,
    OTHER_VIP,
    REFUSED,
    REFUSED_UDP,
    VIP,
    VIP6,
    Proxy,
    between,
    packed,
    refusal,
    tally,
)

UDP = Protocol.UDP


@row("ClusterIP: TCP")
def test_a_cluster_ip_leads_to_every_backend_equally_often(proxy: Proxy) -> None:
    pods = proxy.site.pods
    proxy.route(service("web", VIP, *(pod.backend() for pod in pods)))
    answers = tally(proxy.site.pod, VIP, times=300)
    assert answers.keys() == {pod.address for pod in pods}
    assert all(count in between(300, 1 / 3) for count in answers.values()), answers


@row("ClusterIP: TCP")
def test_a_backend_added_or_removed_counts_for_the_next_connection(proxy: Proxy) -> None:
    web1, web2, _ = proxy.site.pods
    for pods in ([web1], [web1, web2], [web2]):
        proxy.route(service("web", VIP, *(pod.backend() for pod in pods)))
        assert tally(proxy.site.pod, VIP).keys() == {pod.address for pod in pods}


@row("ClusterIP: from pods and from the node")
def test_the_node_itself_reaches_cluster_ips(proxy: Proxy) -> None:
    web1, _, far = proxy.site.pods
    proxy.route(
        service("web", VIP, web1.backend(), far.backend()), service("dns", OTHER_VIP, far.backend(), protocol=UDP)
    )
    assert tally(proxy.site.node, VIP).keys() == {web1.address, far.address}
    assert asks_udp(proxy, OTHER_VIP, from_node=True) == [far.address]


@row("ClusterIP: from pods and from the node")
def test_a_backend_may_be_a_process_of_the_node(proxy: Proxy) -> None:
    proxy.serve(proxy.site.topology.node, 8099, "agent")
    agent = replace(proxy.site.pods[0].backend(8099), address=packed(NODE_ADDRESS)[0])
    proxy.route(service("dns", VIP, agent, internal_local=True))
    assert proxy.site.node.names(VIP) == proxy.site.pod.names(VIP) == ["agent"]


@row("ClusterIP: from outside the cluster, where routes lead to the node")
def test_a_router_may_send_outside_clients_to_cluster_ips(proxy: Proxy) -> None:
    web1, *_ = proxy.site.pods
    proxy.route(service("web", VIP, web1.backend()))
    assert proxy.site.outside.names(VIP) == [web1.address]


def asks_udp(proxy: Proxy, address: str, port: int = 80, *, from_node: bool = False) -> list[str]:
    """Who answers a datagram, from a connected socket and from one that is not; answers come from the address asked."""
    client = proxy.site.node if from_node else proxy.site.pod
    answers = [client.udp(address, port, 1, connected)[0] for connected in (True, False)]
    assert [answer.get("source") for answer in answers] == [[address, port]] * 2, answers
    return sorted({answer["name"] for answer in answers})


@row("ClusterIP: UDP")
def test_udp_goes_to_a_backend_and_back_from_the_service_address(proxy: Proxy) -> None:
    web1, *_ = proxy.site.pods
    backends = (web1.backend(), web1.backend6(8082))
    proxy.route(
        replace(service("dns", VIP, *backends, protocol=UDP, node_port=NODE_PORT), cluster_ips=packed(VIP, VIP6))
    )
    assert asks_udp(proxy, VIP) == asks_udp(proxy, VIP6) == [web1.address]
    for address in (NODE_ADDRESS, NODE_ADDRESS6):
        assert asks_udp(proxy, address, NODE_PORT) == [web1.address]
        [answer] = proxy.site.outside.udp(address, NODE_PORT)
        assert (answer.get("name"), answer.get("source")) == (web1.address, [address, NODE_PORT])


@row("ClusterIP: UDP")
def test_one_udp_socket_may_talk_to_several_services(proxy: Proxy) -> None:
    web1, web2, _ = proxy.site.pods
    proxy.route(
        service("one", VIP, web1.backend(), protocol=UDP), service("two", OTHER_VIP, web2.backend(), protocol=UDP)
    )
    for _ in range(3):
        for address, pod in ((VIP, web1), (OTHER_VIP, web2)):
            [answer] = proxy.site.pod.udp(address, 80, 1, False, "kept")
            assert (answer.get("name"), answer.get("source")) == (pod.address, [address, 80])


def serve_sctp(pod: Pod, name: str) -> SctpServer:
    with pod.namespace.entered():
        return SctpServer(raw_socket(), 8080, name)


@row("ClusterIP: SCTP")
def test_an_sctp_association_is_opened_with_a_backend(proxy: Proxy) -> None:
    web1, _, far = proxy.site.pods
    servers = [serve_sctp(pod, pod.address) for pod in (web1, far)]
    try:
        backends = (web1.backend(), far.backend())
        proxy.route(service("signal", VIP, *backends, protocol=Protocol.SCTP, node_port=NODE_PORT))
        for client, address, port in (
            (proxy.site.pod, VIP, 80),
            (proxy.site.node, VIP, 80),
            (proxy.site.outside, NODE_ADDRESS, NODE_PORT),
        ):
            answers = [client.sctp(address, port) for _ in range(25)]
            assert {answer.get("name", answer.get("error")) for answer in answers} == {web1.address, far.address}
    finally:
        for server in servers:
            server.close()


@row("ClusterIP: IPv6 and dual-stack")
def test_a_dual_stack_service_leads_each_family_to_its_own_backends(proxy: Proxy) -> None:
    web1, web2, far = proxy.site.pods
    backends = (web1.backend(), web2.backend6(8081), far.backend6(8081))
    proxy.route(replace(service("web", VIP, *backends, node_port=NODE_PORT), cluster_ips=packed(VIP, VIP6)))
    six = {web2.address, far.address}
    for client in (proxy.site.pod, proxy.site.node):
        assert tally(client, VIP, times=10).keys() == {web1.address}
        assert tally(client, VIP6).keys() == six
    for client in (proxy.site.pod, proxy.site.node, proxy.site.outside):
        assert tally(client, NODE_ADDRESS, NODE_PORT, times=10).keys() == {web1.address}
        assert tally(client, NODE_ADDRESS6, NODE_PORT).keys() == six
    assert refusal(proxy.site.pod, VIP6, 81) == REFUSED


@row("ClusterIP: IPv6 and dual-stack")
def test_an_ipv6_socket_reaches_ipv4_services_by_mapped_addresses(proxy: Proxy) -> None:
    web1, *_ = proxy.site.pods
    proxy.route(service("web", VIP, web1.backend()))
    assert proxy.site.pod.tcp(VIP, 80, 1, True) == [{"name": web1.address, "peer": [f"::ffff:{VIP}", 80]}]


@row("several ports, named target ports")
def test_ports_are_routed_apart_each_to_its_own_port_of_each_endpoint(proxy: Proxy) -> None:
    web1, web2, _ = proxy.site.pods
    for pod, port in ((web1, 9090), (web2, 9191)):
        proxy.serve(pod.namespace, port, f"{pod.address}:{port}")
    ports = (
        ServicePort("http", Protocol.TCP, 80, 0, (web1.backend(), web2.backend())),
        ServicePort("metrics", Protocol.TCP, 81, 0, (web1.backend(9090), web2.backend(9191))),
        ServicePort("dns", Protocol.UDP, 80, 0, (web2.backend(),)),
    )
    proxy.route(replace(service("web", VIP), ports=ports))
    assert tally(proxy.site.pod, VIP, 80).keys() == {web1.address, web2.address}
    assert tally(proxy.site.pod, VIP, 81).keys() == {f"{web1.address}:9090", f"{web2.address}:9191"}
    assert asks_udp(proxy, VIP) == [web2.address]


@row("NodePort: every address of the node")
def test_a_node_port_answers_outside_clients_pods_and_the_node_on_every_address(proxy: Proxy) -> None:
    web1, _, far = proxy.site.pods
    proxy.route(service("web", VIP, web1.backend(), far.backend(), node_port=NODE_PORT))
    for client in (proxy.site.outside, proxy.site.pod, proxy.site.node):
        for address in (NODE_ADDRESS, OTHER_NODE_ADDRESS):
            assert tally(client, address, NODE_PORT).keys() == {web1.address, far.address}
    assert refusal(proxy.site.outside, NODE_ADDRESS, NODE_PORT + 1) == REFUSED


@row("NodePort: 127.0.0.1")
def test_a_node_port_answers_the_nodes_processes_on_loopback_and_nobody_else(proxy: Proxy) -> None:
    web1, *_ = proxy.site.pods
    proxy.route(service("web", VIP, web1.backend(), node_port=NODE_PORT))
    assert proxy.site.node.names("127.0.0.1", NODE_PORT) == [web1.address]
    assert refusal(proxy.site.pod, "127.0.0.1", NODE_PORT) == REFUSED


@row("externalIPs")
def test_external_ips_answer_outside_clients_pods_and_the_node(proxy: Proxy) -> None:
    web1, _, far = proxy.site.pods
    backends = [backend for pod in (web1, far) for backend in (pod.backend(), pod.backend6(8081))]
    proxy.route(service("web", VIP, *backends, external_ips=(EXTERNAL, EXTERNAL6)))
    for client in (proxy.site.outside, proxy.site.pod, proxy.site.node):
        for address in (EXTERNAL, EXTERNAL6):
            assert tally(client, address).keys() == {web1.address, far.address}
    assert tally(proxy.site.pod, VIP).keys() == {web1.address, far.address}


@row("load-balancer ingress addresses")
def test_balancer_addresses_answer_outside_clients_pods_and_the_node(proxy: Proxy) -> None:
    web1, _, far = proxy.site.pods
    backends = (web1.backend(), far.backend())
    proxy.route(service("web", VIP, *backends, node_port=NODE_PORT, balancer_ips=packed(BALANCER)))
    for client in (proxy.site.outside, proxy.site.pod, proxy.site.node):
        assert tally(client, BALANCER).keys() == {web1.address, far.address}


@row("loadBalancerSourceRanges")
def test_source_ranges_guard_the_balancers_addresses_and_nothing_else(proxy: Proxy) -> None:
    web1, *_ = proxy.site.pods
    route = service(
        "web",
        VIP,
        web1.backend(),
        node_port=NODE_PORT,
        external_ips=(EXTERNAL,),
        balancer_ips=packed(BALANCER),
        source_ranges=((packed("203.0.113.0")[0], 24), (packed("10.244.0.0")[0], 30)),
    )
    proxy.route(route)
    assert from_outside(proxy, OTHER_OUTSIDE_ADDRESS, BALANCER) == [web1.address]
    assert from_outside(proxy, "", BALANCER) == LOST
    assert proxy.site.pod.names(BALANCER) == [web1.address], "10.244.0.2 is in 10.244.0.0/30"
    for address, port in ((EXTERNAL, 80), (NODE_ADDRESS, NODE_PORT), (VIP, 80)):
        assert proxy.site.pod.names(address, port) == [web1.address]
    for address, port in ((EXTERNAL, 80), (NODE_ADDRESS, NODE_PORT)):
        assert from_outside(proxy, "", address, port) == [web1.address]
    proxy.route(replace(route, source_ranges=((packed("192.0.2.0")[0], 24),)))
    assert from_outside(proxy, "", BALANCER) == [web1.address]
    assert from_outside(proxy, OTHER_OUTSIDE_ADDRESS, BALANCER) == LOST
    proxy.route(replace(route, source_ranges=()))
    assert from_outside(proxy, OTHER_OUTSIDE_ADDRESS, BALANCER) == from_outside(proxy, "", BALANCER) == [web1.address]


@row("loadBalancerSourceRanges")
def test_a_pod_is_a_client_like_any_other_to_source_ranges(proxy: Proxy) -> None:
    web1, *_ = proxy.site.pods
    ranges = ((packed("203.0.113.0")[0], 24),)
    proxy.route(service("web", VIP, web1.backend(), balancer_ips=packed(BALANCER), source_ranges=ranges))
    [answer] = proxy.site.pod.tcp(BALANCER, 80, 1, False, 0.5)
    assert answer.get("error") == LOST[0]
    assert proxy.site.pod.names(VIP) == [web1.address]


def from_outside(proxy: Proxy, source: str, address: str, port: int = 80) -> list[str]:
    [answer] = proxy.site.outside.tcp(address, port, 1, False, 0.5, source)
    return [answer.get("name", answer.get("error"))]


@row("no endpoints: refused at once")
def test_a_service_without_endpoints_refuses_everybody_at_once(proxy: Proxy) -> None:
    fields = {"node_port": NODE_PORT, "external_ips": (EXTERNAL,), "balancer_ips": packed(BALANCER)}
    proxy.route(
        replace(service("web", VIP, **fields), cluster_ips=packed(VIP, VIP6)),
        service("dns", OTHER_VIP, protocol=UDP, node_port=NODE_PORT),
    )
    for client in (proxy.site.pod, proxy.site.node):
        for address in (VIP, VIP6, EXTERNAL, BALANCER):
            assert refusal(client, address) == REFUSED, address
        assert client.udp(OTHER_VIP, 80, 1, True) in REFUSED_UDP
    for client in (proxy.site.pod, proxy.site.node, proxy.site.outside):
        for address in (NODE_ADDRESS, NODE_ADDRESS6):
            assert refusal(client, address, NODE_PORT) == REFUSED, address
        assert client.udp(NODE_ADDRESS, NODE_PORT, 1, True) in REFUSED_UDP
    for address in (EXTERNAL, BALANCER):
        assert refusal(proxy.site.outside, address) == REFUSED


@row("no endpoints: refused at once")
def test_what_no_service_has_is_refused_at_once(proxy: Proxy) -> None:
    proxy.route(service("web", VIP, proxy.site.pods[0].backend()))
    for client in (proxy.site.pod, proxy.site.node):
        assert refusal(client, VIP, 81) == REFUSED
        assert refusal(client, "10.96.77.77") == REFUSED
        assert client.udp(VIP, 81, 1, True) in REFUSED_UDP


@row("a pod reaches itself through its service")
def test_a_pod_reaches_itself_over_tcp_and_udp(proxy: Proxy) -> None:
    web1, *_ = proxy.site.pods
    proxy.route(
        service("web", VIP, web1.backend(), node_port=NODE_PORT),
        service("dns", OTHER_VIP, web1.backend(), protocol=UDP),
        service("six", VIP6, web1.backend6(8081)),
    )
    assert proxy.site.web1.names(VIP) == proxy.site.web1.names(VIP6) == [web1.address]
    assert proxy.site.web1.names(NODE_ADDRESS, NODE_PORT) == [web1.address]
    assert proxy.site.web1.udp(OTHER_VIP, 80)[0].get("name") == web1.address


@row("a pod's address is kept, pod to pod")
def test_a_backend_sees_the_pod_that_connects_to_the_cluster_ip(proxy: Proxy) -> None:
    for pod in (proxy.site.pods[0], proxy.site.pods[2]):
        proxy.route(service("web", VIP, pod.backend()))
        assert proxy.site.pod.names(VIP) == [pod.address]
        server = proxy.site.topology.servers[pod.address]
        assert server.peers[-1] == proxy.site.topology.client.address


@row("connections are counted")
def test_connections_are_counted_by_service(proxy: Proxy) -> None:
    web1, web2, _ = proxy.site.pods
    proxy.route(service("web", VIP, web1.backend(), external_ips=(EXTERNAL,)), service("idle", OTHER_VIP))
    proxy.site.pod.names(VIP, times=5)
    proxy.route(service("web", VIP, web1.backend(), web2.backend(), external_ips=(EXTERNAL,)))
    proxy.site.node.names(VIP)
    proxy.site.outside.names(EXTERNAL)
    assert {row.service: row.connections for row in proxy.engine.counters()} == {"default/web": 7, "default/idle": 0}


@row("one address, two services: the first by name has it")
def test_of_two_services_with_one_external_ip_the_first_by_name_has_it_and_the_other_inherits(proxy: Proxy) -> None:
    web1, web2, _ = proxy.site.pods
    a = service("a", "10.96.0.1", web1.backend(), external_ips=(EXTERNAL,))
    b = service("b", "10.96.0.2", web2.backend(), external_ips=(EXTERNAL,))
    for first, second in ((a, b), (b, a)):
        proxy.route(first)
        proxy.route(second)
        for client in (proxy.site.pod, proxy.site.outside):
            assert client.names(EXTERNAL) == [web1.address]
        proxy.route(removed=("a",))
        for client in (proxy.site.pod, proxy.site.outside):
            assert client.names(EXTERNAL) == [web2.address]
        assert proxy.site.pod.names("10.96.0.2") == [web2.address]
        proxy.route(removed=("b",))
        assert leftovers(proxy) == {}


@row("one address, two services: the first by name has it")
def test_a_cluster_ip_may_pass_to_another_service_in_one_delta(proxy: Proxy) -> None:
    web1, web2, _ = proxy.site.pods
    proxy.route(service("old", VIP, web1.backend()))
    proxy.route(service("new", VIP, web2.backend()), removed=("old",))
    assert tally(proxy.site.pod, VIP, times=10).keys() == {web2.address}


@row("NodePort: 127.0.0.1")
def test_loopback_addresses_of_the_node_are_closed_to_the_outside(proxy: Proxy) -> None:
    topology = proxy.site.topology
    proxy.serve(topology.node, 9090, "private")
    topology.outside.sysctl("net.ipv4.conf.all.route_localnet", "1")
    topology.outside.ip(
        "route del local 127.0.0.0/8 dev lo table local", f"route add 127.0.0.9 via {NODE_ADDRESS} src 192.0.2.2"
    )
    try:
        assert from_outside(proxy, "", "127.0.0.9", 9090) == LOST
        topology.node.run("nft", "flush chain ip kernelet prerouting")
        assert from_outside(proxy, "", "127.0.0.9", 9090) == ["private"], "it is the table that closes them"
    finally:
        topology.outside.ip("route del 127.0.0.9", "route add local 127.0.0.0/8 dev lo table local")


@row("ClusterIP: TCP")
def test_other_addresses_are_left_alone(proxy: Proxy) -> None:
    web1, *_ = proxy.site.pods
    proxy.route(service("web", VIP, web1.backend()))
    assert proxy.site.pod.tcp(web1.address, 8080) == [{"name": web1.address, "peer": [web1.address, 8080]}]
    assert proxy.site.pod.udp(web1.address, 8080, 1, True)[0]["peer"] == [web1.address, 8080]
    with proxy.site.topology.node.open(socket.SOCK_DGRAM) as free:
        free.bind((NODE_ADDRESS, 0))
        assert proxy.site.topology.client.namespace.open(socket.SOCK_DGRAM).connect_ex(free.getsockname()) == 0
