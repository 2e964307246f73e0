from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernelet.core.api.errors import ApiError, Invalid, NotFound
from kernelet.core.server.allocators import ALLOCATIONS, key_of
from kernelet.core.server.reconcile import EventCleaner
from kernelet.core.server.registry import Registry, RegistryConfig
from kernelet.core.store import Store, open_store

from .helpers import Api, service


def node_port(name: str, number: int = 0, **spec: Any) -> dict[str, Any]:
    port = {"port": 80} | ({"nodePort": number} if number else {})
    return service(name, type="NodePort", ports=[port], **spec)


async def test_a_service_gets_an_address_and_node_ports_by_its_type(api: Api) -> None:
    plain = (await api.create(service("a")))["spec"]
    assert plain["clusterIPs"] == [plain["clusterIP"]] and plain["clusterIP"].startswith("10.96.")
    assert "nodePort" not in plain["ports"][0]
    for kind in ("NodePort", "LoadBalancer"):
        spec = (await api.create(service(kind.lower(), type=kind)))["spec"]
        assert 30000 <= spec["ports"][0]["nodePort"] <= 32767
    assert (await api.create(service("headless", clusterIP="None")))["spec"]["clusterIPs"] == ["None"]
    external = (await api.create(service("ext", type="ExternalName", externalName="example.org", ports=[])))["spec"]
    assert "clusterIP" not in external


async def test_a_requested_address_must_be_free_and_in_range(api: Api) -> None:
    await api.create(service("a", clusterIP="10.96.7.7"))
    with pytest.raises(
        Invalid, match=r"failed to allocate IP 10\.96\.7\.7: provided IP is already allocated"
    ) as caught:
        await api.create(service("b", clusterIP="10.96.7.7"))
    assert caught.value.causes[0].field == "spec.clusterIPs"
    with pytest.raises(Invalid, match=r"The range of valid IPs is 10\.96\.0\.0/16"):
        await api.create(service("b", clusterIP="10.97.0.1"))


async def test_a_requested_node_port_must_be_free_and_a_refusal_holds_nothing(api: Api, store: Store) -> None:
    await api.create(node_port("a", 30080))
    before = {kv.key for kv in (await store.list(ALLOCATIONS)).items}
    with pytest.raises(Invalid, match="provided port is already allocated") as caught:
        await api.create(node_port("b", 30080))
    assert caught.value.causes[0].field == "spec.ports[0].nodePort"
    with pytest.raises(Invalid, match="range of valid ports is 30000-32767"):
        await api.create(node_port("b", 80))
    assert {kv.key for kv in (await store.list(ALLOCATIONS)).items} == before


async def test_one_number_serves_both_protocols_of_a_service(api: Api) -> None:
    ports = [{"name": name, "port": 53, "protocol": name.upper()} for name in ("udp", "tcp")]
    made = await api.create(service("dns", type="NodePort", ports=ports))
    assert len({port["nodePort"] for port in made["spec"]["ports"]}) == 1


async def test_what_is_deleted_or_given_up_can_be_had_again(api: Api) -> None:
    await api.create(node_port("a", 30080, clusterIP="10.96.7.7"))
    await api.patch("svc", "a", {"spec": {"type": "ClusterIP"}})
    assert "nodePort" not in (await api.get("svc", "a"))["spec"]["ports"][0]
    await api.create(node_port("b", 30080))
    await api.delete("svc", "a")
    assert (await api.create(service("c", clusterIP="10.96.7.7")))["spec"]["clusterIP"] == "10.96.7.7"


async def test_an_update_that_leaves_out_what_was_given_keeps_it(api: Api) -> None:
    made = await api.create(node_port("a"))
    again = node_port("a") | {"metadata": {"name": "a", "namespace": "default", "labels": {"x": "y"}}}
    kept = await api.update(again)
    assert kept["spec"]["clusterIP"] == made["spec"]["clusterIP"]
    assert kept["spec"]["ports"] == made["spec"]["ports"]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["create", "delete", "type"]), st.integers(0, 11)), min_size=20, max_size=60))
def test_two_servers_on_one_store_never_share_an_address_or_port(steps: list[tuple[str, int]]) -> None:
    asyncio.run(_compete(steps))


async def _compete(steps: list[tuple[str, int]]) -> None:
    """Ranges of 14 addresses and 6 ports, so that clashes are the rule."""
    config = RegistryConfig(service_cidr="10.96.0.0/28", node_ports=(30000, 30005))
    with tempfile.TemporaryDirectory() as folder:
        store = await open_store(f"sqlite://{folder}/store.db")
        async with Registry(store, config) as first, Registry(store, config) as second:
            apis = [Api(first), Api(second)]
            work = (_step(apis[index % 2], what, number) for index, (what, number) in enumerate(steps))
            await asyncio.gather(*work)
            specs = [(await apis[0].get("svc", name))["spec"] for name in await apis[0].names("svc")]
            addresses = Counter(spec["clusterIP"] for spec in specs)
            ports = Counter(port["nodePort"] for spec in specs for port in spec["ports"] if port.get("nodePort"))
            held = {kv.key for kv in (await store.list(ALLOCATIONS)).items}
            wanted = {key_of("ip", ip) for ip in addresses} | {key_of("port", str(port)) for port in ports}
            assert all(count == 1 for count in [*addresses.values(), *ports.values()])
            assert held == wanted | {key_of("ip", "10.96.0.10")}
        await store.close()


async def _step(api: Api, what: str, number: int) -> None:
    name = f"s{number}"
    try:
        if what == "create":
            await api.create(node_port(name) if number % 2 else service(name))
        elif what == "delete":
            await api.delete("svc", name)
        else:
            current = (await api.get("svc", name))["spec"]["type"]
            await api.patch("svc", name, {"spec": {"type": "ClusterIP" if current == "NodePort" else "NodePort"}})
    except ApiError as error:
        assert error.code in (404, 409) or "the range is full" in str(error), error


async def test_a_leaked_allocation_returns_and_a_missing_one_is_restored(store: Store) -> None:
    async with Registry(store, RegistryConfig(repair_seconds=0.02)) as registry:
        api = Api(registry)
        made = await api.create(node_port("a", 30080))
        mine = key_of("port", "30080")
        kv = await store.get(mine)
        assert kv is not None
        await store.delete(mine, 0)
        leaked = key_of("ip", "10.96.9.9")
        await store.create(leaked, kv.value)
        waiting = {leaked, mine}
        async with asyncio.timeout(5), aclosing(store.watch(ALLOCATIONS, kv.mod_revision + 2)) as batches:
            while waiting:
                waiting -= {
                    event.kv.key
                    for event in (await anext(batches)).events
                    if event.kv.key != mine or event.previous is None
                }
        with pytest.raises(Invalid, match="already allocated"):
            await api.create(node_port("b", 30080))
        assert made["spec"]["clusterIP"] == (await api.get("svc", "a"))["spec"]["clusterIP"]


async def test_events_go_after_their_time_to_live(api: Api, registry: Registry, store: Store) -> None:
    for name, stamp in (("old", "2020-01-01T00:00:00Z"), ("new", "2999-01-01T00:00:00Z")):
        event = {"kind": "Event", "apiVersion": "v1", "metadata": {"name": name}, "lastTimestamp": stamp}
        event["involvedObject"] = {"kind": "Pod", "namespace": "default", "name": "a"}
        await api.create(event)
    await api.names("ev")
    await EventCleaner(store, registry.feed, ttl_seconds=0.0).run()
    assert await api.names("ev") == ["new"]
    with pytest.raises(NotFound):
        await api.get("ev", "old")
