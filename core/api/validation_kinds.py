"""Rules of Endpoints, EndpointSlice, ConfigMap, Secret, Namespace, Node, Event and Lease."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

from .causes import duplicate, forbidden, immutable, invalid_value, not_supported, required, too_long, type_invalid
from .defaulting import decode_secret_value
from .errors import JSON, Cause
from .jsontools import child
from .names import (
    config_key_problem,
    dns_label_problem,
    dns_subdomain_problem,
    ip_problem,
    label_value_problem,
    port_number_problem,
    qualified_name_problem,
)  # fmt: skip
from .validation_labels import quantity

_PROTOCOLS = ("SCTP", "TCP", "UDP")
_ADDRESS_TYPES = ("FQDN", "IPv4", "IPv6")
_TAINT_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_MAX_DATA = 1024 * 1024
_MAX_ENDPOINTS, _MAX_PORTS, _MAX_HINTS = 1000, 20000, 8


def check_not_local(path: str, address: str) -> Iterator[Cause]:
    """Traffic may not be led to addresses that mean another machine on each machine."""
    ip = ipaddress.ip_address(address)
    if ip.is_unspecified:
        yield invalid_value(path, address, f"may not be unspecified ({address})")
    if ip.is_loopback:
        yield invalid_value(path, address, "may not be in the loopback range (127.0.0.0/8, ::1/128)")
    if ip.is_link_local:
        yield invalid_value(path, address, "may not be in the link-local range (169.254.0.0/16, fe80::/10)")
    if ip.is_multicast:
        yield invalid_value(path, address, "may not be in the multicast range (224.0.0.0/4, ff00::/10)")


def check_endpoints(obj: JSON) -> Iterator[Cause]:
    for number, subset in enumerate(obj.get("subsets") or []):
        for field in ("addresses", "notReadyAddresses"):
            for index, address in enumerate(subset.get(field) or []):
                path = f"subsets[{number}].{field}[{index}].ip"
                if wrong := ip_problem(address["ip"]):
                    yield invalid_value(path, address["ip"], wrong)
                else:
                    yield from check_not_local(path, address["ip"])
        if not subset.get("addresses") and not subset.get("notReadyAddresses"):
            yield required(f"subsets[{number}]", "must specify `addresses` or `notReadyAddresses`")
        ports = subset.get("ports") or []
        for index, port in enumerate(ports):
            path = f"subsets[{number}].ports[{index}]"
            if len(ports) > 1 and not port.get("name"):
                yield required(f"{path}.name")
            if wrong := port_number_problem(port["port"]):
                yield invalid_value(f"{path}.port", port["port"], wrong)
            if port["protocol"] not in _PROTOCOLS:
                yield not_supported(f"{path}.protocol", port["protocol"], _PROTOCOLS)


def check_endpoint_slice(obj: JSON) -> Iterator[Cause]:
    kind = obj["addressType"]
    if kind not in _ADDRESS_TYPES:
        yield not_supported("addressType", kind, _ADDRESS_TYPES)
    if len(obj["endpoints"]) > _MAX_ENDPOINTS:
        yield Cause(
            "endpoints",
            f"Too many: {len(obj['endpoints'])}: must have at most {_MAX_ENDPOINTS} items",
            "FieldValueTooMany",
        )
    for index, endpoint in enumerate(obj["endpoints"]):
        path = f"endpoints[{index}].addresses"
        if not endpoint["addresses"]:
            yield required(path, "must contain at least 1 address")
        for number, address in enumerate(endpoint["addresses"]):
            yield from _check_slice_address(f"{path}[{number}]", kind, address)
        for field in ("forZones", "forNodes"):
            yield from _check_hints(f"endpoints[{index}].hints.{field}", child(endpoint, "hints").get(field) or [])
    names: set[str] = set()
    ports = obj.get("ports") or []
    if len(ports) > _MAX_PORTS:
        yield Cause("ports", f"Too many: {len(ports)}: must have at most {_MAX_PORTS} items", "FieldValueTooMany")
    for index, port in enumerate(ports):
        if port["name"] in names:
            yield duplicate(f"ports[{index}].name", port["name"])
        elif port["name"] and (wrong := dns_label_problem(port["name"])):
            yield invalid_value(f"ports[{index}].name", port["name"], wrong)
        names.add(port["name"])
        if port["protocol"] not in _PROTOCOLS:
            yield not_supported(f"ports[{index}].protocol", port["protocol"], _PROTOCOLS)
        if "port" in port and (wrong := port_number_problem(port["port"])):
            yield invalid_value(f"ports[{index}].port", port["port"], wrong)


def _check_hints(path: str, hints: list[JSON]) -> Iterator[Cause]:
    if len(hints) > _MAX_HINTS:
        yield Cause(path, f"Too many: {len(hints)}: must have at most {_MAX_HINTS} items", "FieldValueTooMany")
    names = [hint["name"] for hint in hints]
    for index, name in enumerate(names):
        if not name:
            yield required(f"{path}[{index}].name")
        elif name in names[:index]:
            yield duplicate(f"{path}[{index}].name", name)
        elif wrong := label_value_problem(name):
            yield invalid_value(f"{path}[{index}].name", name, wrong)


def _check_slice_address(path: str, kind: str, address: str) -> Iterator[Cause]:
    if kind == "FQDN":
        if wrong := dns_subdomain_problem(address):
            yield invalid_value(path, address, wrong)
    elif wrong := ip_problem(address):
        yield invalid_value(path, address, wrong)
    elif f"IPv{ipaddress.ip_address(address).version}" != kind:
        yield invalid_value(path, address, f"must be an {kind} address")
    else:
        yield from check_not_local(path, address)


def check_endpoint_slice_update(obj: JSON, old: JSON) -> Iterator[Cause]:
    if obj["addressType"] != old.get("addressType"):
        yield immutable("addressType", obj["addressType"])


def check_config_map(obj: JSON) -> Iterator[Cause]:
    size = 0
    data, binary = obj.get("data") or {}, obj.get("binaryData") or {}
    for field, values in (("data", data), ("binaryData", binary)):
        for key, value in values.items():
            yield from _check_key(field, key)
            if not isinstance(value, str):
                yield type_invalid(f"{field}[{key}]", f"Expected `str`, got `{type(value).__name__}`; quote the value")
                continue
            size += len(value)
            if field == "binaryData":
                if key in data:
                    yield invalid_value(f"binaryData[{key}]", key, "duplicate of key present in data")
                if decode_secret_value(value) is None:
                    yield invalid_value(f"binaryData[{key}]", "<omitted>", "must be base64")
    if size > _MAX_DATA:
        yield too_long("", _MAX_DATA)


def check_secret(obj: JSON) -> Iterator[Cause]:
    data, size = obj.get("data") or {}, 0
    for key, value in data.items():
        yield from _check_key("data", key)
        decoded = decode_secret_value(value)
        if decoded is None:
            yield invalid_value(f"data[{key}]", "<omitted>", "must be base64; put plain text into stringData")
        else:
            size += len(decoded)
    for key, value in (obj.get("stringData") or {}).items():
        if not isinstance(value, str):
            yield type_invalid(f"stringData[{key}]", f"Expected `str`, got `{type(value).__name__}`; quote the value")
    if size > _MAX_DATA:
        yield too_long("data", _MAX_DATA)
    for key in _SECRET_KEYS.get(obj["type"], ()):
        if key not in data:
            yield required(f"data[{key}]")


_SECRET_KEYS = {
    "kubernetes.io/tls": ("tls.crt", "tls.key"),
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
    "kubernetes.io/dockercfg": (".dockercfg",),
    "kubernetes.io/ssh-auth": ("ssh-privatekey",),
}


def _check_key(field: str, key: str) -> Iterator[Cause]:
    if wrong := config_key_problem(key):
        yield invalid_value(f"{field}[{key}]", key, wrong)


def check_immutable_data(obj: JSON, old: JSON) -> Iterator[Cause]:
    if old.get("immutable") is not True:
        return
    if obj.get("immutable") is not True:
        yield forbidden("immutable", "field is immutable when `immutable` is set")
    for field in ("data", "binaryData"):
        if (obj.get(field) or {}) != (old.get(field) or {}):
            yield forbidden(field, "field is immutable when `immutable` is set")


def check_secret_update(obj: JSON, old: JSON) -> Iterator[Cause]:
    if old.get("type") and obj["type"] != old["type"]:
        yield immutable("type", obj["type"])
    yield from check_immutable_data(obj, old)


def check_namespace(obj: JSON) -> Iterator[Cause]:
    for index, finalizer in enumerate(obj["spec"].get("finalizers") or []):
        if wrong := qualified_name_problem(finalizer):
            yield invalid_value(f"spec.finalizers[{index}]", finalizer, wrong)


def check_node(obj: JSON) -> Iterator[Cause]:
    spec, status = obj["spec"], obj["status"]
    seen: set[tuple[str, str]] = set()
    for index, taint in enumerate(spec.get("taints") or []):
        path = f"spec.taints[{index}]"
        if wrong := qualified_name_problem(taint["key"]):
            yield invalid_value(f"{path}.key", taint["key"], wrong)
        if taint["effect"] not in _TAINT_EFFECTS:
            yield not_supported(f"{path}.effect", taint["effect"], _TAINT_EFFECTS)
        if (taint["key"], taint["effect"]) in seen:
            yield duplicate(path, {"key": taint["key"], "effect": taint["effect"]})
        seen.add((taint["key"], taint["effect"]))
    for index, cidr in enumerate(spec.get("podCIDRs") or []):
        if not _is_network(cidr):
            yield invalid_value(f"spec.podCIDRs[{index}]", cidr, "must be a valid CIDR value, (e.g. 10.9.8.0/24)")
    for field in ("capacity", "allocatable"):
        for name, value in (status.get(field) or {}).items():
            _, cause = quantity(f"status.{field}.{name}", value)
            if cause is not None:
                yield cause


def _is_network(text: Any) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def check_node_update(obj: JSON, old: JSON) -> Iterator[Cause]:
    before, after = child(old, "spec"), obj["spec"]
    for field in ("podCIDR", "podCIDRs", "providerID"):
        if before.get(field) and after.get(field) != before[field]:
            yield forbidden(f"spec.{field}", "node updates may not change this field except from empty to a value")


def check_event(obj: JSON) -> Iterator[Cause]:
    about, namespace = obj["involvedObject"], obj["metadata"].get("namespace")
    if about.get("namespace") and namespace and about["namespace"] != namespace:
        yield invalid_value("involvedObject.namespace", about["namespace"], "does not match event.namespace")


def check_lease(obj: JSON) -> Iterator[Cause]:
    spec = child(obj, "spec")
    seconds, transitions = spec.get("leaseDurationSeconds"), spec.get("leaseTransitions")
    if seconds is not None and seconds <= 0:
        yield invalid_value("spec.leaseDurationSeconds", seconds, "must be greater than 0")
    if transitions is not None and transitions < 0:
        yield invalid_value("spec.leaseTransitions", transitions, "must be greater than or equal to 0")
