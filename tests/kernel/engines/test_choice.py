"""Which of a service's backends a client is sent to."""

from __future__ import annotations

import socket
import time
from dataclasses import replace

from kernelet.dataplane.routes import Backend, BackendFlag, Protocol, ServiceRoute

from ..proxy.topology import NODE_ADDRESS, OUTSIDE_ADDRESS, service
from .offers import row
from .proxy import (
    BALANCER,
    EXTERNAL,
    LOST,
    NODE_PORT,
    REFUSED,
    VIP,
    VIP6,
    Proxy,
    between,
    in_zone,
    packed,
    refusal,
    tally,
)

DYING = BackendFlag.SERVING | BackendFlag.TERMINATING
UDP = Protocol.UDP


def with_backends(route: ServiceRoute, *backends: Backend) -> ServiceRoute:
    return replace(route, ports=(replace(route.ports[0], backends=backends),))


# --- session affinity -------------------------------------------------------------------------------------------------


def affine(proxy: Proxy, seconds: int, *backends: Backend) -> ServiceRoute:
    everyone = [pod.backend() for pod in proxy.site.pods]
    return service("web", VIP, *(backends or everyone), affinity_seconds=seconds, node_port=NODE_PORT)


@row("sessionAffinity: ClientIP")
def test_a_client_stays_with_its_backend(proxy: Proxy) -> None:
    proxy.route(affine(proxy, 600))
    for client in proxy.site.clients[:-1]:
        assert len(tally(client, VIP, times=20)) == 1
    assert len(tally(proxy.site.outside, NODE_ADDRESS, NODE_PORT, times=20)) == 1


@row("sessionAffinity: ClientIP")
def test_a_client_keeps_its_backend_when_others_come_and_go_and_moves_when_that_one_goes(proxy: Proxy) -> None:
    web1, web2, far = proxy.site.pods
    proxy.route(affine(proxy, 600, web1.backend(), web2.backend()))
    [first] = tally(proxy.site.pod, VIP, times=20)
    kept, other = (web1, web2) if first == web1.address else (web2, web1)
    proxy.route(affine(proxy, 600, far.backend(), kept.backend()))
    assert tally(proxy.site.pod, VIP, times=20).keys() == {first}
    proxy.route(affine(proxy, 600, far.backend(), other.backend()))
    [second] = tally(proxy.site.pod, VIP, times=20)
    assert second in (far.address, other.address)
    proxy.route(replace(affine(proxy, 0, web1.backend(), far.backend())))
    assert tally(proxy.site.pod, VIP).keys() == {web1.address, far.address}, "no affinity any more"


@row("sessionAffinity: ClientIP")
def test_clients_are_spread_and_remembered_for_their_time_only(proxy: Proxy) -> None:
    """That six clients all choose the same of 24 backends again by chance has a chance of 24 ** -6."""
    web1, *_ = proxy.site.pods
    ports = range(9000, 9024)
    for port in ports:
        proxy.serve(web1.namespace, port, str(port))
    route = service("web", VIP, *(web1.backend(port) for port in ports), affinity_seconds=1, node_port=NODE_PORT)
    proxy.route(route)

    def chosen() -> list[str]:
        answers = [client.names(VIP)[0] for client in proxy.site.clients[:-1]]
        return answers + proxy.site.outside.names(NODE_ADDRESS, NODE_PORT)

    first = chosen()
    assert len(set(first)) > 1, "clients may differ"
    assert chosen() == first
    time.sleep(1.5)  # What is tested is time passing.
    assert chosen() != first


@row("sessionAffinity: ClientIP")
def test_udp_clients_and_ipv6_clients_have_affinity_too(proxy: Proxy) -> None:
    backends = [backend for pod in proxy.site.pods for backend in (pod.backend(), pod.backend6(8082))]
    route = service("dns", VIP, *backends, protocol=UDP, affinity_seconds=600)
    proxy.route(replace(route, cluster_ips=packed(VIP, VIP6)))
    for address in (VIP, VIP6):
        assert len({proxy.site.pod.udp(address, 80, 1, connected)[0]["name"] for connected in (True, False) * 10}) == 1


# --- traffic policies -------------------------------------------------------------------------------------------------


@row("internalTrafficPolicy: Local")
def test_internal_policy_local_keeps_to_this_nodes_backends_and_refuses_without(proxy: Proxy) -> None:
    web1, _, far = proxy.site.pods
    route = service("web", VIP, web1.backend(), far.backend(), node_port=NODE_PORT, internal_local=True)
    proxy.route(route)
    for client in (proxy.site.pod, proxy.site.node):
        assert tally(client, VIP, times=20).keys() == {web1.address}
    assert tally(proxy.site.outside, NODE_ADDRESS, NODE_PORT).keys() == {web1.address, far.address}
    proxy.route(with_backends(route, far.backend()))
    for client in (proxy.site.pod, proxy.site.node):
        assert refusal(client, VIP) == REFUSED
    assert proxy.site.outside.names(NODE_ADDRESS, NODE_PORT) == [far.address]


