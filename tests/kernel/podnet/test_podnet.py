"""The pod network of one node, in real namespaces."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from support.netns import Lab, Namespace
from support.nodes import OUTSIDE_ADDRESS, Node, Pod, plug, soon, switch

from kernelet.dataplane.podnet import PodNetworkError
from kernelet.dataplane.podnet.network import link_name


@pytest.fixture
def own_lab() -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("needs root to make network namespaces")
    with Lab() as made:
        yield made


@pytest.fixture
def net(own_lab: Lab) -> Namespace:
    return switch(own_lab)


@pytest.fixture
def node(own_lab: Lab, net: Namespace) -> Iterator[Node]:
    made = Node(own_lab, net, 1)
    made.loop.do(made.podnet.start())
    yield made
    made.loop.do(made.podnet.close(keep=False))


def links(node: Node) -> list[str]:
    listed = node.namespace.run("ip", "-o", "link", "show").splitlines()
    return [name for line in listed if (name := line.split(": ")[1].partition("@")[0]).startswith("kl")]


def test_pods_of_a_node_reach_each_other_with_their_own_addresses(node: Node) -> None:
    one, two = node.pod("one"), node.pod("two")
    server = two.namespace.serve("0.0.0.0", 8080, "two")
    assert one.namespace.ask(two.address, 8080) == "two"
    assert server.peers == [one.address]


def test_a_pod_reaches_its_node_and_the_node_the_pod(node: Node) -> None:
    pod = node.pod("one")
    on_node = node.namespace.serve("0.0.0.0", 9090, "node")
    assert pod.namespace.ask(node.gateway, 9090) == "node"
    assert pod.namespace.ask(node.address, 9090) == "node"
    assert on_node.peers == [pod.address, pod.address]
    in_pod = pod.namespace.serve("0.0.0.0", 8080, "pod")
    assert node.namespace.ask(pod.address, 8080) == "pod"
    assert in_pod.peers == [node.gateway]


def test_what_leaves_the_cluster_wears_the_nodes_address(node: Node, own_lab: Lab, net: Namespace) -> None:
    outside = plug(own_lab, net, "outside", OUTSIDE_ADDRESS)
    server = outside.serve("0.0.0.0", 80, "outside")
    assert node.pod("one").namespace.ask(OUTSIDE_ADDRESS, 80) == "outside"
    assert server.peers == [node.address]


def test_pods_get_the_mtu_on_both_ends(node: Node) -> None:
    small = node.new_podnet(mtu=1300)
    node.loop.do(small.start())
    pod = Pod(node.lab, "small")
    node.loop.do(small.attach(pod.id, pod.pid))
    node.loop.do(small.close())
    assert "mtu 1300" in pod.namespace.run("ip", "link", "show", "eth0")
    assert "mtu 1300" in node.namespace.run("ip", "link", "show", link_name("small"))


def test_attaching_again_changes_nothing_and_gives_the_same_address(node: Node) -> None:
    pod = node.pod("one")
    before = node.namespace.run("ip", "-d", "link", "show")
    assert node.loop.do(node.podnet.attach("one", pod.pid)).addresses == (pod.address,)
    assert node.namespace.run("ip", "-d", "link", "show") == before


def test_a_new_sandbox_of_the_same_pod_is_wired(node: Node) -> None:
    first = node.pod("one")
    second = Pod(node.lab, "again")
    address = node.loop.do(node.podnet.attach("one", second.pid)).addresses[0]
    assert address != first.address
    second.namespace.serve("0.0.0.0", 8080, "second")
    assert node.namespace.ask(address, 8080) == "second"
    assert links(node) == [link_name("one")]


def test_a_restarted_agent_knows_every_pod_and_hands_no_address_out_twice(node: Node) -> None:
    one, two = node.pod("one"), node.pod("two")
    node.loop.do(node.podnet.close())
    node.podnet = node.new_podnet()
    node.loop.do(node.podnet.start())
    assert node.podnet.status() == {link_name("one"): one.address, link_name("two"): two.address}
    assert node.loop.do(node.podnet.attach("one", one.pid)).addresses == (one.address,)
    assert node.pod("three").address not in (one.address, two.address)


def test_reconcile_releases_what_belongs_to_no_pod(node: Node) -> None:
    node.pod("one")
    two = node.pod("two")
    node.loop.do(node.podnet.reconcile(["two"]))
    assert links(node) == [link_name("two")]
    assert node.podnet.status() == {link_name("two"): two.address}


def test_a_pod_whose_process_died_is_detached_without_error_and_cannot_be_attached(node: Node) -> None:
    pod = node.pod("one")
    pod.kill()
    soon(lambda: links(node) == [])
    with pytest.raises(PodNetworkError, match="No such file"):
        node.loop.do(node.podnet.attach("one", pod.pid))
    node.loop.do(node.podnet.detach("one"))
    node.loop.do(node.podnet.detach("one"))
    assert node.podnet.status() == {}


def test_a_process_in_the_nodes_own_namespace_is_refused(node: Node) -> None:
    with node.namespace.entered():
        inside = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
    try:
        with pytest.raises(PodNetworkError, match="shares this node's own network namespace"):
            node.loop.do(node.podnet.attach("one", inside))
    finally:
        os.kill(inside, 9)
        os.waitpid(inside, 0)
    assert links(node) == []


def test_a_failed_attachment_leaves_no_link_and_no_address_taken(node: Node) -> None:
    pod = Pod(node.lab, "one")
    pod.namespace.ip("link add eth0 type bridge")  # The name that the pod's link needs.
    with pytest.raises(PodNetworkError, match="pod one"):
        node.loop.do(node.podnet.attach("one", pod.pid))
    assert links(node) == []
    pod.namespace.ip("link del eth0")
    assert node.loop.do(node.podnet.attach("one", pod.pid)).addresses


@pytest.mark.parametrize(
    "deed",
    [
        ["nft", "flush", "ruleset"],
        ["ip", "addr", "del", "10.244.1.1/32", "dev", "lo"],
        ["ip", "route", "del", "10.244.1.2/32"],
        ["ip", "neigh", "del", "10.244.1.2", "dev", link_name("one")],
    ],
    ids=lambda deed: " ".join(deed[:3]),
)
def test_what_others_remove_is_back_within_a_second(node: Node, deed: list[str]) -> None:
    pod = node.pod("one")
    assert pod.address == "10.244.1.2"

    def state() -> tuple[str, ...]:
        shown = (["nft", "list", "ruleset"], ["ip", "addr", "show", "lo"], ["ip", "route"], ["ip", "neigh", "show"])
        lines = [sorted(line.strip() for line in node.namespace.run(*words).splitlines()) for words in shown]
        return tuple("\n".join(each) for each in lines)

    before = state()
    with node.loop.during(node.podnet.watch()):
        node.namespace.run(*deed)
        assert soon(lambda: state() == before) < 1.0
    assert state() == before


def test_closing_for_good_leaves_nothing(node: Node) -> None:
    node.pod("one")
    node.loop.do(node.podnet.close(keep=False))
    assert links(node) == []
    assert "kernelet" not in node.namespace.run("nft", "list", "tables")
    assert node.gateway not in node.namespace.run("ip", "addr")
    assert "10.244." not in node.namespace.run("ip", "route")
    node.loop.do(node.podnet.close(keep=False))  # A second time finds nothing, and is no error.


def test_closing_keeps_the_pods_connected(node: Node) -> None:
    one, two = node.pod("one"), node.pod("two")
    two.namespace.serve("0.0.0.0", 8080, "two")
    node.loop.do(node.podnet.close())
    assert one.namespace.ask(two.address, 8080) == "two"
