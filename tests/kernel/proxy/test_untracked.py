"""What connection tracking sees of traffic between pods, and what lives through a change of that."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from kernelet.dataplane.proxy.nftables.engine import NftablesEngine
from kernelet.dataplane.routes import Backend, Protocol
from kernelet.ext.nft import AF_INET, AF_INET6, Flow, Socket, delete_flows

from .topology import CONFIG, NODE_ADDRESS, OUTSIDE_ADDRESS, Feed, Pod, Topology, service

VIP, EXTERNAL, PORT = "10.96.0.1", "198.51.100.7", 30080
VTEP = "10.244.0.0"
"""The node's own address within its pods' network, as an overlay sets one."""


def started(topology: Topology, *, beside_sockets: bool = False) -> NftablesEngine:
    with topology.node.entered():
        made = NftablesEngine(CONFIG, beside_sockets)
        made.start()
    return made


@pytest.fixture
def beside(topology: Topology) -> Iterator[NftablesEngine]:
    """An engine beside socket-level translation."""
    made = started(topology, beside_sockets=True)
    try:
        yield made
    finally:
        made.close(keep=False)


def tracked(topology: Topology, destination: str, port: int) -> list[Flow]:
    """The node's conntrack entries of flows to a place."""
    found = []
    wanted = ip_address(destination).packed

    def match(flow: Flow) -> bool:
        if (flow.destination, flow.destination_port) == (wanted, port):
            found.append(flow)
        return False

    with topology.node.entered(), Socket() as netlink:
        delete_flows(netlink, AF_INET if len(wanted) == 4 else AF_INET6, match)
    return found


class Conversation:
    """A connection that is asked to prove that it lives."""

    def __init__(self, pod: Pod, address: str, port: int) -> None:
        self.socket = pod.namespace.connect(address, port)
        self.stream = self.socket.makefile("rw")
        self.server = self.stream.readline().strip()

    def goes_on(self) -> bool:
        self.stream.write("still here\n")
        self.stream.flush()
        return self.stream.readline() == "still here\n"


def test_connections_between_pods_leave_no_conntrack_entry_where_no_service_leads_to_their_port(
    topology: Topology, engine: NftablesEngine, feed: Feed
) -> None:
    for pod in (topology.web1, topology.far):
        pod.serve(8070)
        pod.serve_udp(8070)
    engine.apply(feed.change(service("web", VIP, topology.web2.backend())))
    for pod in (topology.web1, topology.far):
        assert topology.client.ask(pod.address, 8070) == pod.address
        assert topology.client.namespace.ask_udp(pod.address, 8070) == pod.address
        assert tracked(topology, pod.address, 8070) == []
    topology.web1.namespace.serve("::", 8071, "six")
    assert topology.client.ask(topology.web1.address6, 8071) == "six"
    assert tracked(topology, topology.web1.address6, 8071) == []
    assert topology.client.ask(topology.web2.address, 8080) == topology.web2.address
    assert tracked(topology, topology.web2.address, 8080), "replies from this port may have been translated"
    assert topology.client.ask(VIP) == topology.web2.address
    assert tracked(topology, VIP, 80)


def test_before_the_first_routes_everything_is_tracked(topology: Topology, engine: NftablesEngine) -> None:
    topology.web1.serve(8072)
    assert topology.client.ask(topology.web1.address, 8072) == topology.web1.address
    assert tracked(topology, topology.web1.address, 8072)


def test_a_connection_between_pods_lives_on_when_its_port_becomes_a_services(
    topology: Topology, engine: NftablesEngine, feed: Feed
) -> None:
    for pod in (topology.web1, topology.far):
        pod.serve(8073)
    engine.apply(feed.change())
    direct = [Conversation(topology.client, pod.address, 8073) for pod in (topology.web1, topology.far)]
    engine.apply(feed.change(service("web", VIP, topology.web1.backend(8073), topology.far.backend(8073))))
    assert all(one.goes_on() for one in direct)
    through = Conversation(topology.client, VIP, 80)
    assert all(one.goes_on() for one in (*direct, through))
    engine.apply(feed.change(removed=("web",)))
    assert all(one.goes_on() for one in (*direct, through))


