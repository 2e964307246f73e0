"""The controllers against the real API server and scheduler; kubelets are played."""

from __future__ import annotations

from typing import Any

import pytest
from controllers_world import Kubelet, World, deployment, replica_set, service, set_pod, template
from lightkube.models.apps_v1 import Deployment, ReplicaSet
from lightkube.models.core_v1 import (
    ConfigMap,
    Endpoints,
    Namespace,
    Node,
    Pod,
    ReplicationController,
    Service,
    ServiceAccount,
)
from lightkube.models.discovery_v1 import Endpoint, EndpointSlice
from lightkube.models.meta_v1 import ObjectMeta, OwnerReference

from kernelet.core.api.errors import NotFound
from kernelet.core.api.models import to_model
from kernelet.core.controllers.access import controller_of, deleting, labels_of, name_of, uid_of
from kernelet.core.controllers.pods import active, node_name, ready


def live(world: World, space: str) -> list[Pod]:
    return [pod for pod in world.items(Pod, space) if active(pod)]


def ready_pods(world: World, space: str) -> list[Pod]:
    return [pod for pod in live(world, space) if ready(pod)]


def endpoints(world: World, space: str, name: str) -> list[Endpoint]:
    slices = [
        entry
        for entry in world.items(EndpointSlice, space)
        if labels_of(entry).get("kubernetes.io/service-name") == name
    ]
    return [endpoint for entry in slices for endpoint in entry.endpoints or []]


def ready_endpoints(world: World, space: str, name: str) -> set[str]:
    return {e.addresses[0] for e in endpoints(world, space, name) if e.conditions and e.conditions.ready}


async def test_a_replica_set_has_as_many_pods_as_it_wants(world: World, space: str, kubelets: list[Kubelet]) -> None:
    await world.client.create(replica_set("web", space, 5))
    world.always(lambda: _no_more_than(world, space, 5))
    await world.until(lambda: len(ready_pods(world, space)) == 5)
    await world.until(lambda: _available(world.get(ReplicaSet, "web", space)) == 5)
    await world.client.patch(ReplicaSet, "web", {"spec": {"replicas": 2}}, space)
    await world.until(lambda: len(world.items(Pod, space)) == 2)
    await world.client.delete(Pod, name_of(world.items(Pod, space)[0]), space)
    await world.until(lambda: len(ready_pods(world, space)) == 2)


def _no_more_than(world: World, space: str, count: int) -> None:
    assert len(live(world, space)) <= count


def _ready_count(owner: Any) -> int:
    return (owner.status.readyReplicas if owner and owner.status else 0) or 0


def _available(owner: Any) -> int:
    return (owner.status.availableReplicas if owner and owner.status else 0) or 0


async def test_a_replica_set_adopts_what_it_selects_and_releases_what_it_no_longer_does(
    world: World, space: str, kubelets: list[Kubelet]
) -> None:
    made = replica_set("web", space, 2)
    assert made.spec and made.spec.template
    orphan = Pod(
        metadata=ObjectMeta(name="orphan", namespace=space, labels={"app": "web"}), spec=made.spec.template.spec
    )
    await world.client.create(orphan)
    await world.client.create(made)
    await world.until(lambda: len(ready_pods(world, space)) == 2)
    await world.until(lambda: (pod := world.get(Pod, "orphan", space)) and controller_of(pod))
    await world.client.patch(Pod, "orphan", {"metadata": {"labels": {"app": "other"}}}, space)
    await world.until(lambda: (pod := world.get(Pod, "orphan", space)) and controller_of(pod) is None)
    await world.until(lambda: len(ready_pods(world, space)) == 3)


