"""What a Service gets when it is written: cluster addresses and node ports (KEP-1880, KEP-3668)."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterator, Mapping

from ..api.errors import JSON, Cause, InternalError, invalid
from ..api.jsontools import child, children
from ..api.validation_service import is_external, needs_health_check
from .allocators import AddressPool, Allocator, Claims, Exhausted, Pool, Taken, key_of
from .families import downgrade, settle

SLOW_SECONDS = 30.0
"""Below the age at which reconcile takes a claim without a service for leaked."""
_EXTERNAL = "ExternalName"
_PORT_TAKEN = "provided port is already allocated"


def allocation_keys(service: JSON) -> set[str]:
    """The allocation keys a service holds."""
    spec = service.get("spec") or {}
    if spec.get("type") == _EXTERNAL:
        return set()
    keys = {_address_key(address) for address in _addresses(spec)}
    ports = [port["nodePort"] for port in spec.get("ports") or () if port.get("nodePort")]
    if needs_health_check(spec) and spec.get("healthCheckNodePort"):
        ports.append(spec["healthCheckNodePort"])
    return keys | {key_of("port", str(port)) for port in ports}


def _address_key(address: str) -> str:
    """The same for every way to write an IPv6 address."""
    return key_of("ip", str(ipaddress.ip_address(address)))


def _addresses(spec: JSON) -> list[str]:
    listed = spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])
    return [address for address in listed if address and address != "None"]


def _may_have_node_ports(spec: JSON) -> bool:
    return spec.get("type") in ("NodePort", "LoadBalancer")


def _wants_node_ports(spec: JSON) -> bool:
    kind = spec.get("type") or "ClusterIP"
    return kind == "NodePort" or (kind == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is not False)


class Services:
    """Fills in and checks the allocated fields of a service about to be written.

    `addresses` are the cluster's pools by family (IPv4, IPv6), that of the default family first.
    """

    def __init__(self, allocator: Allocator, addresses: Mapping[str, AddressPool], ports: Pool) -> None:
        self._allocator = allocator
        self._addresses = addresses
        self._ports = ports

    async def reserve(self, service: JSON, old: JSON | None, *, dry_run: bool) -> Claims:
        """Claims what `service` needs beyond `old` and writes it into the object. Raises Invalid, holding nothing."""
        metadata, spec = service["metadata"], service.setdefault("spec", {})
        claims = Claims(metadata.get("uid", ""), f"{metadata.get('namespace')}/{metadata.get('name')}", dry_run=dry_run)
        held = allocation_keys(old) if old is not None else set()
        try:
            causes = await self._reserve_addresses(spec, held, claims)
            causes += await self._reserve_ports(spec, held, claims)
            if not causes:
                causes = await self._reserve_health_port(spec, held, claims)
        except Exhausted as error:
            await self._allocator.give_back(claims)
            what = "cluster address" if str(error) == "ip" else "node port"
            raise InternalError(
                f"failed to allocate a {what} for Service {claims.service}: the range is full"
            ) from error
        if causes:
            await self._allocator.give_back(claims)
            raise invalid("Service", metadata.get("name", ""), causes)
        return claims

    async def give_back(self, claims: Claims) -> None:
        await self._allocator.give_back(claims)

    async def stands(self, claims: Claims) -> bool:
        """Whether a service just written may stay: false when its claims expired while it was being written."""
        late = asyncio.get_running_loop().time() - claims.at > SLOW_SECONDS
        return not late or await self._allocator.hold(claims)

    async def release(self, old: JSON, new: JSON | None) -> None:
        """Frees what `old` held and `new` (None: deleted) no longer does."""
        gone = allocation_keys(old) - (allocation_keys(new) if new is not None else set())
        for key in gone:
            await self._allocator.release(key, old["metadata"].get("uid", ""))

    async def _reserve_addresses(self, spec: JSON, held: set[str], claims: Claims) -> list[Cause]:
        if spec.get("type") == _EXTERNAL:
            return []
        if spec.get("clusterIP") and not spec.get("clusterIPs"):
            spec["clusterIPs"] = [spec["clusterIP"]]
        if "None" in (spec.get("clusterIPs") or ()):
            spec["clusterIP"] = "None"
        causes = settle(spec, tuple(self._addresses))
        if causes or spec.get("clusterIP") == "None":
            return causes
        asked, given = spec.get("clusterIPs") or [], []
        for index, family in enumerate(spec["ipFamilies"]):
            address = asked[index] if index < len(asked) else ""
            if not address:
                address = await self._allocator.claim_any(self._addresses[family], claims)
            elif _address_key(address) not in held:
                problem = await self._ask(self._addresses[family], str(ipaddress.ip_address(address)), claims)
                if problem:
                    text = f'Invalid value: ["{address}"]: failed to allocate IP {address}: {problem}'
                    return [Cause("spec.clusterIPs", text)]
            given.append(address)
        spec["clusterIP"], spec["clusterIPs"] = given[0], given
        return []

    async def _reserve_ports(self, spec: JSON, held: set[str], claims: Claims) -> list[Cause]:
        ports = spec.get("ports") or []
        if not _may_have_node_ports(spec):
            return []
        causes, mine = [], set(held)
        chosen: dict[int, int] = {}
        for index, port in _requested(ports):
            number = port["nodePort"]
            key = key_of("port", str(number))
            # One number may serve several protocols of one service.
            problem = "" if key in mine else await self._ask(self._ports, str(number), claims)
            if problem:
                causes.append(Cause(f"spec.ports[{index}].nodePort", f"Invalid value: {number}: {problem}"))
            mine.add(key)
            chosen.setdefault(port["port"], number)
        if causes or not _wants_node_ports(spec):
            return causes
        for index, port in enumerate(ports):
            if not port.get("nodePort"):
                same = chosen.get(port["port"])
                clash = any(p.get("nodePort") == same and _protocol(p) == _protocol(port) for p in ports)
                if same is None or clash:
                    same = int(await self._allocator.claim_any(self._ports, claims))
                ports[index]["nodePort"] = chosen[port["port"]] = same
        return []

    async def _reserve_health_port(self, spec: JSON, held: set[str], claims: Claims) -> list[Cause]:
        """After the node ports, so that it is none of them."""
        if not needs_health_check(spec):
            return []
        asked = spec.get("healthCheckNodePort")
        if not asked:
            spec["healthCheckNodePort"] = int(await self._allocator.claim_any(self._ports, claims))
            return []
        problem = ""
        if asked in [port.get("nodePort") for port in spec.get("ports") or ()]:
            problem = _PORT_TAKEN
        elif key_of("port", str(asked)) not in held:
            problem = await self._ask(self._ports, str(asked), claims)
        return [Cause("spec.healthCheckNodePort", f"Invalid value: {asked}: {problem}")] if problem else []

    async def _ask(self, pool: Pool, text: str, claims: Claims) -> str:
        problem = pool.problem(text)
        if problem:
            return problem
        try:
            await self._allocator.claim(pool, text, claims)
        except Taken:
            return "provided IP is already allocated" if pool.name == "ip" else _PORT_TAKEN
        return ""


def _requested(ports: list[JSON]) -> Iterator[tuple[int, JSON]]:
    return ((index, port) for index, port in enumerate(ports) if port.get("nodePort"))


def _protocol(port: JSON) -> str:
    return port.get("protocol") or "TCP"


def carry_over(service: JSON, old_service: JSON) -> None:
    """An update that leaves out what was allocated keeps it; a type that has no use for it drops it.

    Runs before validation: fields of a wrong type are left alone.
    """
    spec, old = child(service, "spec"), child(old_service, "spec")
    _carry_addresses(spec, old)
    _carry_node_ports(spec, old)
    _carry_health_port(spec, old)
    # What the old type had and the new one has no use for goes, unless it was changed: then it is an error.
    dropped = [] if is_external(spec) else ["externalTrafficPolicy"]
    if spec.get("type") != "LoadBalancer":
        dropped += ["allocateLoadBalancerNodePorts", "loadBalancerClass"]
        if old.get("type") == "LoadBalancer" and isinstance(service.get("status"), dict):
            service["status"] = service["status"] | {"loadBalancer": {}}
    for field in dropped:
        if field in spec and spec[field] == old.get(field):
            del spec[field]


def _carry_addresses(spec: JSON, old: JSON) -> None:
    external, was_external = spec.get("type") == _EXTERNAL, old.get("type") == _EXTERNAL
    if not external and not was_external:
        if not spec.get("clusterIP"):
            spec["clusterIP"] = old.get("clusterIP", "")
        if not spec.get("clusterIPs") and spec["clusterIP"] == old.get("clusterIP", ""):
            spec["clusterIPs"] = list(old.get("clusterIPs") or ())
        for field in ("ipFamilies", "ipFamilyPolicy"):
            if not spec.get(field) and old.get(field):
                spec[field] = old[field]
        downgrade(spec, old)
    if external and spec.get("clusterIP") == old.get("clusterIP"):
        for field in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            spec.pop(field, None)


def _carry_node_ports(spec: JSON, old: JSON) -> None:
    before = {(p.get("port"), _protocol(p)): p.get("nodePort") for p in children(old, "ports") if p.get("nodePort")}
    for port in children(spec, "ports"):
        known = before.get((port.get("port"), _protocol(port)))
        if _wants_node_ports(spec):
            if not port.get("nodePort") and known and known not in {p.get("nodePort") for p in children(spec, "ports")}:
                port["nodePort"] = known
        elif known and port.get("nodePort") == known and (_wants_node_ports(old) or not _may_have_node_ports(spec)):
            del port["nodePort"]


def _carry_health_port(spec: JSON, old: JSON) -> None:
    known = old.get("healthCheckNodePort")
    if needs_health_check(spec):
        if known and not spec.get("healthCheckNodePort"):
            spec["healthCheckNodePort"] = known
    elif known and spec.get("healthCheckNodePort") == known:
        del spec["healthCheckNodePort"]
