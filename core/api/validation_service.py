"""Rules of Service."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

from .causes import duplicate, forbidden, immutable, invalid_value, not_supported, required
from .errors import JSON, Cause
from .jsontools import child, children
from .names import dns_label_problem, dns_subdomain_problem, ip_problem, port_number_problem
from .validation_container import check_port_reference
from .validation_kinds import check_not_local
from .validation_labels import check_labels

_TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
_PROTOCOLS = ("SCTP", "TCP", "UDP")
_POLICIES = ("Cluster", "Local")
_AFFINITIES = ("ClientIP", "None")
_FAMILIES = ("IPv4", "IPv6")
_FAMILY_POLICIES = ("SingleStack", "PreferDualStack", "RequireDualStack")
_DISTRIBUTIONS = ("PreferClose", "PreferSameNode", "PreferSameZone")
_IP_MODES = ("Proxy", "VIP")
_MAX_AFFINITY_SECONDS = 86400
_ONLY_BALANCED = "may only be used when `type` is 'LoadBalancer'"


def is_external(spec: JSON) -> bool:
    """Whether clients outside the cluster may come in, so that there is an externalTrafficPolicy."""
    return spec.get("type") in ("NodePort", "LoadBalancer") or (
        spec.get("type") in (None, "", "ClusterIP") and bool(spec.get("externalIPs"))
    )


def needs_health_check(spec: JSON) -> bool:
    """Whether nodes tell load balancers, on healthCheckNodePort, if they have a ready endpoint."""
    return spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"


def check_service(obj: JSON) -> Iterator[Cause]:
    spec = obj["spec"]
    kind = spec["type"]
    if kind not in _TYPES:
        yield not_supported("spec.type", kind, _TYPES)
    headless = spec.get("clusterIP") == "None"
    ports = spec.get("ports") or []
    if not ports and kind != "ExternalName" and not headless:
        yield required("spec.ports")
    yield from _check_ports(ports, kind, headless)
    yield from check_labels("spec.selector", spec.get("selector"))
    yield from _check_addresses(spec, kind, headless)
    yield from _check_families(spec)
    yield from _check_affinity(spec)
    yield from _check_policies(spec)
    yield from _check_balancer(spec, kind)
    yield from _check_ingress(obj)
    if kind == "ExternalName":
        yield from _check_external_name(spec)


def _check_ports(ports: list[JSON], kind: str, headless: bool) -> Iterator[Cause]:
    names: set[str] = set()
    numbers: set[tuple[str, int]] = set()
    node_ports: set[tuple[str, int]] = set()
    for index, port in enumerate(ports):
        path, name = f"spec.ports[{index}]", port.get("name") or ""
        if not name and len(ports) > 1:
            yield required(f"{path}.name")
        elif name and (wrong := dns_label_problem(name)):
            yield invalid_value(f"{path}.name", name, wrong)
        elif name in names:
            yield duplicate(f"{path}.name", name)
        names.add(name)
        if wrong := port_number_problem(port["port"]):
            yield invalid_value(f"{path}.port", port["port"], wrong)
        protocol = port["protocol"]
        if protocol not in _PROTOCOLS:
            yield not_supported(f"{path}.protocol", protocol, _PROTOCOLS)
        if not headless or isinstance(port.get("targetPort"), str):
            yield from check_port_reference(f"{path}.targetPort", port["targetPort"])
        if (protocol, port["port"]) in numbers:
            yield duplicate(path, {"port": port["port"], "protocol": protocol})
        numbers.add((protocol, port["port"]))
        node_port = port.get("nodePort")
        if not node_port:
            continue
        if kind not in ("NodePort", "LoadBalancer"):
            yield forbidden(f"{path}.nodePort", f"may not be used when `type` is '{kind}'")
        if wrong := port_number_problem(node_port):
            yield invalid_value(f"{path}.nodePort", node_port, wrong)
        if (protocol, node_port) in node_ports:
            yield duplicate(f"{path}.nodePort", node_port)
        node_ports.add((protocol, node_port))


def _check_addresses(spec: JSON, kind: str, headless: bool) -> Iterator[Cause]:
    address, addresses = spec.get("clusterIP") or "", spec.get("clusterIPs") or []
    if kind == "ExternalName":
        for field in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            if spec.get(field):
                yield forbidden(f"spec.{field}", "may not be set when `type` is 'ExternalName'")
        return
    if headless and kind in ("NodePort", "LoadBalancer"):
        yield invalid_value("spec.clusterIPs[0]", "None", f"may not be set to 'None' for {kind} services")
    if address and addresses and addresses[0] != address:
        yield invalid_value("spec.clusterIPs", addresses, "first value must match `clusterIP`")
    if len(addresses) > 2:
        yield invalid_value("spec.clusterIPs", addresses, "may only hold up to 2 values")
    if headless and len(addresses) > 1:
        yield invalid_value("spec.clusterIPs", addresses, "may hold only one value when the first is 'None'")
    if not headless:
        yield from _check_cluster_ips(addresses or ([address] if address else []), spec.get("ipFamilies") or [])
    for index, external in enumerate(spec.get("externalIPs") or []):
        path = f"spec.externalIPs[{index}]"
        if wrong := ip_problem(external):
            yield invalid_value(path, external, wrong)
        else:
            yield from check_not_local(path, external)


def _check_cluster_ips(addresses: list[str], families: list[str]) -> Iterator[Cause]:
    seen: list[str] = []
    for index, address in enumerate(addresses):
        if wrong := ip_problem(address):
            yield invalid_value(f"spec.clusterIPs[{index}]", address, wrong)
            return
        seen.append(f"IPv{ipaddress.ip_address(address).version}")
        if index < len(families) and seen[-1] != families[index] and families[index] in _FAMILIES:
            text = f"expected an {families[index]} value as indicated by `ipFamilies[{index}]`"
            yield invalid_value(f"spec.clusterIPs[{index}]", address, text)
    if len(seen) == 2 and seen[0] == seen[1]:
        yield invalid_value("spec.clusterIPs", addresses, "may specify no more than one IP for each IP family")


def _check_families(spec: JSON) -> Iterator[Cause]:
    families, policy = spec.get("ipFamilies") or [], spec.get("ipFamilyPolicy")
    if policy is not None and policy not in _FAMILY_POLICIES:
        yield not_supported("spec.ipFamilyPolicy", policy, _FAMILY_POLICIES)
    for index, family in enumerate(families):
        if family not in _FAMILIES:
            yield not_supported(f"spec.ipFamilies[{index}]", family, _FAMILIES)
        elif family in families[:index]:
            yield duplicate(f"spec.ipFamilies[{index}]", family)
    if len(families) > 2:
        yield invalid_value("spec.ipFamilies", families, "may only hold up to 2 values")
    if policy == "SingleStack":
        for field in ("clusterIPs", "ipFamilies"):
            if len(spec.get(field) or []) == 2:
                text = f"must be RequireDualStack or PreferDualStack when multiple {field} are specified"
                yield invalid_value("spec.ipFamilyPolicy", policy, text)


def _check_affinity(spec: JSON) -> Iterator[Cause]:
    if spec["sessionAffinity"] not in _AFFINITIES:
        yield not_supported("spec.sessionAffinity", spec["sessionAffinity"], _AFFINITIES)
    elif spec["sessionAffinity"] == "ClientIP":
        seconds = child(child(spec, "sessionAffinityConfig"), "clientIP").get("timeoutSeconds", 0)
        if not 0 < seconds <= _MAX_AFFINITY_SECONDS:
            path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
            yield invalid_value(path, seconds, f"must be greater than 0 and less than {_MAX_AFFINITY_SECONDS}")


def _check_policies(spec: JSON) -> Iterator[Cause]:
    external = spec.get("externalTrafficPolicy")
    if external and not is_external(spec):
        yield invalid_value(
            "spec.externalTrafficPolicy", external, "may only be set for externally-accessible services"
        )
    for field, choices in (
        ("externalTrafficPolicy", _POLICIES),
        ("internalTrafficPolicy", _POLICIES),
        ("trafficDistribution", _DISTRIBUTIONS),
    ):
        if spec.get(field) is not None and spec[field] not in choices:
            yield not_supported(f"spec.{field}", spec[field], choices)


def _check_balancer(spec: JSON, kind: str) -> Iterator[Cause]:
    balanced = kind == "LoadBalancer"
    for field in ("allocateLoadBalancerNodePorts", "loadBalancerClass"):
        if spec.get(field) is not None and not balanced:
            yield forbidden(f"spec.{field}", _ONLY_BALANCED)
    ranges = spec.get("loadBalancerSourceRanges") or []
    if ranges and not balanced:
        yield forbidden("spec.loadBalancerSourceRanges", _ONLY_BALANCED)
    for index, text in enumerate(ranges):
        if not _is_range(text):
            text_wrong = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
            yield invalid_value(f"spec.loadBalancerSourceRanges[{index}]", text, text_wrong)
    port = spec.get("healthCheckNodePort")
    if not port:
        return
    if not needs_health_check(spec):
        text = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"
        yield invalid_value("spec.healthCheckNodePort", port, text)
    elif wrong := port_number_problem(port):
        yield invalid_value("spec.healthCheckNodePort", port, wrong)


def _is_range(text: str) -> bool:
    """Blanks around it and bits below the prefix are allowed, as they have always been."""
    try:
        ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        return False
    return "/" in text


def _check_ingress(obj: JSON) -> Iterator[Cause]:
    """What a load balancer's controller wrote into the status."""
    for index, entry in enumerate(children(child(child(obj, "status"), "loadBalancer"), "ingress")):
        path, address, mode = f"status.loadBalancer.ingress[{index}]", entry.get("ip"), entry.get("ipMode")
        if address and (wrong := ip_problem(address)):
            yield invalid_value(f"{path}.ip", address, wrong)
        if mode is not None and not address:
            yield forbidden(f"{path}.ipMode", "may not be specified when `ip` is not set")
        elif mode is not None and mode not in _IP_MODES:
            yield not_supported(f"{path}.ipMode", mode, _IP_MODES)