async def test_a_rolling_update_stays_within_its_bounds_and_ends(
    world: World, space: str, kubelets: list[Kubelet]
) -> None:
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}}
    await world.client.create(deployment("web", space, 4, strategy=rolling))
    await world.until(lambda: _available(world.get(Deployment, "web", space)) == 4)
    wanted: list[int] = []

    def check() -> None:
        wanted.append(sum((entry.spec.replicas or 0) for entry in world.items(ReplicaSet, space) if entry.spec))
        assert wanted[-1] <= 5, f"sets want {wanted[-1]} pods"
        assert len(ready_pods(world, space)) >= 3, world.summary()

    world.always(check)
    container = {"name": "main", "image": "app:2", "ports": [{"name": "http", "containerPort": 8080}]}
    patch = {"spec": {"template": {"spec": {"containers": [container]}}}}
    await world.client.patch(Deployment, "web", patch, space)
    await world.until(lambda: _images(world, space) == ["app:2"] * 4)
    await world.until(lambda: _progress(world, space) == "NewReplicaSetAvailable")
    found = world.get(Deployment, "web", space)
    assert found and found.metadata and found.metadata.annotations
    assert found.metadata.annotations["deployment.kubernetes.io/revision"] == "2"
    undo = {"spec": {"template": {"spec": {"containers": [container | {"image": "app:1"}]}}}}
    await world.client.patch(Deployment, "web", undo, space)
    await world.until(lambda: _images(world, space) == ["app:1"] * 4)
    assert len(world.items(ReplicaSet, space)) == 2


def _images(world: World, space: str) -> list[str]:
    pods = [pod for pod in world.items(Pod, space) if ready(pod)]
    return sorted(pod.spec.containers[0].image or "" for pod in pods if pod.spec)


def _progress(world: World, space: str) -> str:
    found = world.get(Deployment, "web", space)
    conditions = (found.status.conditions if found and found.status else None) or []
    return next((entry.reason or "" for entry in conditions if entry.type == "Progressing"), "")


async def test_recreate_starts_no_new_pod_before_the_last_old_one_is_gone(
    world: World, space: str, kubelets: list[Kubelet]
) -> None:
    await world.client.create(deployment("web", space, 3, strategy={"type": "Recreate"}))
    await world.until(lambda: _available(world.get(Deployment, "web", space)) == 3)
    world.always(lambda: _one_image(world, space))
    container = {"name": "main", "image": "app:2"}
    patch = {"spec": {"template": {"spec": {"containers": [container]}}}}
    await world.client.patch(Deployment, "web", patch, space)
    await world.until(lambda: _images(world, space) == ["app:2"] * 3)


def _one_image(world: World, space: str) -> None:
    assert len({pod.spec.containers[0].image for pod in world.items(Pod, space) if pod.spec}) <= 1


async def test_a_paused_deployment_scales_but_rolls_nothing_out(
    world: World, space: str, kubelets: list[Kubelet]
) -> None:
    await world.client.create(deployment("web", space, 2))
    await world.until(lambda: _available(world.get(Deployment, "web", space)) == 2)
    container = {"name": "main", "image": "app:2"}
    spec = {"paused": True, "replicas": 3, "template": {"spec": {"containers": [container]}}}
    await world.client.patch(Deployment, "web", {"spec": spec}, space)
    await world.until(lambda: _images(world, space) == ["app:1"] * 3)
    await world.client.patch(Deployment, "web", {"spec": {"paused": False}}, space)
    await world.until(lambda: _images(world, space) == ["app:2"] * 3)


async def test_endpoints_follow_readiness_and_leave_at_once_when_a_pod_terminates(
    world: World, space: str, kubelets: list[Kubelet]
) -> None:
    await world.client.create(service("web", space))
    await world.client.create(replica_set("web", space, 2))
    await world.until(lambda: len(ready_endpoints(world, space, "web")) == 2)
    found = endpoints(world, space, "web")[0]
    assert found.nodeName in {kubelet.name for kubelet in kubelets}
    assert found.targetRef and found.targetRef.kind == "Pod"
    assert world.items(EndpointSlice, space)[0].ports[0].port == 8080  # type: ignore[index]
    for kubelet in kubelets:
        kubelet.becomes_ready = lambda pod: False
    pod = ready_pods(world, space)[0]
    await set_pod(world.client, pod, "False")
    await world.until(lambda: len(ready_endpoints(world, space, "web")) == 1)
    assert len(endpoints(world, space, "web")) == 2
    for kubelet in kubelets:
        await kubelet.stop()
    last = ready_pods(world, space)[0]
    await world.client.delete(Pod, name_of(last), space)
    await world.until(lambda: not ready_endpoints(world, space, "web"))
    terminating = [e for e in endpoints(world, space, "web") if e.conditions and e.conditions.terminating]
    assert [(e.conditions.serving, e.conditions.ready) for e in terminating if e.conditions] == [(True, False)]
    legacy = await world.client.get(Endpoints, "web", space)
    assert legacy.metadata


