"""The cluster's zone as a table of names (Kubernetes DNS specification 1.1.0). Pure: no I/O.

One service's records are built together and replaced together; a lookup is one dictionary access. Endpoints matter to
headless services only, so their changes cost nothing for all others. What is no address (host names, a typing error)
is left out: one wrong object must not take the names of all others away.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeVar

from lightkube.models.core_v1 import Service
from lightkube.models.discovery_v1 import Endpoint, EndpointSlice

log = logging.getLogger(__name__)

Address = IPv4Address | IPv6Address
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Srv:
    """Target of an SRV record (RFC 2782); priority and weight are set when answers are made."""

    port: int
    target: str


@dataclass(slots=True)
class Records:
    """What one name holds. A name without any still exists where longer names end in it."""

    addresses: list[Address] = field(default_factory=list)
    srv: list[Srv] = field(default_factory=list)
    cname: str = ""
    ptr: list[str] = field(default_factory=list)


class Zone:
    """All names of the cluster's services. Names are lower case with no dot at the end."""

    def __init__(self, domain: str = "cluster.local") -> None:
        self.domain = domain
        self._services: dict[str, Service] = {}
        self._slices: dict[str, dict[str, EndpointSlice]] = {}
        self._of_service: dict[str, dict[str, Records]] = {}
        self._names: dict[str, dict[str, Records]] = {}  # name -> service key -> records
        self._parents: dict[str, int] = {}  # names that exist because longer ones do

    def set_service(self, key: str, service: Service | None) -> None:
        """`key` is namespace/name."""
        if service is None:
            self._services.pop(key, None)
        else:
            self._services[key] = service
        self._rebuild(key)

    def set_slice(self, key: str, name: str, endpoint_slice: EndpointSlice | None) -> None:
        """`key` is that of the service the slice belongs to."""
        slices = self._slices.setdefault(key, {})
        if endpoint_slice is None:
            slices.pop(name, None)
        else:
            slices[name] = endpoint_slice
        service = self._services.get(key)
        if service is None or _is_headless(service):
            self._rebuild(key)

    def lookup(self, name: str) -> Records | None:
        """None where the name does not exist; empty records where it exists with no data of its own."""
        held = self._names.get(name)
        if held is not None:
            if len(held) == 1:
                return next(iter(held.values()))
            return _merged(held.values())
        pod = self._pod(name)
        if pod is not None:
            return pod
        if name in self._parents or name in (self.domain, f"svc.{self.domain}", f"pod.{self.domain}"):
            return Records()
        return None

    def _pod(self, name: str) -> Records | None:
        """`10-244-1-7.<namespace>.pod.<domain>`: the address is the name, so nothing needs to be known of the pod."""
        suffix = f".pod.{self.domain}"
        if not name.endswith(suffix):
            return None
        labels = name.removesuffix(suffix).split(".")
        if len(labels) != 2:
            return None
        for separator in ".:":
            try:
                return Records(addresses=[ip_address(labels[0].replace("-", separator))])
            except ValueError:
                continue
        return None

    def _rebuild(self, key: str) -> None:
        for name in self._of_service.pop(key, {}):
            held = self._names[name]
            del held[key]
            if not held:
                del self._names[name]
            self._count_parents(name, -1)
        service = self._services.get(key)
        if service is None:
            if not self._slices.get(key):
                self._slices.pop(key, None)
            return
        built = self._build(key, service)
        self._of_service[key] = built
        for name, records in built.items():
            self._names.setdefault(name, {})[key] = records
            self._count_parents(name, 1)

    def _count_parents(self, name: str, step: int) -> None:
        labels = name.split(".")
        for start in range(1, len(labels)):
            parent = ".".join(labels[start:])
            count = self._parents.get(parent, 0) + step
            if count:
                self._parents[parent] = count
            else:
                del self._parents[parent]

    def _build(self, key: str, service: Service) -> dict[str, Records]:
        namespace, _, name = key.partition("/")
        base = f"{name}.{namespace}.svc.{self.domain}"
        spec = service.spec
        if spec is None:
            return {}
        if spec.type == "ExternalName":
            return {base: Records(cname=(spec.externalName or "").rstrip("."))}
        if _is_headless(service):
            return self._headless(base, service, self._slices.get(key, {}).values())
        found: dict[str, Records] = {}
        addresses = _addresses(key, spec.clusterIPs or [spec.clusterIP or ""])
        found[base] = Records(addresses=addresses)
        for address in addresses:
            found[address.reverse_pointer] = Records(ptr=[base])
        for port in spec.ports or []:
            if port.name:
                label = f"_{port.name}._{(port.protocol or 'TCP').lower()}.{base}"
                found[label] = Records(srv=[Srv(port.port, base)])
        return found

    def _headless(self, base: str, service: Service, slices: Iterable[EndpointSlice]) -> dict[str, Records]:
        found: dict[str, Records] = {base: Records()}
        unready_too = bool(service.spec and service.spec.publishNotReadyAddresses)
        for endpoint_slice in slices:
            for endpoint in endpoint_slice.endpoints or []:
                if unready_too or _is_ready(endpoint):
                    self._add_endpoint(found, base, endpoint_slice, endpoint)
        return found

    def _add_endpoint(
        self, found: dict[str, Records], base: str, endpoint_slice: EndpointSlice, endpoint: Endpoint
    ) -> None:
        for address in _addresses(base, endpoint.addresses):
            host = endpoint.hostname or str(address).replace(".", "-").replace(":", "-")
            full = f"{host}.{base}".lower()
            _add(found[base].addresses, address)
            _add(found.setdefault(full, Records()).addresses, address)
            if endpoint.hostname:
                _add(found.setdefault(address.reverse_pointer, Records()).ptr, full)
            for port in endpoint_slice.ports or []:
                if port.name and port.port:
                    label = f"_{port.name}._{(port.protocol or 'TCP').lower()}.{base}"
                    _add(found.setdefault(label, Records()).srv, Srv(port.port, full))


def _add(values: list[T], value: T) -> None:
    """An endpoint that moves from slice to slice is in both for a moment: once is enough."""
    if value not in values:
        values.append(value)


def _addresses(owner: str, texts: Iterable[str] | None) -> list[Address]:
    found: list[Address] = []
    for text in texts or []:
        try:
            found.append(ip_address(text))
        except ValueError as error:
            log.warning("address left out of the names of %s: %s", owner, error)
    return found


def _is_headless(service: Service) -> bool:
    spec = service.spec
    return spec is not None and spec.type != "ExternalName" and spec.clusterIP in (None, "", "None")


def _is_ready(endpoint: Endpoint) -> bool:
    conditions = endpoint.conditions
    return conditions is None or conditions.ready is None or conditions.ready


def _merged(parts: Iterable[Records]) -> Records:
    """One name of several services: addresses that more than one service points back to."""
    merged = Records()
    for part in parts:
        merged.addresses += part.addresses
        merged.srv += part.srv
        merged.ptr += part.ptr
        merged.cname = merged.cname or part.cname
    return merged