@row("externalTrafficPolicy: Local")
def test_external_policy_local_keeps_outside_clients_to_this_nodes_backends_and_drops_without(proxy: Proxy) -> None:
    web1, _, far = proxy.site.pods
    route = service(
        "web",
        VIP,
        web1.backend(),
        far.backend(),
        node_port=NODE_PORT,
        external_ips=(EXTERNAL,),
        balancer_ips=packed(BALANCER),
        external_local=True,
    )
    proxy.route(route)
    places = ((NODE_ADDRESS, NODE_PORT), (EXTERNAL, 80), (BALANCER, 80))
    for address, port in places:
        assert tally(proxy.site.outside, address, port, 20).keys() == {web1.address}
        for client in (proxy.site.pod, proxy.site.node):
            assert tally(client, address, port).keys() == {web1.address, far.address}, "clients inside the cluster"
    assert tally(proxy.site.pod, VIP).keys() == {web1.address, far.address}
    proxy.route(with_backends(route, far.backend()))
    for address, port in places:
        [answer] = proxy.site.outside.tcp(address, port, 1, False, 0.3)
        assert answer.get("error") == LOST[0], "another node's turn"
        assert proxy.site.pod.names(address, port) == [far.address]
    proxy.route(with_backends(route))
    assert refusal(proxy.site.outside, NODE_ADDRESS, NODE_PORT) == REFUSED, "no node has any"


@row("a client's address is kept under externalTrafficPolicy: Local")
def test_a_backend_sees_the_outside_client_where_no_other_node_is_involved(proxy: Proxy) -> None:
    web1, *_ = proxy.site.pods
    fields = {"node_port": NODE_PORT, "external_ips": (EXTERNAL,)}
    peers = proxy.site.topology.servers[web1.address].peers
    for local in (True, False):
        proxy.route(service("web", VIP, web1.backend(), external_local=local, **fields))
        for address, port in ((NODE_ADDRESS, NODE_PORT), (EXTERNAL, 80)):
            assert proxy.site.outside.names(address, port) == [web1.address]
            assert (peers[-1] == OUTSIDE_ADDRESS) is local, "masqueraded otherwise, so that answers come back"


# --- endpoints' conditions --------------------------------------------------------------------------------------------


@row("publishNotReadyAddresses")
def test_what_the_route_calls_ready_takes_connections_whatever_else_it_is(proxy: Proxy) -> None:
    web1, web2, _ = proxy.site.pods
    published = web1.backend(flags=BackendFlag.READY | BackendFlag.TERMINATING)
    proxy.route(service("web", VIP, published, web2.backend(flags=BackendFlag.NONE)))
    assert tally(proxy.site.pod, VIP, times=20).keys() == {web1.address}


@row("serving endpoints that terminate, as the last resort")
def test_endpoints_that_serve_while_they_terminate_are_used_only_where_none_is_ready(proxy: Proxy) -> None:
    web1, web2, _ = proxy.site.pods
    dying, gone = web1.backend(flags=DYING), web2.backend(flags=BackendFlag.TERMINATING)
    for backends, expected in (
        ([dying, web2.backend()], {web2.address}),
        ([dying, gone], {web1.address}),
        ([dying, web2.backend(flags=DYING)], {web1.address, web2.address}),
        ([gone], {"ECONNREFUSED"}),
    ):
        proxy.route(service("web", VIP, *backends, node_port=NODE_PORT))
        assert tally(proxy.site.pod, VIP).keys() == expected
        assert tally(proxy.site.outside, NODE_ADDRESS, NODE_PORT).keys() == expected


@row("serving endpoints that terminate, as the last resort")
def test_the_last_resort_is_this_nodes_own_under_a_policy_local(proxy: Proxy) -> None:
    web1, _, far = proxy.site.pods
    dying = web1.backend(flags=DYING)
    proxy.route(
        service("web", VIP, dying, far.backend(), node_port=NODE_PORT, internal_local=True, external_local=True)
    )
    assert tally(proxy.site.pod, VIP, times=20).keys() == {web1.address}
    assert tally(proxy.site.outside, NODE_ADDRESS, NODE_PORT, 20).keys() == {web1.address}


# --- topology and weights ---------------------------------------------------------------------------------------------


@row("topology hints")
def test_clients_are_kept_in_their_zone_where_hints_are_complete_and_name_it(proxy: Proxy) -> None:
    web1, web2, far = proxy.site.pods
    east, west = in_zone(web1.backend(), "east"), in_zone(far.backend(), "west")
    everyone = {pod.address for pod in proxy.site.pods}

    def reached() -> set[str]:
        found = set(tally(proxy.site.pod, VIP, times=60))
        assert set(tally(proxy.site.outside, NODE_ADDRESS, NODE_PORT, 60)) == found
        return found

    complete = service("web", VIP, east, in_zone(web2.backend(), "east", "west"), west, node_port=NODE_PORT)
    proxy.route(complete)
    assert reached() == everyone, "this node's zone is not known"
    proxy.apply(proxy.feed.zone("east"))
    assert reached() == {web1.address, web2.address}
    proxy.apply(proxy.feed.zone("west"))
    assert reached() == {web2.address, far.address}
    proxy.apply(proxy.feed.zone("north"))
    assert reached() == everyone, "no endpoint is meant for it"
    proxy.apply(proxy.feed.zone("east"))
    proxy.route(with_backends(complete, east, web2.backend(), west))
    assert reached() == everyone, "one endpoint has no hint"
    proxy.route(with_backends(complete, west, replace(east, flags=BackendFlag.NONE)))
    assert reached() == {far.address}, "the zone's only endpoint is not ready"
    proxy.apply(proxy.feed.snapshot())
    assert reached() == {far.address}