def test_connections_through_a_service_live_through_its_removal_a_restart_and_a_flushed_ruleset(
    topology: Topology, engine: NftablesEngine, feed: Feed
) -> None:
    for pod in (topology.web1, topology.far):
        pod.serve(8074)
    pods = (topology.web1, topology.far)
    for number, pod in enumerate(pods):
        engine.apply(feed.change(service(f"s{number}", f"10.96.0.{number + 1}", pod.backend(8074))))
    talks = [Conversation(topology.client, f"10.96.0.{number + 1}", 80) for number in range(2)]
    assert [talk.server for talk in talks] == [pod.address for pod in pods]
    engine.apply(feed.change(removed=("s0", "s1")))
    assert all(talk.goes_on() for talk in talks)
    engine.close()
    second = started(topology)
    try:
        assert all(talk.goes_on() for talk in talks)
        second.apply(feed.snapshot())
        assert all(talk.goes_on() for talk in talks)
        topology.node.run("nft", "flush ruleset")
        assert second._session is not None
        second._session.structure.ensure()
        assert all(talk.goes_on() for talk in talks), "rules without their elements let nothing past conntrack"
        assert second.repair() > 0
        assert all(talk.goes_on() for talk in talks)
    finally:
        second.close()


@pytest.fixture
def vtep(topology: Topology) -> Iterator[str]:
    topology.node.ip(f"addr add {VTEP}/32 dev lo")
    yield VTEP
    topology.node.ip(f"addr del {VTEP}/32 dev lo")


def test_the_nodes_own_address_among_the_pods_serves_node_ports(
    topology: Topology, engine: NftablesEngine, feed: Feed, vtep: str
) -> None:
    engine.apply(feed.change(service("web", VIP, topology.far.backend(), node_port=PORT)))
    assert topology.client.ask(vtep, PORT) == topology.far.address


# --- beside socket-level translation ----------------------------------------------------------------------------------


def test_beside_sockets_cluster_ips_are_programmed_for_sctp_alone(
    topology: Topology, beside: NftablesEngine, feed: Feed
) -> None:
    web, phone = topology.web1.backend(), replace(topology.web2.backend(), port=9)
    beside.apply(
        feed.change(
            service("web", VIP, web),
            service("out", "10.96.0.2", web, external_ips=(EXTERNAL,)),
            service("phone", "10.96.0.3", phone, protocol=Protocol.SCTP),
        )
    )
    packed = {name: ip_address(name).packed for name in (EXTERNAL, "10.96.0.3")}
    assert beside.restore() == {
        (packed[EXTERNAL], Protocol.TCP, 80, web.address, 8080),
        (packed["10.96.0.3"], Protocol.SCTP, 80, phone.address, 9),
    }
    with pytest.raises(ConnectionRefusedError):
        topology.client.ask(VIP)
    before = beside.written
    beside.apply(feed.change(service("web", VIP, web, topology.web2.backend())))
    assert beside.written == before, "what sockets translate costs nothing here"


def test_beside_sockets_pods_reach_external_ips_and_node_ports_and_get_their_replies(
    topology: Topology, beside: NftablesEngine, feed: Feed, vtep: str
) -> None:
    for pod in (topology.web1, topology.far):
        beside.apply(feed.change(service("web", VIP, pod.backend(), node_port=PORT, external_ips=(EXTERNAL,))))
        for address, port in ((EXTERNAL, 80), (NODE_ADDRESS, PORT), (vtep, PORT)):
            for client in (topology.client, topology.web1):
                assert client.ask(address, port) == pod.address
        assert topology.servers[pod.address].peers[-1] != topology.client.address, "masqueraded"
        assert topology.outside.ask(NODE_ADDRESS, PORT) == pod.address
        assert topology.node.ask(EXTERNAL, 80) == pod.address
        assert topology.client.ask(pod.address, 8080) == pod.address
        assert tracked(topology, pod.address, 8080) == []


def test_beside_sockets_a_client_outside_keeps_its_address_under_the_local_policy(
    topology: Topology, beside: NftablesEngine, feed: Feed
) -> None:
    beside.apply(feed.change(service("web", VIP, topology.web1.backend(), node_port=PORT, external_local=True)))
    assert topology.outside.ask(NODE_ADDRESS, PORT) == topology.web1.address
    assert topology.servers[topology.web1.address].peers[-1] == OUTSIDE_ADDRESS


def test_beside_sockets_a_udp_client_gets_its_answer_from_where_it_asked(
    topology: Topology, beside: NftablesEngine, feed: Feed
) -> None:
    backends: list[Backend] = [topology.web1.backend()]
    beside.apply(feed.change(service("dns", VIP, *backends, protocol=Protocol.UDP, external_ips=(EXTERNAL,))))
    client = topology.client.namespace.open(socket.SOCK_DGRAM)
    assert topology.client.namespace.ask_udp(EXTERNAL, 80, via=client) == topology.web1.address