def _check_external_name(spec: JSON) -> Iterator[Cause]:
    name = (spec.get("externalName") or "").removesuffix(".")
    if not name:
        yield required("spec.externalName")
    elif wrong := dns_subdomain_problem(name):
        yield invalid_value("spec.externalName", spec["externalName"], wrong)


def check_service_update(obj: JSON, old: JSON) -> Iterator[Cause]:
    """What was given out stays: the addresses, but for the second one, which the family policy may give up or gain."""
    new_spec, old_spec = obj["spec"], child(old, "spec")
    if needs_health_check(new_spec) and needs_health_check(old_spec):
        yield from _check_kept("healthCheckNodePort", new_spec, old_spec)
    if new_spec["type"] == old_spec.get("type") == "LoadBalancer":
        yield from _check_kept("loadBalancerClass", new_spec, old_spec)
    if "ExternalName" in (new_spec["type"], old_spec.get("type")):
        return
    before, after = _listed(old_spec), _listed(new_spec)
    for index, (was, now) in enumerate(zip(before, after or [""], strict=False)):
        if was != now:
            yield Cause(f"spec.clusterIPs[{index}]", immutable("", [now]).message)
    families = new_spec.get("ipFamilies") or []
    if families and families[0] != (old_spec.get("ipFamilies") or families)[0]:
        yield Cause("spec.ipFamilies[0]", immutable("", families[0]).message)


def _check_kept(field: str, new: JSON, old: JSON) -> Iterator[Cause]:
    if old.get(field) and new.get(field) != old[field]:
        yield immutable(f"spec.{field}", new.get(field))


def _listed(spec: JSON) -> list[Any]:
    return list(spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else []))