@row("topology hints")
def test_a_policy_local_comes_before_zones(proxy: Proxy) -> None:
    web1, _, far = proxy.site.pods
    proxy.apply(proxy.feed.zone("west"))
    backends = (in_zone(web1.backend(), "east"), in_zone(far.backend(), "west"))
    proxy.route(service("web", VIP, *backends, internal_local=True))
    assert tally(proxy.site.pod, VIP, times=20).keys() == {web1.address}


@row("weights")
def test_backends_get_connections_in_proportion_to_their_weights(proxy: Proxy) -> None:
    web1, web2, _ = proxy.site.pods
    heavy, light = replace(web1.backend(), weight=3), web2.backend()
    proxy.route(service("web", VIP, heavy, light, node_port=NODE_PORT))
    for client, address, port in ((proxy.site.pod, VIP, 80), (proxy.site.outside, NODE_ADDRESS, NODE_PORT)):
        answers = tally(client, address, port, 400)
        assert answers.total() == answers[web1.address] + answers[web2.address]
        assert answers[web1.address] in between(400, 0.75), answers
    proxy.route(service("web", VIP, replace(heavy, weight=1), light))
    assert tally(proxy.site.pod, VIP, times=400)[web1.address] in between(400, 0.5)


# --- clients that stay ------------------------------------------------------------------------------------------------


@row("a UDP client whose backend goes reaches another")
def test_udp_sockets_that_keep_sending_reach_the_new_backend(proxy: Proxy) -> None:
    web1, web2, far = proxy.site.pods

    def routes(four: Backend, six: Backend) -> tuple[ServiceRoute, ServiceRoute]:
        return (
            service("dns", VIP, four, protocol=UDP, node_port=NODE_PORT),
            service("six", VIP6, six, protocol=UDP),
        )

    proxy.route(*routes(web1.backend(), web1.backend6(8082)))
    inside = [(client, address) for client in (proxy.site.pod, proxy.site.node) for address in (VIP, VIP6)]
    for client, address in inside:
        for connected in (True, False):
            assert client.udp(address, 80, 2, connected, f"{address} {connected}")[1].get("name") == web1.address
    outside = proxy.site.outside
    assert outside.udp(NODE_ADDRESS, NODE_PORT, 2, True, "kept")[1].get("name") == web1.address
    for pod in (web2, far):
        proxy.route(*routes(pod.backend(), pod.backend6(8082)))
        for client, address in inside:
            assert client.udp(address, 80, 1, False, f"{address} False")[0].get("name") == pod.address
            assert client.persist(f"{address} True", address, 80, 4)[-1] == {"name": pod.address}
        assert outside.persist("kept", NODE_ADDRESS, NODE_PORT, 1) == [{"name": pod.address}]


@row("a UDP client whose backend goes reaches another")
def test_a_udp_client_stays_with_a_backend_that_stays(proxy: Proxy) -> None:
    web1, web2, far = proxy.site.pods
    proxy.route(service("dns", VIP, web1.backend(), web2.backend(), protocol=UDP))
    [first] = {proxy.site.pod.udp(VIP, 80, 1, False, "kept")[0]["name"] for _ in range(10)}
    kept = web1 if first == web1.address else web2
    proxy.route(service("dns", VIP, kept.backend(), far.backend(), protocol=UDP))
    assert proxy.site.pod.udp(VIP, 80, 1, False, "kept")[0].get("name") in {first, far.address}
    proxy.site.pod.udp(VIP, 80, 1, True, "connected")
    [stays] = {answer["name"] for answer in proxy.site.pod.persist("connected", VIP, 80, 3)}
    proxy.route(service("dns", VIP, *(pod.backend() for pod in proxy.site.pods), protocol=UDP))
    assert {answer.get("name") for answer in proxy.site.pod.persist("connected", VIP, 80, 3)} == {stays}


@row("a UDP client whose backend goes reaches another")
def test_a_udp_client_that_was_there_before_the_service_reaches_it(proxy: Proxy) -> None:
    _, web2, _ = proxy.site.pods
    proxy.serve(proxy.site.topology.node, NODE_PORT, "node", socket.SOCK_DGRAM)
    assert proxy.site.outside.udp(NODE_ADDRESS, NODE_PORT, 1, True, "kept")[0].get("name") == "node"
    proxy.route(service("dns", VIP, web2.backend(), protocol=UDP, node_port=NODE_PORT))
    assert proxy.site.outside.persist("kept", NODE_ADDRESS, NODE_PORT, 1) == [{"name": web2.address}]
