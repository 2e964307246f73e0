"""What is traced, from the objects of the API, and why some cannot be."""

from __future__ import annotations

import os
import re
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest
from lightkube.models.core_v1 import Node, NodeAddress, NodeSpec, NodeStatus, Service, ServicePort, ServiceSpec
from lightkube.models.discovery_v1 import Endpoint as SliceEndpoint
from lightkube.models.discovery_v1 import EndpointPort, EndpointSlice
from lightkube.models.meta_v1 import ObjectMeta

from kernelet.agents.trace import collect
from kernelet.agents.trace.btf import Btf
from kernelet.agents.trace.collect import Collector
from kernelet.agents.trace.discover import places_of, subject_of
from kernelet.agents.trace.errors import TraceError
from kernelet.agents.trace.subject import Endpoint

ELSEWHERE = "192.0.2.77"


def end(address: str, port: int, protocol: int = 6) -> Endpoint:
    return Endpoint(ip_address(address).packed, port, protocol)


def service(**fields: object) -> Service:
    ports = [ServicePort(port=80, name="http"), ServicePort(port=53, name="dns", protocol="UDP")]
    spec = ServiceSpec(**({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": ports} | fields))
    return Service(metadata=ObjectMeta(name="web", namespace="shop"), spec=spec)


def endpoint_slice(*addresses: str, kind: str = "IPv4") -> EndpointSlice:
    ports = [EndpointPort(port=8080, name="http", protocol="TCP"), EndpointPort(port=5353, name="dns", protocol="UDP")]
    return EndpointSlice(addressType=kind, endpoints=[SliceEndpoint(addresses=[a]) for a in addresses], ports=ports)


def node(name: str, address: str) -> Node:
    status = NodeStatus(addresses=[NodeAddress(address=address, type="InternalIP")])
    return Node(metadata=ObjectMeta(name=name), spec=NodeSpec(podCIDR="10.244.7.0/24"), status=status)


def test_every_backend_leads_back_to_the_services_port() -> None:
    found = subject_of(service(externalIPs=["198.51.100.1"]), [endpoint_slice("10.244.0.3", "10.244.1.3")])
    assert found.name == "shop/web"
    assert found.backends == {
        end("10.244.0.3", 8080): end("10.96.0.1", 80),
        end("10.244.1.3", 8080): end("10.96.0.1", 80),
        end("10.244.0.3", 5353, 17): end("10.96.0.1", 53, 17),
        end("10.244.1.3", 5353, 17): end("10.96.0.1", 53, 17),
    }
    assert end("198.51.100.1", 80) in found.frontends
    assert found.watched == found.frontends | set(found.backends)


def test_each_family_leads_to_the_services_address_of_that_family() -> None:
    both = service(clusterIPs=["10.96.0.1", "fd00:96::1"])
    found = subject_of(both, [endpoint_slice("10.244.0.3"), endpoint_slice("fd00:244::3", kind="IPv6")])
    assert found.backends[end("fd00:244::3", 8080)] == end("fd00:96::1", 80)
    assert found.backends[end("10.244.0.3", 8080)] == end("10.96.0.1", 80)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"clusterIP": "None", "clusterIPs": ["None"]}, "shop/web is headless"),
        ({"type": "ExternalName", "externalName": "db.example", "clusterIPs": None}, "a DNS alias of db.example"),
        ({"clusterIP": None, "clusterIPs": None}, "shop/web has no cluster IP yet"),
    ],
)
def test_a_service_without_a_virtual_address_is_refused_with_the_reason(fields: dict[str, object], words: str) -> None:
    with pytest.raises(TraceError, match=re.escape(words)):
        subject_of(service(**fields), [])


def test_nodes_that_are_namespaces_of_this_machine_are_found(tmp_path: Path) -> None:
    (tmp_path / "kl-blue-node-1").touch()
    nodes = [node("node-1", ELSEWHERE), node("node-2", ELSEWHERE)]
    [place] = places_of(nodes, "blue", root=tmp_path)
    assert (place.node, place.netns) == ("node-1", tmp_path / "kl-blue-node-1")
    assert place.has(ip_address("10.244.7.9").packed)
    assert place.has(ip_address(ELSEWHERE).packed)
    assert not place.has(ip_address("10.244.8.9").packed)


def test_the_host_itself_is_a_node_when_it_has_the_nodes_address(tmp_path: Path) -> None:
    [place] = places_of([node("host", "127.0.0.1"), node("far", ELSEWHERE)], "blue", root=tmp_path)
    assert (place.node, place.netns) == ("host", Path("/proc/self/ns/net"))


def test_a_node_elsewhere_and_one_that_does_not_exist_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="node far is not on this machine"):
        places_of([node("far", ELSEWHERE)], "blue", "far", root=tmp_path)
    with pytest.raises(TraceError, match="no node is called nowhere; there are: far"):
        places_of([node("far", ELSEWHERE)], "blue", "nowhere", root=tmp_path)
    with pytest.raises(TraceError, match="none of the cluster's nodes"):
        places_of([node("far", ELSEWHERE)], "blue", root=tmp_path)


def test_without_root_the_command_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(TraceError, match="needs root"):
        Collector()


def test_without_bcc_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bcc", None)
    with pytest.raises(TraceError, match="python3-bpfcc"):
        collect._bcc()


def test_a_kernel_without_types_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="CONFIG_DEBUG_INFO_BTF"):
        Btf(tmp_path / "vmlinux")