async def test_slices_and_endpoints_go_with_their_service(world: World, space: str, kubelets: list[Kubelet]) -> None:
    await world.client.create(service("web", space))
    await world.until(lambda: world.items(EndpointSlice, space))
    await world.client.delete(Service, "web", space)
    await world.until(lambda: not world.items(EndpointSlice, space))


async def test_a_silent_node_loses_its_endpoints_and_pods_to_another_and_gets_them_back_if_it_returns(
    world: World, space: str, kubelets: list[Kubelet]
) -> None:
    lost, other = kubelets
    await world.client.create(service("web", space))
    await world.client.create(deployment("web", space, 4))
    await world.until(lambda: len(ready_endpoints(world, space, "web")) == 4)
    there = {pod.status.podIP for pod in ready_pods(world, space) if node_name(pod) == lost.name and pod.status}
    assert there, "the scheduler spreads"
    await lost.stop()
    await world.until(lambda: not there & ready_endpoints(world, space, "web"), seconds=5)
    await world.until(lambda: _taints(world, lost.name) >= {("node.kubernetes.io/unreachable", "NoExecute")})
    await world.until(lambda: _ready_status(world, lost.name) == "Unknown")
    await world.until(lambda: len(ready_endpoints(world, space, "web")) == 4)
    assert {node_name(pod) for pod in ready_pods(world, space)} == {other.name}
    await lost.start()
    await world.until(lambda: not _taints(world, lost.name))
    await world.until(lambda: all(node_name(pod) != lost.name for pod in world.items(Pod, space)))


async def test_nothing_is_evicted_nor_taken_from_the_routes_when_all_nodes_fall_silent(
    world: World, space: str, kubelets: list[Kubelet]
) -> None:
    await world.client.create(service("web", space))
    await world.client.create(deployment("web", space, 4))
    await world.until(lambda: len(ready_endpoints(world, space, "web")) == 4)
    before = ready_endpoints(world, space, "web")

    def check() -> None:
        assert ready_endpoints(world, space, "web") == before, world.summary()

    world.always(check)
    for kubelet in kubelets:
        await kubelet.stop()
    await world.until(lambda: all(_ready_status(world, k.name) == "Unknown" for k in kubelets))
    for kubelet in kubelets:
        await kubelet.start()
    await world.until(lambda: not any(_taints(world, k.name) for k in kubelets))


def _taints(world: World, name: str) -> set[tuple[str, str]]:
    node = world.get(Node, name)
    return {(taint.key, taint.effect) for taint in (node.spec.taints if node and node.spec else None) or []}


def _ready_status(world: World, name: str) -> str:
    node = world.get(Node, name)
    conditions = (node.status.conditions if node and node.status else None) or []
    return next((entry.status for entry in conditions if entry.type == "Ready"), "")


async def test_pods_of_a_deleted_node_are_removed(world: World, space: str, kubelets: list[Kubelet]) -> None:
    await world.client.create(replica_set("web", space, 4))
    await world.until(lambda: len(ready_pods(world, space)) == 4)
    gone = kubelets[0]
    await gone.stop()
    await world.client.delete(Node, gone.name)
    await world.until(lambda: all(node_name(pod) != gone.name for pod in world.items(Pod, space)))
    await world.until(lambda: len(ready_pods(world, space)) == 4)


