"""The VXLAN overlay between two nodes, in real namespaces."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface

import pytest
from support.netns import Lab, Namespace
from support.nodes import OUTSIDE_ADDRESS, Node, plug, soon, switch

from kernelet.dataplane.overlay import OverlayError
from kernelet.dataplane.overlay.vxlan import DEVICE, vtep_mac
from kernelet.dataplane.routes import Peer


@pytest.fixture(scope="module")
def net(lab: Lab) -> Namespace:
    return switch(lab)


@pytest.fixture(scope="module")
def pair(lab: Lab, net: Namespace) -> tuple[Node, Node]:
    return Node(lab, net, 1), Node(lab, net, 2)


@pytest.fixture
def nodes(pair: tuple[Node, Node]) -> Iterator[tuple[Node, Node]]:
    """Both started and peers of each other; nothing is left afterwards."""
    try:
        for node in pair:
            node.start()
        for node in pair:
            node.loop.do(node.overlay.apply([other.peer() for other in pair]))
        yield pair
    finally:
        for node in pair:
            node.loop.do(node.overlay.close(keep=False))
            node.loop.do(node.podnet.close(keep=False))


def held(node: Node) -> str:
    """What the kernel holds of the overlay."""
    with contextlib.suppress(RuntimeError):
        parts = [
            node.namespace.run("ip", "-d", "link", "show", DEVICE).partition(": ")[2].replace("UNKNOWN", "UP"),
            node.namespace.run("ip", "-4", "-o", "addr", "show", "dev", DEVICE).partition("inet")[2],
            node.namespace.run("ip", "route", "show", "dev", DEVICE),
            node.namespace.run("ip", "neigh", "show", "nud", "permanent", "dev", DEVICE),
            node.namespace.run("bridge", "fdb", "show", "dev", DEVICE),
        ]
        return "\n".join(sorted(line.strip() for part in parts for line in part.splitlines()))
    return ""


def peer(number: int) -> Peer:
    address = f"172.30.0.{100 + number}"
    return Peer(f"p{number}", (f"10.244.{100 + number}.0/24",), address, vtep_mac(IPv4Address(address)))


def test_pods_on_different_nodes_reach_each_other_with_their_own_addresses(nodes: tuple[Node, Node]) -> None:
    one, two = nodes[0].pod("a"), nodes[1].pod("b")
    server = two.namespace.serve("0.0.0.0", 8080, "b")
    assert one.namespace.ask(two.address, 8080) == "b"
    assert server.peers == [one.address]


def test_nodes_reach_pods_of_other_nodes_from_their_own_address_among_the_pods(nodes: tuple[Node, Node]) -> None:
    two = nodes[1].pod("b")
    server = two.namespace.serve("0.0.0.0", 8080, "b")
    assert nodes[0].namespace.ask(two.address, 8080) == "b"
    assert server.peers == [nodes[0].gateway]
    far = nodes[0].namespace.serve("0.0.0.0", 9090, "node")
    assert two.namespace.ask(nodes[0].gateway, 9090) == "node"
    assert far.peers == [two.address]


def test_only_what_leaves_the_cluster_is_masqueraded(nodes: tuple[Node, Node], lab: Lab, net: Namespace) -> None:
    outside = plug(lab, net, "outside", OUTSIDE_ADDRESS)
    server = outside.serve("0.0.0.0", 80, "outside")
    assert nodes[0].pod("a").namespace.ask(OUTSIDE_ADDRESS, 80) == "outside"
    assert server.peers == [nodes[0].address]


def test_a_large_packet_passes_whole(nodes: tuple[Node, Node]) -> None:
    one, two = nodes[0].pod("a"), nodes[1].pod("b")
    two.namespace.serve("0.0.0.0", 8080, "b")
    with one.namespace.connect(two.address, 8080) as connection:
        stream = connection.makefile("rwb")
        stream.readline()
        stream.write(b"x" * 100_000)
        stream.flush()
        assert stream.read(100_000) == b"x" * 100_000
    assert nodes[0].overlay.mtu == 1450
    assert "mtu 1450" in held(nodes[0])


def test_what_is_right_is_not_written_again(nodes: tuple[Node, Node]) -> None:
    node, other = nodes
    before, index = held(node), node.namespace.run("cat", f"/sys/class/net/{DEVICE}/ifindex")
    assert node.loop.do(node.overlay.apply([other.peer()])) == 0
    assert node.loop.do(node.overlay.repair()) == 0
    again = node.new_overlay()
    node.loop.do(again.start())
    assert node.loop.do(again.apply([other.peer()])) == 0
    node.loop.do(again.close())
    assert held(node) == before
    assert node.namespace.run("cat", f"/sys/class/net/{DEVICE}/ifindex") == index


@pytest.mark.parametrize(
    "deed",
    [
        "ip link del klvx0",
        "ip link set klvx0 down",
        "ip link set klvx0 mtu 1300",
        "ip link set klvx0 address 0e:00:00:00:00:77",
        "ip addr flush dev klvx0",
        "ip route del 10.244.2.0/24",
        "ip route replace 10.244.2.0/24 via 172.30.0.12 dev eth0",
        "ip route add 10.244.77.0/24 via 10.244.2.0 dev klvx0 onlink",
        "ip neigh flush dev klvx0 nud permanent",
        "bridge fdb del {mac} dev klvx0 dst 172.30.0.12",
        "bridge fdb replace {mac} dev klvx0 dst 172.30.0.55",
        "ip link set eth0 down",
    ],
)
def test_what_others_change_is_right_again_within_a_second(nodes: tuple[Node, Node], deed: str) -> None:
    node, other = nodes
    two = other.pod("b")
    two.namespace.serve("0.0.0.0", 8080, "b")
    before = held(node)
    with node.loop.during(node.overlay.watch()):
        node.namespace.run(*deed.format(mac=other.peer().vtep_mac).split())
        if "eth0 down" in deed:
            node.namespace.ip("link set eth0 up")
        assert soon(lambda: held(node) == before) < 1.0
        assert node.namespace.ask(two.address, 8080, timeout=5) == "b"


def test_lost_notifications_lead_to_a_repair(nodes: tuple[Node, Node], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    node, _ = nodes
    before = held(node)
    flood = "\n".join(
        f"route {verb} 10.9.{n // 250}.{n % 250} dev eth0" for n in range(5000) for verb in ("add", "del")
    )

    def unseen() -> None:
        node.namespace.ip(*flood.splitlines())
        # The socket is full by now: of these nobody is told.
        node.namespace.ip("route del 10.244.2.0/24", "neigh flush dev klvx0 nud permanent")

    with node.loop.during(node.overlay.watch()):
        node.loop.blocked(unseen)
        assert soon(lambda: held(node) == before) < 2.0
    assert "notifications were lost" in caplog.text


def test_a_repair_that_failed_is_tried_again(nodes: tuple[Node, Node]) -> None:
    node, _ = nodes
    before = held(node)
    with node.loop.during(node.overlay.watch()):
        node.namespace.ip(f"addr del {node.address}/24 dev eth0")
        node.namespace.ip("link del klvx0")
        with pytest.raises(OverlayError, match="no link has the node's address"):
            node.loop.do(node.overlay.repair())
        node.namespace.ip(f"addr add {node.address}/24 dev eth0")
        soon(lambda: held(node) == before)


@pytest.mark.parametrize("changes", [{"vni": 9}, {"port": 4789}], ids=["vni", "port"])
def test_a_device_that_differs_is_made_anew(nodes: tuple[Node, Node], changes: dict[str, int]) -> None:
    node, other = nodes
    before = held(node)
    foreign = node.new_overlay(**changes)
    node.loop.do(foreign.start())
    node.loop.do(foreign.close())
    assert held(node) != before
    node.loop.do(node.overlay.start())
    assert node.loop.do(node.overlay.apply([other.peer()])) == 3
    assert held(node) == before


def test_a_device_of_another_kind_or_local_address_gives_way(nodes: tuple[Node, Node]) -> None:
    node, _ = nodes
    before = held(node)
    for made in (
        "link add klvx0 type bridge",
        "link add klvx0 type vxlan id 1 dstport 8472 local 172.30.0.200 dev eth0 nolearning",
    ):
        node.namespace.ip("link del klvx0", made)
        assert node.loop.do(node.overlay.repair()) > 0
        assert held(node) == before


def test_peers_come_change_and_go(nodes: tuple[Node, Node]) -> None:
    node, _ = nodes
    assert node.loop.do(node.overlay.apply([peer(1), peer(2), node.peer()])) == 9  # The other node's entries go.
    moved = Peer("p2", peer(2).pod_cidrs, "172.30.0.222", peer(2).vtep_mac)
    assert node.loop.do(node.overlay.apply([peer(1), moved])) == 1
    assert "dst 172.30.0.222" in held(node)
    assert node.loop.do(node.overlay.apply([peer(1)])) == 3
    assert "10.244.102." not in held(node)
    assert node.loop.do(node.overlay.apply([])) == 3
    assert "10.244.101." not in held(node)


def test_a_peer_that_makes_no_sense_is_left_out_alone(nodes: tuple[Node, Node]) -> None:
    node, _ = nodes
    wrong = [
        Peer("a", ("10.244.90.0/24",), "172.30.0.90", ""),
        Peer("b", ("10.244.91.0/24",), "172.30.0.91", "not a mac"),
        Peer("c", ("10.244.92.7/24",), "172.30.0.92", "0e:00:00:00:00:92"),
        Peer("d", ("10.244.93.0/24",), "nowhere", "0e:00:00:00:00:93"),
        Peer("e", (), "172.30.0.94", "0e:00:00:00:00:94"),
    ]
    assert node.loop.do(node.overlay.apply([*wrong, peer(1)])) == 6
    assert "10.244.9" not in held(node)
    assert "10.244.101.0/24" in held(node)


def test_an_address_that_no_link_has_is_an_error_that_names_it(nodes: tuple[Node, Node]) -> None:
    node, _ = nodes
    lost = node.new_overlay(address=IPv4Interface("192.0.2.77/24"))
    with pytest.raises(OverlayError, match=r"node n1: no link has the node's address 192\.0\.2\.77"):
        node.loop.do(lost.start())
    node.loop.do(lost.close())


def test_closing_keeps_pods_connected_and_closing_for_good_leaves_nothing(nodes: tuple[Node, Node]) -> None:
    node, other = nodes
    one, two = node.pod("a"), other.pod("b")
    two.namespace.serve("0.0.0.0", 8080, "b")
    node.loop.do(node.overlay.close())
    assert one.namespace.ask(two.address, 8080) == "b"
    node.loop.do(node.overlay.close(keep=False))
    assert held(node) == ""
    assert "10.244.2" not in node.namespace.run("ip", "route")
