"""What connections and routes outlive: changes, restarts, kills, interference."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from support.waiting import eventually

from kernelet.agents.proxy import ProxyAgent
from kernelet.dataplane.proxy import EngineError, choose
from kernelet.dataplane.routes import Delta, Protocol, RouteTable, ServicePort
from kernelet.ext.libbpf import Link

from ..proxy.topology import NODE_ADDRESS, service
from .offers import ROWS, row
from .proxy import BALANCER, EXTERNAL, NODE_PORT, OTHER_VIP, REFUSED, VIP, VIP6, Proxy, killed, packed, refusal, tally


def hold_connections(proxy: Proxy) -> Callable[[], bool]:
    """Opens connections from everywhere to the service on `VIP`; the result tells whether all of them still work."""
    places = [
        (proxy.site.pod, VIP, 80),
        (proxy.site.node, VIP, 80),
        (proxy.site.web1, VIP, 80),
        (proxy.site.outside, NODE_ADDRESS, NODE_PORT),
        (proxy.site.outside, EXTERNAL, 80),
    ]
    for client, address, port in places:
        client.hold(f"{address}:{port}", address, port)

    def work() -> bool:
        return all(client.echo(f"{address}:{port}", "still here") == "still here" for client, address, port in places)

    assert work()
    return work


@row("a connection outlives changes of its service")
def test_connections_outlive_changes_and_removal_of_their_service(proxy: Proxy) -> None:
    web1, web2, far = proxy.site.pods
    route = service("web", VIP, web1.backend(), node_port=NODE_PORT, external_ips=(EXTERNAL,))
    proxy.route(route)
    work = hold_connections(proxy)
    everyone = tuple(pod.backend() for pod in proxy.site.pods)
    for changed in (
        replace(route, ports=(replace(route.ports[0], backends=everyone),)),
        replace(route, ports=(replace(route.ports[0], backends=everyone[1:]),)),
        replace(route, ports=(replace(route.ports[0], backends=(far.backend(),)),), affinity_seconds=10),
        replace(route, ports=(replace(route.ports[0], backends=()),), external_local=True),
        service("web", OTHER_VIP, web2.backend()),
    ):
        proxy.route(changed)
        assert work()
    proxy.route(removed=("web",))
    assert work()
    assert refusal(proxy.site.pod, VIP) == REFUSED
    proxy.apply(proxy.feed.snapshot())
    assert work()


@row("a connection outlives changes of its service")
def test_no_connection_fails_while_backends_change_all_the_time(proxy: Proxy) -> None:
    web1, web2, far = proxy.site.pods
    sets = ([web1, web2, far], [web2], [far, web1], [web1])
    proxy.route(service("web", VIP, web1.backend(), node_port=NODE_PORT))
    with ThreadPoolExecutor(2) as pool:
        clients = [
            pool.submit(proxy.site.pod.names, VIP, 80, 400),
            pool.submit(proxy.site.outside.names, NODE_ADDRESS, NODE_PORT, 400),
        ]
        for pods in itertools.cycle(sets):
            proxy.route(service("web", VIP, *(pod.backend() for pod in pods), node_port=NODE_PORT))
            if all(client.done() for client in clients):
                break
    for client in clients:
        assert set(client.result()) <= {pod.address for pod in proxy.site.pods}


@row("connections outlive the engine, and new ones are made without it")
def test_traffic_goes_on_while_the_engine_is_restarted(proxy: Proxy) -> None:
    web1, web2, _ = proxy.site.pods
    route = service("web", VIP, web1.backend(), web2.backend(), node_port=NODE_PORT, external_ips=(EXTERNAL,))
    proxy.route(route)
    work = hold_connections(proxy)
    both = {web1.address, web2.address}
    proxy.stop()
    assert work()
    assert tally(proxy.site.pod, VIP).keys() == tally(proxy.site.outside, NODE_ADDRESS, NODE_PORT).keys() == both
    proxy.start()
    assert work(), "before it has any routes"
    assert tally(proxy.site.pod, VIP).keys() == tally(proxy.site.outside, EXTERNAL).keys() == both
    proxy.apply(proxy.feed.snapshot())
    assert work()
    proxy.route(service("web", VIP, web2.backend()))
    assert tally(proxy.site.pod, VIP, times=10).keys() == {web2.address}


@row("connections outlive the engine, and new ones are made without it")
def test_traffic_goes_on_when_the_engines_process_is_killed(proxy: Proxy) -> None:
    web1, *_ = proxy.site.pods
    proxy.stop()
    snapshot = proxy.feed.change(
        service("web", VIP, web1.backend(), node_port=NODE_PORT, external_ips=(EXTERNAL,)),
        service("six", VIP6, web1.backend6(8081)),
    )
    killed(proxy.in_doomed_process(lambda engine: engine.apply(replace(snapshot, base_version=0))))
    work = hold_connections(proxy)
    assert proxy.site.pod.names(VIP6) == [web1.address]
    killed(proxy.in_doomed_process(lambda engine: None))
    assert work(), "killed between start and the first routes"
    assert proxy.site.pod.names(VIP) == proxy.site.outside.names(NODE_ADDRESS, NODE_PORT) == [web1.address]


@row("connections outlive the engine, and new ones are made without it")
def test_clients_stay_with_their_backends_across_a_restart(proxy: Proxy) -> None:
    """That nine clients and services all choose the same of three backends again has a chance of 3 ** -9."""
    backends = [pod.backend() for pod in proxy.site.pods]
    services = {f"s{number}": f"10.96.0.{number}" for number in range(1, 10)}
    for name, address in services.items():
        proxy.route(service(name, address, *backends, affinity_seconds=600))
    first = [proxy.site.pod.names(address) for address in services.values()]
    proxy.stop()
    proxy.start()
    assert [proxy.site.pod.names(address) for address in services.values()] == first
    proxy.apply(proxy.feed.snapshot())
    assert [proxy.site.pod.names(address) for address in services.values()] == first


@row("connections outlive the engine, and new ones are made without it")
def test_what_a_killed_engine_has_left_is_found_by_the_next(proxy: Proxy) -> None:
    web1, web2, _ = proxy.site.pods
    proxy.stop()
    snapshot = replace(
        proxy.feed.change(service("web", VIP, web1.backend()), service("b", OTHER_VIP, web2.backend())), base_version=0
    )
    killed(proxy.in_doomed_process(lambda engine: engine.apply(snapshot)))
    proxy.start()
    vip, other = packed(VIP, OTHER_VIP)
    one, two = web1.backend().address, web2.backend().address
    assert proxy.engine.restore() == {(vip, 6, 80, one, 8080), (other, 6, 80, two, 8080)}
    proxy.feed.change(removed=("b",))
    proxy.apply(proxy.feed.snapshot())
    assert proxy.engine.restore() == {(vip, 6, 80, one, 8080)}
    assert proxy.repair() == 0


@row("after any changes the kernel equals the table")
def test_what_is_read_back_is_what_was_applied(proxy: Proxy) -> None:
    web1, web2, far = proxy.site.pods
    ports = (
        ServicePort("http", Protocol.TCP, 80, NODE_PORT, (web1.backend(), far.backend(), web1.backend6(8081))),
        ServicePort("dns", Protocol.UDP, 53, 0, (web2.backend(),)),
    )
    route = replace(
        service("web", VIP, external_ips=(EXTERNAL,), balancer_ips=packed(BALANCER)),
        cluster_ips=packed(VIP, VIP6),
        ports=ports,
    )
    proxy.route(route, service("none", OTHER_VIP))
    one, two, three, six = (b.address for b in (web1.backend(), web2.backend(), far.backend(), web1.backend6()))
    four = packed(VIP, EXTERNAL, BALANCER)
    expected = {(address, 6, 80, backend, 8080) for address in four for backend in (one, three)}
    expected |= {(address, 17, 53, two, 8080) for address in four}
    expected |= {(packed(VIP6)[0], 6, 80, six, 8081)}
    assert proxy.engine.restore() == expected
    proxy.route(removed=("web", "none"))
    assert proxy.engine.restore() == frozenset()


@row("after any changes the kernel equals the table")
def test_a_delta_that_does_not_continue_is_refused_and_changes_nothing(proxy: Proxy) -> None:
    web1, web2, _ = proxy.site.pods
    proxy.route(service("web", VIP, web1.backend()))
    held, version = proxy.engine.restore(), proxy.feed.version
    other = [service("web", VIP, web2.backend())]
    for delta in (Delta("g", version + 9, version + 8, other), Delta("another", version + 1, version, other)):
        with pytest.raises(EngineError, match="do not continue"):
            proxy.engine.apply(delta)
    assert proxy.engine.restore() == held
    assert proxy.site.pod.names(VIP) == [web1.address]


# --- interference -----------------------------------------------------------------------------------------------------


def flush_everything(proxy: Proxy) -> None:
    proxy.site.topology.node.run("nft", "flush ruleset")


def delete_table(proxy: Proxy) -> None:
    proxy.site.topology.node.run("nft", "delete table ip kernelet")


def flush_rules(proxy: Proxy) -> None:
    proxy.site.topology.node.run("nft", "flush chain ip kernelet prerouting; flush chain ip kernelet output")


def detach_programs(proxy: Proxy) -> None:
    assert proxy.site.config.pins is not None
    for path in (proxy.site.config.pins / "links").iterdir():
        with Link.open(path) as link:
            link.detach()


DAMAGES = [
    (engine, damage)
    for engine, own in (("nftables", ()), ("ebpf", (detach_programs,)), ("userspace", ()))
    for damage in (flush_everything, delete_table, flush_rules, *own)
    if engine not in ROWS["what others change is repaired within a second"]
]


@pytest.mark.parametrize(("proxy", "damage"), DAMAGES, indirect=["proxy"], scope="module")
async def test_what_others_change_is_repaired_within_a_second(proxy: Proxy, damage: Callable[[Proxy], None]) -> None:
    """As a node's agent does it: watching, and repairing in the engine's thread."""
    site = proxy.site
    web1, *_ = site.pods
    proxy.stop()
    agent = ProxyAgent(choose(proxy.name, site.config), site.config)
    route = service("web", VIP, web1.backend(), node_port=NODE_PORT, external_ips=(EXTERNAL,))
    with site.topology.node.entered():
        await agent.start()
    watching = asyncio.create_task(agent.watch())
    try:
        await agent.apply(Delta("g", 1, 0, [route]), RouteTable())
        await asyncio.to_thread(damage, proxy)

        def mended() -> bool:
            places = ((site.pod, VIP, 80), (site.outside, NODE_ADDRESS, NODE_PORT), (site.node, EXTERNAL, 80))
            return all(client.tcp(*place, 1, False, 0.1)[0].get("name") == web1.address for client, *place in places)

        await eventually(mended, 1.0)
    finally:
        watching.cancel()
        await asyncio.wait([watching])
        await agent.close()
