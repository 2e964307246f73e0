"""Services and slices in few words, and asking a zone."""

from __future__ import annotations

from typing import Any

from dnslib import QTYPE, RCODE, DNSRecord
from lightkube.models.core_v1 import Service, ServicePort, ServiceSpec
from lightkube.models.discovery_v1 import Endpoint, EndpointConditions, EndpointPort, EndpointSlice
from lightkube.models.meta_v1 import ObjectMeta

from kernelet.agents.dns.answers import Answerer
from kernelet.agents.dns.records import Zone


def service(address: str = "10.96.0.7", **spec: Any) -> Service:
    ports = [ServicePort(port=80, name="http", protocol="TCP"), ServicePort(port=53, protocol="UDP")]
    fields = {"clusterIP": address, "clusterIPs": [address], "ports": ports}
    return Service(metadata=ObjectMeta(name="web", namespace="shop"), spec=ServiceSpec(**(fields | spec)))


def endpoint(address: str, hostname: str | None = None, *, ready: bool = True) -> Endpoint:
    return Endpoint(addresses=[address], hostname=hostname, conditions=EndpointConditions(ready=ready))


def slice_of(*endpoints: Endpoint, name: str = "web-1", kind: str = "IPv4") -> EndpointSlice:
    ports = [EndpointPort(name="http", port=8080, protocol="TCP")]
    return EndpointSlice(
        addressType=kind, endpoints=list(endpoints), ports=ports, metadata=ObjectMeta(name=name, namespace="shop")
    )


def headless(*endpoints: Endpoint, **spec: Any) -> Zone:
    """A zone with the headless service shop/web."""
    zone = Zone()
    zone.set_service("shop/web", service("None", **spec))
    zone.set_slice("shop/web", "web-1", slice_of(*endpoints))
    return zone


def reply(zone: Zone, name: str, kind: str = "A") -> DNSRecord:
    found = Answerer(zone).answer(DNSRecord.question(name, kind))
    assert found is not None, f"{name} would be forwarded"
    return DNSRecord.parse(found.reply.pack())


def ask(zone: Zone, name: str, kind: str = "A") -> list[str]:
    """The data of all answers of that kind, sorted."""
    found = reply(zone, name, kind)
    assert RCODE[found.header.rcode] == "NOERROR"
    return sorted(str(rr.rdata) for rr in found.rr if QTYPE[rr.rtype] == kind)


def denial(zone: Zone, name: str, kind: str = "A") -> str:
    """NXDOMAIN or NODATA; either carries the zone's SOA."""
    found = reply(zone, name, kind)
    assert not found.rr
    assert [QTYPE[rr.rtype] for rr in found.auth] == ["SOA"]
    return {"NXDOMAIN": "NXDOMAIN", "NOERROR": "NODATA"}[RCODE[found.header.rcode]]
