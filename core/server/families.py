"""Which IP families a service gets (KEP-563), from what it asks for and what the cluster has."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from ..api.causes import invalid_value
from ..api.errors import JSON, Cause

FAMILIES = ("IPv4", "IPv6")
SINGLE, PREFER, REQUIRE = "SingleStack", "PreferDualStack", "RequireDualStack"


def family_of(address: str) -> str:
    return f"IPv{ipaddress.ip_address(address).version}"


def settle(spec: JSON, configured: Sequence[str]) -> list[Cause]:
    """Writes ipFamilies and ipFamilyPolicy into a valid spec.

    `configured` are the cluster's families, the default one first. What is wrong is returned, as Kubernetes words it.
    A headless service without a selector may have families that the cluster has not: its endpoints are others' affair.
    """
    addresses = [address for address in spec.get("clusterIPs") or () if address != "None"]
    families = list(spec.get("ipFamilies") or ())
    families += [family_of(address) for address in addresses[len(families) :]]
    free = spec.get("clusterIP") == "None" and not spec.get("selector")
    policy = spec.get("ipFamilyPolicy") or (REQUIRE if free or len(families) == 2 else SINGLE)
    if policy == SINGLE and len(families) == 2:
        # Only the addresses say that there are two.
        text = "must be RequireDualStack or PreferDualStack when multiple clusterIPs are specified"
        return [invalid_value("spec.ipFamilyPolicy", policy, text)]
    families = families or [configured[0]]
    if len(families) == 1 and policy != SINGLE:
        other = next(family for family in FAMILIES if family != families[0])
        families += [other] if free or other in configured else []
    spec["ipFamilies"], spec["ipFamilyPolicy"] = families, policy
    return [] if free else _problems(families, policy, configured)


def downgrade(spec: JSON, old: JSON) -> None:
    """An update that only asks for SingleStack gives up the second address. Runs before validation."""
    if spec.get("ipFamilyPolicy") == SINGLE and old.get("ipFamilyPolicy") in (PREFER, REQUIRE):
        for field in ("clusterIPs", "ipFamilies"):
            if spec.get(field) and spec[field] == old.get(field):
                spec[field] = spec[field][:1]


def _problems(families: Sequence[str], policy: str, configured: Sequence[str]) -> list[Cause]:
    if policy == REQUIRE and len(configured) < 2:
        text = "this cluster is not configured for dual-stack services"
        return [invalid_value("spec.ipFamilyPolicy", policy, text)]
    return [
        invalid_value(f"spec.ipFamilies[{index}]", family, "not configured on this cluster")
        for index, family in enumerate(families)
        if family not in configured
    ]
