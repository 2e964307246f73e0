"""What a Service gets when it is written: cluster address and node ports (KEP-1880, KEP-3668)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from ..api.errors import JSON, Cause, InternalError, invalid
from ..api.jsontools import child, children
from .allocators import Allocator, Claims, Exhausted, Pool, Taken, key_of

SLOW_SECONDS = 30.0
"""Below the age at which reconcile takes a claim without a service for leaked."""
_EXTERNAL = "ExternalName"


def allocation_keys(service: JSON) -> set[str]:
    """The allocation keys a service holds."""
    spec = service.get("spec") or {}
    if spec.get("type") == _EXTERNAL:
        return set()
    keys = {key_of("ip", address) for address in _addresses(spec)}
    return keys | {key_of("port", str(port["nodePort"])) for port in spec.get("ports") or () if port.get("nodePort")}


def _addresses(spec: JSON) -> list[str]:
    listed = spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])
    return [address for address in listed if address and address != "None"]


def _wants_node_ports(spec: JSON) -> bool:
    kind = spec.get("type") or "ClusterIP"
    return kind == "NodePort" or (kind == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is not False)


class Services:
    """Fills in and checks the allocated fields of a service about to be written."""

    def __init__(self, allocator: Allocator, addresses: Pool, ports: Pool) -> None:
        self._allocator = allocator
        self._addresses = addresses
        self._ports = ports

    async def reserve(self, service: JSON, old: JSON | None, *, dry_run: bool) -> Claims:
        """Claims what `service` needs beyond `old` and writes it into the object. Raises Invalid, holding nothing."""
        metadata, spec = service["metadata"], service.setdefault("spec", {})
        claims = Claims(metadata.get("uid", ""), f"{metadata.get('namespace')}/{metadata.get('name')}", dry_run=dry_run)
        held = allocation_keys(old) if old is not None else set()
        try:
            causes = await self._reserve_address(spec, held, claims)
            causes += await self._reserve_ports(spec, held, claims)
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

    async def _reserve_address(self, spec: JSON, held: set[str], claims: Claims) -> list[Cause]:
        if spec.get("type") == _EXTERNAL:
            return []
        spec.setdefault("ipFamilies", ["IPv4"])
        spec.setdefault("ipFamilyPolicy", "SingleStack")
        asked = spec.get("clusterIP") or next(iter(spec.get("clusterIPs") or ()), "")
        if asked == "None":
            spec["clusterIP"], spec["clusterIPs"] = "None", ["None"]
            return []
        if asked and key_of("ip", asked) not in held:
            problem = await self._ask(self._addresses, asked, claims)
            if problem:
                text = f'Invalid value: ["{asked}"]: failed to allocate IP {asked}: {problem}'
                return [Cause("spec.clusterIPs", text)]
        if not asked:
            asked = await self._allocator.claim_any(self._addresses, claims)
        spec["clusterIP"], spec["clusterIPs"] = asked, [asked]
        return []

    async def _reserve_ports(self, spec: JSON, held: set[str], claims: Claims) -> list[Cause]:
        ports = spec.get("ports") or []
        if not _wants_node_ports(spec):
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
        if causes:
            return causes
        for index, port in enumerate(ports):
            if not port.get("nodePort"):
                same = chosen.get(port["port"])
                clash = any(p.get("nodePort") == same and _protocol(p) == _protocol(port) for p in ports)
                if same is None or clash:
                    same = int(await self._allocator.claim_any(self._ports, claims))
                ports[index]["nodePort"] = chosen[port["port"]] = same
        return []

    async def _ask(self, pool: Pool, text: str, claims: Claims) -> str:
        problem = pool.problem(text)
        if problem:
            return problem
        try:
            await self._allocator.claim(pool, text, claims)
        except Taken:
            return "provided IP is already allocated" if pool.name == "ip" else "provided port is already allocated"
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
    external, was_external = spec.get("type") == _EXTERNAL, old.get("type") == _EXTERNAL
    if not external and not was_external:
        if not spec.get("clusterIP"):
            spec["clusterIP"] = old.get("clusterIP", "")
        if not spec.get("clusterIPs") and spec["clusterIP"] == old.get("clusterIP", ""):
            spec["clusterIPs"] = list(old.get("clusterIPs") or ())
    if external and spec.get("clusterIP") == old.get("clusterIP"):
        for name in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            spec.pop(name, None)
    before = {(p.get("port"), _protocol(p)): p.get("nodePort") for p in children(old, "ports") if p.get("nodePort")}
    for port in children(spec, "ports"):
        known = before.get((port.get("port"), _protocol(port)))
        if _wants_node_ports(spec):
            if not port.get("nodePort") and known and known not in {p.get("nodePort") for p in children(spec, "ports")}:
                port["nodePort"] = known
        elif known and port.get("nodePort") == known:
            del port["nodePort"]
