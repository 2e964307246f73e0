"""The zone's answers, by the Kubernetes DNS specification 1.1.0."""

from __future__ import annotations

import pytest
from dnslib import QTYPE, RCODE, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from kernelet.agents.dns.answers import Answerer
from kernelet.agents.dns.records import Zone

from .dns_objects import ask, denial, endpoint, headless, reply, service, slice_of


@pytest.fixture
def zone() -> Zone:
    made = Zone()
    made.set_service("shop/web", service())
    return made


def test_a_service_has_its_cluster_address_its_ports_and_a_name_for_its_address(zone: Zone) -> None:
    assert ask(zone, "web.shop.svc.cluster.local") == ["10.96.0.7"]
    assert ask(zone, "_http._tcp.web.shop.svc.cluster.local", "SRV") == ["0 100 80 web.shop.svc.cluster.local."]
    assert ask(zone, "7.0.96.10.in-addr.arpa", "PTR") == ["web.shop.svc.cluster.local."]


def test_a_service_of_two_families_has_both_addresses() -> None:
    zone = Zone()
    zone.set_service("shop/web", service(clusterIPs=["10.96.0.7", "fd00::7"]))
    assert ask(zone, "web.shop.svc.cluster.local", "AAAA") == ["fd00::7"]
    reverse = "7.0.0.0." + "0.0.0.0." * 6 + "0.0.d.f.ip6.arpa"
    assert ask(zone, reverse, "PTR") == ["web.shop.svc.cluster.local."]


def test_the_answer_repeats_the_name_as_it_was_asked(zone: Zone) -> None:
    found = reply(zone, "WEB.Shop.svc.CLUSTER.local")
    assert [str(rr.rname) for rr in found.rr] == ["WEB.Shop.svc.CLUSTER.local."]
    assert found.header.aa


def test_an_unknown_name_does_not_exist_and_a_known_one_may_lack_the_type(zone: Zone) -> None:
    assert denial(zone, "other.shop.svc.cluster.local") == "NXDOMAIN"
    assert denial(zone, "a.web.shop.svc.cluster.local") == "NXDOMAIN"
    assert denial(zone, "web.shop.svc.cluster.local", "AAAA") == "NODATA"
    assert denial(zone, "web.shop.svc.cluster.local", "MX") == "NODATA"


@pytest.mark.parametrize("name", ["_tcp.web.shop.svc", "shop.svc", "svc", "pod", ""])
def test_what_longer_names_end_in_exists(zone: Zone, name: str) -> None:
    assert denial(zone, f"{name}.cluster.local".lstrip(".")) == "NODATA"


def test_nothing_is_left_of_a_deleted_service(zone: Zone) -> None:
    zone.set_slice("shop/web", "web-1", slice_of(endpoint("10.244.1.2")))
    zone.set_service("shop/web", None)
    zone.set_slice("shop/web", "web-1", None)
    assert denial(zone, "web.shop.svc.cluster.local") == "NXDOMAIN"
    assert denial(zone, "shop.svc.cluster.local") == "NXDOMAIN"
    assert not any((zone._services, zone._slices, zone._of_service, zone._names, zone._parents))


def test_names_of_others_are_forwarded(zone: Zone) -> None:
    answerer = Answerer(zone)
    for name in ("example.org", "cluster.local.example.org", "notcluster.local", "1.2.3.4.in-addr.arpa"):
        assert answerer.answer(DNSRecord.question(name)) is None


def test_a_headless_service_has_the_addresses_of_its_ready_endpoints() -> None:
    zone = headless(endpoint("10.244.1.2"), endpoint("10.244.1.3"), endpoint("10.244.1.4", ready=False))
    assert ask(zone, "web.shop.svc.cluster.local") == ["10.244.1.2", "10.244.1.3"]
    assert ask(zone, "10-244-1-2.web.shop.svc.cluster.local") == ["10.244.1.2"]
    assert denial(zone, "10-244-1-4.web.shop.svc.cluster.local") == "NXDOMAIN"