async def test_every_node_gets_a_subnet_of_its_own(world: World, kubelets: list[Kubelet]) -> None:
    await world.until(lambda: all(_subnet(world, kubelet.name) for kubelet in kubelets))
    subnets = {_subnet(world, kubelet.name) for kubelet in kubelets}
    assert len(subnets) == 2
    assert all(subnet.startswith("10.244.") and subnet.endswith(".0/24") for subnet in subnets)


def _subnet(world: World, name: str) -> str:
    node = world.get(Node, name)
    return (node.spec.podCIDR if node and node.spec else "") or ""


@pytest.mark.parametrize("policy", ["Background", "Foreground", "Orphan"])
async def test_a_deleted_deployment_takes_its_sets_and_pods_along_or_leaves_them(
    world: World, space: str, kubelets: list[Kubelet], policy: str
) -> None:
    await world.client.create(deployment("web", space, 3))
    await world.until(lambda: len(ready_pods(world, space)) == 3)
    await world.client.delete(Deployment, "web", space, propagation=policy)
    await world.until(lambda: world.get(Deployment, "web", space) is None)
    if policy == "Orphan":
        assert len(ready_pods(world, space)) == 3
        assert [controller_of(entry) for entry in world.items(ReplicaSet, space)] == [None]
        return
    if policy == "Foreground":
        assert not world.items(ReplicaSet, space)
    await world.until(lambda: not world.items(ReplicaSet, space) and not world.items(Pod, space))


async def test_an_object_goes_with_the_last_of_its_owners_only(world: World, space: str) -> None:
    owners = [await world.client.create(ConfigMap(metadata=ObjectMeta(name=n, namespace=space))) for n in ("a", "b")]
    references = [OwnerReference(apiVersion="v1", kind="ConfigMap", name=name_of(o), uid=uid_of(o)) for o in owners]
    await world.client.create(service("web", space))
    await world.client.patch(
        Service, "web", {"metadata": {"ownerReferences": [_json(reference) for reference in references]}}, space
    )
    await world.client.delete(ConfigMap, "a", space)
    await world.until(lambda: len(_owners(world, space)) == 1)
    await world.client.delete(ConfigMap, "b", space)
    await world.until(lambda: world.get(Service, "web", space) is None)


def _json(reference: OwnerReference) -> dict[str, str]:
    return {key: getattr(reference, key) for key in ("apiVersion", "kind", "name", "uid")}


def _owners(world: World, space: str) -> list[OwnerReference]:
    found = world.get(Service, "web", space)
    return (found.metadata.ownerReferences if found and found.metadata else None) or []


async def test_an_object_whose_owner_never_existed_is_collected(world: World, space: str) -> None:
    absent = OwnerReference(
        apiVersion="v1", kind="ConfigMap", name="nobody", uid="00000000-0000-0000-0000-000000000000"
    )
    made = service("web", space)
    assert made.metadata
    made.metadata.ownerReferences = [absent]
    await world.client.create(made)
    await world.until(lambda: world.get(Service, "web", space) is None)


async def test_a_deleted_namespace_takes_everything_along_and_waits_for_its_pods(
    world: World, space: str, kubelets: list[Kubelet]
) -> None:
    await world.client.create(deployment("web", space, 3))
    await world.client.create(service("web", space))
    await world.until(lambda: len(ready_pods(world, space)) == 3)
    await world.client.delete(Namespace, space)
    await world.until(lambda: world.get(Namespace, space) is None)
    assert not world.items(Pod, space)
    with pytest.raises(NotFound):
        await world.client.get(ConfigMap, "kube-root-ca.crt", space)


async def test_every_namespace_has_its_service_account_and_the_ca(world: World, space: str) -> None:
    def both() -> set[str]:
        account, roots = world.get(ServiceAccount, "default", space), world.get(ConfigMap, "kube-root-ca.crt", space)
        if account is None or roots is None or roots.data != {"ca.crt": world.client.config.ca_pem.decode()}:
            return set()
        return {uid_of(account), uid_of(roots)}

    await world.until(both)
    first = both()
    await world.client.delete(ServiceAccount, "default", space)
    await world.client.delete(ConfigMap, "kube-root-ca.crt", space)
    await world.until(lambda: both() and not both() & first)


