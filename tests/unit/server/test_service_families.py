"""Services with two families, health-check node ports, and what goes when the type changes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from kernelet.core.api.errors import Invalid
from kernelet.core.server.allocators import ALLOCATIONS, key_of
from kernelet.core.server.registry import Registry, RegistryConfig
from kernelet.core.store import Store

from .helpers import Api, service


@pytest.fixture
async def dual(store: Store) -> AsyncIterator[Api]:
    async with Registry(store, RegistryConfig(service_cidr="10.96.0.0/16,fd00:96::/112")) as running:
        yield Api(running)


async def held(store: Store) -> set[str]:
    return {kv.key for kv in (await store.list(ALLOCATIONS)).items}


def placed(obj: dict[str, Any]) -> dict[str, Any]:
    return obj | {"metadata": obj["metadata"] | {"namespace": "default"}}


def families(spec: dict[str, Any]) -> tuple[list[str], str, list[str]]:
    prefixes = ["fd00:96::" if ":" in address else "10.96." for address in spec["clusterIPs"]]
    assert all(address.startswith(prefix) for address, prefix in zip(spec["clusterIPs"], prefixes, strict=True))
    assert spec["clusterIP"] == spec["clusterIPs"][0]
    return spec["ipFamilies"], spec["ipFamilyPolicy"], prefixes


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, (["IPv4"], "SingleStack", ["10.96."])),
        ({"ipFamilies": ["IPv6"]}, (["IPv6"], "SingleStack", ["fd00:96::"])),
        ({"clusterIP": "fd00:96::7"}, (["IPv6"], "SingleStack", ["fd00:96::"])),
        ({"ipFamilyPolicy": "PreferDualStack"}, (["IPv4", "IPv6"], "PreferDualStack", ["10.96.", "fd00:96::"])),
        ({"ipFamilies": ["IPv6", "IPv4"]}, (["IPv6", "IPv4"], "RequireDualStack", ["fd00:96::", "10.96."])),
        (
            {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]},
            (["IPv6", "IPv4"], "RequireDualStack", ["fd00:96::", "10.96."]),
        ),
        (
            {"clusterIP": "10.96.3.3", "clusterIPs": ["10.96.3.3", "fd00:96::3"]},
            (["IPv4", "IPv6"], "RequireDualStack", ["10.96.", "fd00:96::"]),
        ),
    ],
)
async def test_a_service_gets_an_address_of_each_family_it_asks_for(
    dual: Api, store: Store, asked: dict[str, Any], expected: Any
) -> None:
    before = await held(store)
    spec = (await dual.create(service("a", **asked)))["spec"]
    assert families(spec) == expected
    assert await held(store) - before == {key_of("ip", address) for address in spec["clusterIPs"]}
    await dual.delete("svc", "a")
    assert await held(store) == before


async def test_the_second_family_is_gained_and_given_up_by_the_policy_and_the_first_stays(
    dual: Api, store: Store
) -> None:
    first = (await dual.create(service("a")))["spec"]["clusterIP"]
    both = (await dual.patch("svc", "a", {"spec": {"ipFamilyPolicy": "PreferDualStack"}}))["spec"]
    assert both["clusterIPs"][0] == first
    assert families(both)[2] == ["10.96.", "fd00:96::"]
    second = key_of("ip", both["clusterIPs"][1])
    assert second in await held(store)
    again = (await dual.update(placed(service("a", ports=[{"port": 81}]))))["spec"]
    assert again["clusterIPs"] == both["clusterIPs"]
    with pytest.raises(Invalid, match="field is immutable"):
        await dual.patch("svc", "a", {"spec": {"ipFamilies": ["IPv6", "IPv4"]}})
    alone = (await dual.patch("svc", "a", {"spec": {"ipFamilyPolicy": "SingleStack"}}))["spec"]
    assert (alone["clusterIPs"], alone["ipFamilies"]) == ([first], ["IPv4"])
    assert second not in await held(store)


async def test_one_address_written_in_two_ways_is_one(dual: Api) -> None:
    for first, second in (("fd00:96::a", "fd00:0096:0::000a"), ("fd00:0096:0::000a", "fd00:96::a")):
        await dual.create(service("a", clusterIP=first))
        with pytest.raises(Invalid, match="provided IP is already allocated"):
            await dual.create(service("b", clusterIP=second))
        await dual.delete("svc", "a")
    await dual.create(service("b", clusterIP="fd00:96::a"))


async def test_a_cluster_of_one_family_prefers_in_vain_and_refuses_what_requires_two(api: Api, store: Store) -> None:
    before = await held(store)
    spec = (await api.create(service("a", ipFamilyPolicy="PreferDualStack")))["spec"]
    assert families(spec) == (["IPv4"], "PreferDualStack", ["10.96."])
    await api.delete("svc", "a")
    with pytest.raises(Invalid, match="this cluster is not configured for dual-stack services"):
        await api.create(service("a", ipFamilyPolicy="RequireDualStack"))
    with pytest.raises(Invalid, match=r'spec\.ipFamilies\[0\].*"IPv6": not configured on this cluster'):
        await api.create(service("a", ipFamilies=["IPv6"]))
    with pytest.raises(Invalid, match="not configured on this cluster"):
        await api.create(service("a", clusterIP="fd00:96::7"))
    assert await held(store) == before


async def test_a_headless_service_has_families_and_one_without_selector_any(api: Api) -> None:
    spec = (await api.create(service("a", clusterIP="None", selector={"a": "b"})))["spec"]
    assert (spec["clusterIPs"], spec["ipFamilies"], spec["ipFamilyPolicy"]) == (["None"], ["IPv4"], "SingleStack")
    spec = (await api.create(service("b", clusterIP="None")))["spec"]
    assert (spec["ipFamilies"], spec["ipFamilyPolicy"]) == (["IPv4", "IPv6"], "RequireDualStack")


# Load balancers


def balanced(name: str, **spec: Any) -> dict[str, Any]:
    return service(name, type="LoadBalancer", externalTrafficPolicy="Local", **spec)


async def test_a_local_load_balancer_gets_a_health_check_port_and_keeps_it_until_it_needs_none(
    api: Api, store: Store
) -> None:
    made = (await api.create(balanced("a")))["spec"]
    port = made["healthCheckNodePort"]
    assert 30000 <= port <= 32767
    assert port != made["ports"][0]["nodePort"]
    assert key_of("port", str(port)) in await held(store)
    assert (await api.update(placed(balanced("a", ports=[{"port": 81}]))))["spec"]["healthCheckNodePort"] == port
    with pytest.raises(Invalid, match=r"spec\.healthCheckNodePort.*field is immutable"):
        await api.patch("svc", "a", {"spec": {"healthCheckNodePort": port - 1 if port > 30000 else port + 1}})
    spec = (await api.patch("svc", "a", {"spec": {"externalTrafficPolicy": "Cluster"}}))["spec"]
    assert "healthCheckNodePort" not in spec
    assert key_of("port", str(port)) not in await held(store)
    spec = (await api.patch("svc", "a", {"spec": {"externalTrafficPolicy": "Local"}}))["spec"]
    port = spec["healthCheckNodePort"]
    await api.delete("svc", "a")
    assert key_of("port", str(port)) not in await held(store)


async def test_a_health_check_port_may_be_asked_for_where_it_is_free(api: Api, store: Store) -> None:
    assert (await api.create(balanced("a", healthCheckNodePort=30999)))["spec"]["healthCheckNodePort"] == 30999
    before = await held(store)
    with pytest.raises(Invalid, match="provided port is already allocated") as caught:
        await api.create(balanced("b", healthCheckNodePort=30999))
    assert caught.value.causes[0].field == "spec.healthCheckNodePort"
    same = [{"port": 80, "nodePort": 31000}]
    with pytest.raises(Invalid, match="provided port is already allocated"):
        await api.create(balanced("b", healthCheckNodePort=31000, ports=same))
    with pytest.raises(Invalid, match="range of valid ports is 30000-32767"):
        await api.create(balanced("b", healthCheckNodePort=80))
    with pytest.raises(Invalid, match=r"may only be set when `type` is 'LoadBalancer' and"):
        await api.create(service("b", type="NodePort", healthCheckNodePort=31001))
    with pytest.raises(Invalid, match="provided port is already allocated"):
        await api.create(service("b", type="NodePort", ports=[{"port": 80, "nodePort": 30999}]))
    assert await held(store) == before


async def test_a_load_balancer_may_do_without_node_ports_and_those_it_names_are_its_own(api: Api, store: Store) -> None:
    without = {"allocateLoadBalancerNodePorts": False}
    made = (await api.create(service("a", type="LoadBalancer", **without)))["spec"]
    assert "nodePort" not in made["ports"][0]
    await api.create(service("b", type="LoadBalancer", ports=[{"port": 80, "nodePort": 30080}], **without))
    assert key_of("port", "30080") in await held(store)
    with pytest.raises(Invalid, match="provided port is already allocated"):
        await api.create(service("c", type="NodePort", ports=[{"port": 80, "nodePort": 30080}]))


async def test_what_only_a_load_balancer_has_goes_with_its_type(api: Api, store: Store) -> None:
    made = await api.create(balanced("a", loadBalancerClass="example.org/lb"))
    made["status"] = {"loadBalancer": {"ingress": [{"ip": "203.0.113.5"}]}}
    told = await api.update(made, "status")
    assert told["status"]["loadBalancer"]["ingress"] == [{"ip": "203.0.113.5", "ipMode": "VIP"}]
    plain = await api.patch("svc", "a", {"spec": {"type": "ClusterIP"}})
    gone = {"allocateLoadBalancerNodePorts", "loadBalancerClass", "externalTrafficPolicy", "healthCheckNodePort"}
    assert not gone & plain["spec"].keys()
    assert plain["status"]["loadBalancer"] == {}
    assert "nodePort" not in plain["spec"]["ports"][0]
    assert not [key for key in await held(store) if "/port/" in key]
