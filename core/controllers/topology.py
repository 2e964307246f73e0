"""Which zones the endpoints of a service are meant for: the hints in its slices. Pure functions.

`spec.trafficDistribution` (KEP-4444, KEP-3015): every endpoint whose node has a zone is meant for that zone; with
PreferSameNode also for its node. The annotation service.kubernetes.io/topology-mode: Auto (KEP-2433), which goes before
it, does the same where that cannot starve or flood anybody by much: every ready endpoint has a zone, the nodes are in
at least two, and there are at least as many ready endpoints as zones. Kubernetes also moves endpoints between zones in
proportion to their nodes' processors; here an endpoint is never meant for another zone than its own, and a zone
without endpoints uses all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from lightkube.models.core_v1 import Node, Service
from lightkube.models.discovery_v1 import Endpoint, EndpointHints, ForNode, ForZone

from kernelet.core.controllers.access import annotations_of, labels_of
from kernelet.core.controllers.endpoints_model import ZONE_LABEL, Group

MODE_ANNOTATION = "service.kubernetes.io/topology-mode"
SAME_NODE = "PreferSameNode"
DISTRIBUTIONS = ("PreferClose", "PreferSameZone", SAME_NODE)


def zones_of(nodes: Iterable[Node]) -> frozenset[str]:
    return frozenset(zone for node in nodes if (zone := zone_of(node)))


def zone_of(node: Node | None) -> str:
    """ "" where it has none."""
    return labels_of(node).get(ZONE_LABEL, "") if node else ""


def automatic(service: Service) -> bool:
    """Whether its hints depend on the zones of all nodes."""
    return annotations_of(service).get(MODE_ANNOTATION) in ("Auto", "auto")


def set_hints(service: Service, groups: Mapping[Group, list[Endpoint]], zones: Collection[str]) -> None:
    """Writes hints into endpoints that were made without. `zones` are those of all nodes."""
    distribution = service.spec.trafficDistribution if service.spec else None
    if automatic(service):
        for family in {group[0] for group in groups}:
            endpoints = [endpoint for group, listed in groups.items() if group[0] == family for endpoint in listed]
            ready = [endpoint for endpoint in endpoints if endpoint.conditions and endpoint.conditions.ready]
            if all(endpoint.zone for endpoint in ready) and 2 <= len(zones) <= len(ready):
                _hint(ready)
    elif distribution in DISTRIBUTIONS:
        _hint((endpoint for listed in groups.values() for endpoint in listed), nodes=distribution == SAME_NODE)


def _hint(endpoints: Iterable[Endpoint], *, nodes: bool = False) -> None:
    for endpoint in endpoints:
        zones = [ForZone(name=endpoint.zone)] if endpoint.zone else None
        on = [ForNode(name=endpoint.nodeName)] if nodes and endpoint.nodeName else None
        if zones or on:
            endpoint.hints = EndpointHints(forZones=zones, forNodes=on)
