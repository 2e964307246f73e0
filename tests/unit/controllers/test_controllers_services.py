"""What the slices of a service say, at a real API server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from controllers_world import Kubelet, World, replica_set, service
from lightkube.models.core_v1 import Endpoints, Event, Node, Pod, Service
from lightkube.models.discovery_v1 import Endpoint, EndpointSlice

from kernelet.core.api.models import to_model
from kernelet.core.controllers.access import annotations_of, controller_of, labels_of, name_of
from kernelet.core.controllers.pods import ready

ZONE = "topology.kubernetes.io/zone"


def slices(world: World, space: str, name: str) -> list[EndpointSlice]:
    found = world.items(EndpointSlice, space)
    return [entry for entry in found if labels_of(entry).get("kubernetes.io/service-name") == name]


def endpoints(world: World, space: str, name: str) -> list[Endpoint]:
    return [endpoint for entry in slices(world, space, name) for endpoint in entry.endpoints or []]


def zones(endpoint: Endpoint) -> list[str]:
    return [zone.name for zone in (endpoint.hints.forZones if endpoint.hints else None) or []]


async def put_in_zone(world: World, node: str, zone: str | None) -> None:
    await world.client.patch(Node, node, {"metadata": {"labels": {ZONE: zone}}})


async def test_hints_follow_the_zones_of_nodes_and_what_the_service_asks_for(
    world: World, space: str, kubelets: list[Kubelet]
) -> None:
    await world.client.create(service("web", space, trafficDistribution="PreferClose"))
    await world.client.create(replica_set("web", space, 2))
    await world.until(lambda: len(endpoints(world, space, "web")) == 2)
    assert not any(endpoint.zone or endpoint.hints for endpoint in endpoints(world, space, "web"))
    for number, kubelet in enumerate(kubelets):
        await put_in_zone(world, kubelet.name, f"zone-{number}")
    names = {kubelet.name: f"zone-{number}" for number, kubelet in enumerate(kubelets)}

    def as_nodes_are() -> bool:
        found = endpoints(world, space, "web")
        return all((zones(e), e.zone) == ([names[e.nodeName or ""]], names[e.nodeName or ""]) for e in found)

    await world.until(as_nodes_are)
    await put_in_zone(world, kubelets[0].name, "elsewhere")
    names[kubelets[0].name] = "elsewhere"
    await world.until(as_nodes_are)
    await world.client.patch(Service, "web", {"spec": {"trafficDistribution": None}}, space)
    await world.until(lambda: not any(zones(endpoint) for endpoint in endpoints(world, space, "web")))
    assert all(endpoint.zone for endpoint in endpoints(world, space, "web"))


async def test_automatic_hints_wait_for_every_node_to_have_a_zone(
    world: World, space: str, kubelets: list[Kubelet]
) -> None:
    made = service("web", space)
    assert made.metadata
    made.metadata.annotations = {"service.kubernetes.io/topology-mode": "Auto"}
    await world.client.create(made)
    await world.client.create(replica_set("web", space, 2))
    await world.until(lambda: len(endpoints(world, space, "web")) == 2)
    for number, kubelet in enumerate(kubelets):
        assert not any(zones(endpoint) for endpoint in endpoints(world, space, "web"))
        await put_in_zone(world, kubelet.name, f"zone-{number}")
    await world.until(lambda: all(zones(endpoint) for endpoint in endpoints(world, space, "web")))
    # A third zone is one more than there are endpoints, though none of them is there.
    far = to_model(Node, {"metadata": {"name": f"far-{space}", "labels": {ZONE: "far"}}})
    await world.client.create(far)
    await world.until(lambda: not any(zones(endpoint) for endpoint in endpoints(world, space, "web")))
    await world.client.delete(Node, name_of(far))
    await world.until(lambda: all(zones(endpoint) for endpoint in endpoints(world, space, "web")))
    await put_in_zone(world, kubelets[0].name, None)
    await world.until(lambda: not any(zones(endpoint) for endpoint in endpoints(world, space, "web")))


async def test_weights_of_pods_are_told_by_their_slices_and_wrong_ones_to_their_owner(
    world: World, space: str, kubelets: list[Kubelet]
) -> None:
    await world.client.create(service("web", space))
    await world.client.create(replica_set("web", space, 2))
    await world.until(lambda: len([pod for pod in world.items(Pod, space) if ready(pod)]) == 2)
    pod = world.items(Pod, space)[0]
    assert pod.status

    def carried() -> list[Any]:
        told = [annotations_of(entry).get("kernelet.dev/weights") for entry in slices(world, space, "web")]
        return [json.loads(text) for text in told if text is not None]

    # The slice that was there before the pods goes.
    await world.until(lambda: [len(entry.endpoints or []) for entry in slices(world, space, "web")] == [2])
    (entry,) = slices(world, space, "web")
    await world.client.patch(EndpointSlice, name_of(entry), {"metadata": {"annotations": {"mine": "kept"}}}, space)
    for text, expected in (("7", [{pod.status.podIP: 7}]), ("1000", []), ("9", [{pod.status.podIP: 9}])):
        patch = {"metadata": {"annotations": {"kernelet.dev/weight": text}}}
        await world.client.patch(Pod, name_of(pod), patch, space)
        await world.until(lambda expected=expected: carried() == expected)  # type: ignore[misc]
    assert annotations_of(slices(world, space, "web")[0])["mine"] == "kept"
    events = await told(world, space, "InvalidWeight")
    assert [(event.involvedObject.name, event.count) for event in events] == [(name_of(pod), 1)]
    assert "kernelet.dev/weight='1000'" in (events[0].message or "")


async def told(world: World, space: str, reason: str) -> list[Event]:
    """Waits for the first."""
    async with asyncio.timeout(15):
        while True:
            listing = await world.client.list(Event, space)
            if found := [event for event in listing.items if event.reason == reason]:
                return found
            async for _ in world.client.watch(Event, space, resource_version=str(listing.revision)):
                break


def by_hand(space: str, *addresses: str, port: int = 8080, **metadata: Any) -> Endpoints:
    subset = {"addresses": [{"ip": address} for address in addresses], "ports": [{"name": "web", "port": port}]}
    return to_model(Endpoints, {"metadata": {"name": "db", "namespace": space, **metadata}, "subsets": [subset]})


async def test_endpoints_kept_by_hand_are_mirrored_into_slices(world: World, space: str) -> None:
    def mirrored() -> set[tuple[str, str]]:
        return {
            (entry.addressType, endpoint.addresses[0])
            for entry in slices(world, space, "db")
            for endpoint in entry.endpoints or []
        }

    await world.client.create(by_hand(space, "192.0.2.1", "2001:db8::1", labels={"a": "1"}, annotations={"b": "2"}))
    await world.client.create(service("db", space, selector=None))
    await world.until(lambda: mirrored() == {("IPv4", "192.0.2.1"), ("IPv6", "2001:db8::1")})
    for entry in slices(world, space, "db"):
        assert labels_of(entry) == {
            "a": "1",
            "kubernetes.io/service-name": "db",
            "endpointslice.kubernetes.io/managed-by": "endpointslicemirroring-controller.k8s.io",
        }
        assert annotations_of(entry) == {"b": "2"}
        owner = controller_of(entry)
        assert owner
        assert (owner.kind, owner.name) == ("Endpoints", "db")
    patch = {"subsets": [{"addresses": [{"ip": "192.0.2.3"}], "ports": [{"name": "web", "port": 9090}]}]}
    await world.client.patch(Endpoints, "db", {**patch, "metadata": {"annotations": {"b": None}}}, space)
    await world.until(lambda: mirrored() == {("IPv4", "192.0.2.3")})
    (entry,) = slices(world, space, "db")
    assert [port.port for port in entry.ports or []] == [9090]
    assert annotations_of(entry) == {}
    await world.client.delete(EndpointSlice, name_of(entry), space)
    await world.until(lambda: mirrored() and name_of(slices(world, space, "db")[0]) != name_of(entry))
    await world.client.delete(Endpoints, "db", space)
    await world.until(lambda: not slices(world, space, "db"))


async def test_mirrored_slices_end_when_the_service_gets_a_selector_and_slices_of_people_stay(
    world: World, space: str
) -> None:
    await world.client.create(service("db", space, selector=None))
    mine = {
        "metadata": {"name": "mine", "namespace": space, "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["198.51.100.1"]}],
    }
    await world.client.create(to_model(EndpointSlice, mine))
    await world.client.create(by_hand(space, "192.0.2.1"))
    await world.until(lambda: len(slices(world, space, "db")) == 2)
    await world.client.patch(Service, "db", {"spec": {"selector": {"app": "nobody"}}}, space)

    def managers() -> list[str]:
        found = slices(world, space, "db")
        return sorted(labels_of(entry).get("endpointslice.kubernetes.io/managed-by", "") for entry in found)

    await world.until(lambda: managers() == ["", "endpointslice-controller.k8s.io"])
    assert [name_of(entry) for entry in slices(world, space, "db")].count("mine") == 1