def test_a_headless_service_of_two_families_has_addresses_and_names_of_both() -> None:
    zone = headless(endpoint("10.244.1.2", "db-0"))
    zone.set_slice("shop/web", "web-2", slice_of(endpoint("fd00::2", "db-0"), name="web-2", kind="IPv6"))
    for name in ("web.shop.svc.cluster.local", "db-0.web.shop.svc.cluster.local"):
        assert ask(zone, name) == ["10.244.1.2"]
        assert ask(zone, name, "AAAA") == ["fd00::2"]
    found = reply(zone, "_http._tcp.web.shop.svc.cluster.local", "SRV")
    assert [str(rr.rdata) for rr in found.rr] == ["0 100 8080 db-0.web.shop.svc.cluster.local."]
    assert sorted(str(rr.rdata) for rr in found.ar) == ["10.244.1.2", "fd00::2"]


def test_publish_not_ready_addresses_makes_readiness_irrelevant() -> None:
    zone = headless(endpoint("10.244.1.4", ready=False), publishNotReadyAddresses=True)
    assert ask(zone, "web.shop.svc.cluster.local") == ["10.244.1.4"]


def test_a_headless_service_without_endpoints_exists() -> None:
    assert denial(headless(), "web.shop.svc.cluster.local") == "NODATA"


def test_endpoints_with_host_names_are_called_by_them() -> None:
    zone = headless(endpoint("10.244.1.2", "db-0"), endpoint("10.244.1.3", "db-1"))
    assert ask(zone, "db-0.web.shop.svc.cluster.local") == ["10.244.1.2"]
    assert ask(zone, "3.1.244.10.in-addr.arpa", "PTR") == ["db-1.web.shop.svc.cluster.local."]
    found = reply(zone, "_http._tcp.web.shop.svc.cluster.local", "SRV")
    assert sorted(str(rr.rdata) for rr in found.rr) == [
        "0 50 8080 db-0.web.shop.svc.cluster.local.",
        "0 50 8080 db-1.web.shop.svc.cluster.local.",
    ]
    assert sorted(str(rr.rdata) for rr in found.ar) == ["10.244.1.2", "10.244.1.3"]


def test_an_endpoint_in_two_slices_is_named_once() -> None:
    zone = headless(endpoint("10.244.1.2", "db-0"))
    zone.set_slice("shop/web", "web-2", slice_of(endpoint("10.244.1.2", "db-0"), name="web-2"))
    assert ask(zone, "web.shop.svc.cluster.local") == ["10.244.1.2"]
    assert len(ask(zone, "_http._tcp.web.shop.svc.cluster.local", "SRV")) == 1
    zone.set_slice("shop/web", "web-1", None)
    assert ask(zone, "db-0.web.shop.svc.cluster.local") == ["10.244.1.2"]


def test_slices_may_come_before_their_service() -> None:
    zone = Zone()
    zone.set_slice("shop/web", "web-1", slice_of(endpoint("10.244.1.2")))
    assert denial(zone, "web.shop.svc.cluster.local") == "NXDOMAIN"
    zone.set_service("shop/web", service("None"))
    assert ask(zone, "web.shop.svc.cluster.local") == ["10.244.1.2"]


def test_what_is_no_address_is_left_out_and_nothing_else() -> None:
    zone = headless(endpoint("example.org"), endpoint("10.244.1.2"))
    assert ask(zone, "web.shop.svc.cluster.local") == ["10.244.1.2"]
    zone.set_service("shop/bad", service("10.96.0.999"))
    assert denial(zone, "bad.shop.svc.cluster.local") == "NODATA"