async def test_pods_that_were_deleted_before_they_were_bound_do_not_linger(world: World, space: str) -> None:
    pod = Pod(
        metadata=ObjectMeta(name="waits", namespace=space, finalizers=["example.com/held"]),
        spec=replica_set("web", space, 1).spec.template.spec,  # type: ignore[union-attr]
    )
    await world.client.create(pod)
    await world.client.delete(Pod, "waits", space)
    await world.until(lambda: (found := world.get(Pod, "waits", space)) and deleting(found))
    await world.client.patch(Pod, "waits", {"metadata": {"finalizers": None}}, space)
    await world.until(lambda: world.get(Pod, "waits", space) is None)


async def test_a_replication_controller_keeps_its_pods_as_a_replica_set_does(
    world: World, space: str, kubelets: list[Kubelet]
) -> None:
    spec = {"replicas": 2, "template": template({"app": "web"})}
    made = to_model(ReplicationController, {"metadata": {"name": "web", "namespace": space}, "spec": spec})
    await world.client.create(made)
    await world.until(lambda: len(ready_pods(world, space)) == 2)
    await world.client.delete(Pod, name_of(ready_pods(world, space)[0]), space)
    await world.until(lambda: len(ready_pods(world, space)) == 2)
    assert {owner.kind for pod in live(world, space) if (owner := controller_of(pod))} == {"ReplicationController"}
    await world.client.delete(ReplicationController, "web", space)
    await world.until(lambda: not world.items(Pod, space))


async def test_a_pod_is_available_only_after_it_has_been_ready_for_the_time_asked(
    world: World, space: str, kubelets: list[Kubelet]
) -> None:
    await world.client.create(deployment("web", space, 1, minReadySeconds=2))
    await world.until(lambda: len(ready_pods(world, space)) == 1)
    await world.until(lambda: _ready_count(world.get(Deployment, "web", space)) == 1)
    assert _available(world.get(Deployment, "web", space)) == 0
    await world.until(lambda: _available(world.get(Deployment, "web", space)) == 1)


async def test_an_update_without_progress_is_reported_when_its_deadline_has_passed_and_recovers(
    world: World, space: str, kubelets: list[Kubelet]
) -> None:
    for kubelet in kubelets:
        kubelet.becomes_ready = lambda pod: False
    await world.client.create(deployment("web", space, 1, progressDeadlineSeconds=1))
    await world.until(lambda: _progress(world, space) == "ProgressDeadlineExceeded")
    for kubelet in kubelets:
        kubelet.becomes_ready = lambda pod: True
    await world.until(lambda: _progress(world, space) == "NewReplicaSetAvailable")


async def test_scaling_in_the_middle_of_an_update_is_shared_between_old_and_new(
    world: World, space: str, kubelets: list[Kubelet]
) -> None:
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 2}}
    await world.client.create(deployment("web", space, 4, strategy=rolling))
    await world.until(lambda: _available(world.get(Deployment, "web", space)) == 4)
    for kubelet in kubelets:
        kubelet.becomes_ready = lambda pod: bool(pod.spec) and pod.spec.containers[0].image == "app:1"
    container = {"name": "main", "image": "app:2"}
    patch = {"spec": {"template": {"spec": {"containers": [container]}}}}
    await world.client.patch(Deployment, "web", patch, space)
    await world.until(lambda: _wanted(world, space) == [2, 2])
    await world.client.patch(Deployment, "web", {"spec": {"replicas": 8}}, space)
    await world.until(lambda: _wanted(world, space) == [4, 4])
    for kubelet in kubelets:
        kubelet.becomes_ready = lambda pod: True
    await world.until(lambda: _images(world, space) == ["app:2"] * 8)


def _wanted(world: World, space: str) -> list[int]:
    return sorted((entry.spec.replicas or 0) for entry in world.items(ReplicaSet, space) if entry.spec)