def test_an_address_that_two_services_name_points_to_both() -> None:
    zone = headless(endpoint("10.244.1.2", "db-0"))
    zone.set_service("shop/all", service("None"))
    zone.set_slice("shop/all", "all-1", slice_of(endpoint("10.244.1.2", "db-0"), name="all-1"))
    both = ["db-0.all.shop.svc.cluster.local.", "db-0.web.shop.svc.cluster.local."]
    assert ask(zone, "2.1.244.10.in-addr.arpa", "PTR") == both
    zone.set_service("shop/all", None)
    assert ask(zone, "2.1.244.10.in-addr.arpa", "PTR") == both[1:]


@pytest.mark.parametrize(
    ("label", "kind", "address"),
    [("10-244-1-7", "A", "10.244.1.7"), ("fd00--1", "AAAA", "fd00::1"), ("fe80--1-2", "AAAA", "fe80::1:2")],
)
def test_a_pods_name_is_its_address(zone: Zone, label: str, kind: str, address: str) -> None:
    assert ask(zone, f"{label}.shop.pod.cluster.local", kind) == [address]
    assert denial(zone, "nonsense.shop.pod.cluster.local") == "NXDOMAIN"


def test_an_external_name_is_an_alias_to_be_followed_outside() -> None:
    zone = Zone()
    zone.set_service("shop/web", service("", type="ExternalName", externalName="db.example.org."))
    found = Answerer(zone).answer(DNSRecord.question("web.shop.svc.cluster.local"))
    assert found is not None
    assert (found.alias, str(found.reply.rr[0].rdata)) == ("db.example.org", "db.example.org.")
    found = Answerer(zone).answer(DNSRecord.question("web.shop.svc.cluster.local", "CNAME"))
    assert found is not None
    assert found.alias == ""


def test_an_external_name_inside_the_cluster_is_followed_here(zone: Zone) -> None:
    zone.set_service("shop/alias", service("", type="ExternalName", externalName="web.shop.svc.cluster.local"))
    found = reply(zone, "alias.shop.svc.cluster.local")
    assert [(QTYPE[rr.rtype], str(rr.rdata)) for rr in found.rr] == [
        ("CNAME", "web.shop.svc.cluster.local."),
        ("A", "10.96.0.7"),
    ]


def test_aliases_that_lead_in_a_circle_end() -> None:
    zone = Zone()
    for name, target in (("a", "b"), ("b", "a")):
        zone.set_service(
            f"shop/{name}", service("", type="ExternalName", externalName=f"{target}.shop.svc.cluster.local")
        )
    assert RCODE[reply(zone, "a.shop.svc.cluster.local").header.rcode] == "SERVFAIL"


def test_another_class_than_the_internets_is_refused(zone: Zone) -> None:
    query = DNSRecord.question("web.shop.svc.cluster.local")
    query.questions[0].qclass = 3
    found = Answerer(zone).answer(query)
    assert found is not None
    assert RCODE[found.reply.header.rcode] == "REFUSED"


def test_the_version_of_the_specification_is_told(zone: Zone) -> None:
    assert ask(zone, "dns-version.cluster.local", "TXT") == ['"1.1.0"']


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a/x", "a/y", "b/x"]),
            st.sampled_from(["None", "10.96.0.1", "10.96.0.2", "gone"]),
            st.lists(st.integers(2, 5), max_size=3),
        ),
        max_size=20,
    )
)
def test_the_zone_depends_on_what_there_is_and_not_on_how_it_came(steps: list[tuple[str, str, list[int]]]) -> None:
    zone, now = Zone(), {}
    for key, address, numbers in steps:
        state = (
            None if address == "gone" else service(address),
            slice_of(*(endpoint(f"10.244.1.{n}", f"h{n}") for n in numbers)) if numbers else None,
        )
        now[key] = state
        zone.set_slice(key, "s", state[1])
        zone.set_service(key, state[0])
    fresh = Zone()
    for key, (known, known_slice) in sorted(now.items()):
        fresh.set_service(key, known)
        fresh.set_slice(key, "s", known_slice)
    assert zone._names == fresh._names
    assert zone._parents == fresh._parents
