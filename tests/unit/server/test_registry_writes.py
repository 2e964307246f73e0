from __future__ import annotations

import asyncio

import pytest

from kernelet.core.api import codec
from kernelet.core.api.errors import (
    AlreadyExists,
    BadRequest,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    ServiceUnavailable,
)
from kernelet.core.api.patch import JSON_PATCH
from kernelet.core.security.users import User
from kernelet.core.server.registry import Registry
from kernelet.core.server.requests import WriteOptions
from kernelet.core.store import Store

from .helpers import Api, config_map, deployment, pod, service


async def test_a_created_object_has_uid_time_and_the_revision_of_its_write(api: Api) -> None:
    written = await api.written(config_map("a", k="v"))
    made = codec.decode(written.json)
    assert made["metadata"]["resourceVersion"] == str(written.revision)
    assert made["metadata"]["uid"] and made["metadata"]["creationTimestamp"]
    assert await api.get("cm", "a") == made
    with pytest.raises(AlreadyExists, match='configmaps "a" already exists'):
        await api.create(config_map("a"))


async def test_generate_name_gives_distinct_names(api: Api) -> None:
    body = {"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"generateName": "web-"}}
    names = {(await api.create(body))["metadata"]["name"] for _ in range(20)}
    assert len(names) == 20 and all(name.startswith("web-") for name in names)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"metadata": {}}, Invalid, "metadata.name"),
        ({"metadata": {"name": "x", "namespace": "other"}}, BadRequest, "does not match the namespace"),
        ({"metadata": {"name": "x", "resourceVersion": "5"}}, BadRequest, "resourceVersion should not be set"),
        ({"metadata": {"name": "NOT_A_NAME"}}, Invalid, "metadata.name"),
        ({"metadata": "text"}, BadRequest, "metadata"),
        ({"data": {"k": 5}}, Invalid, "data"),
    ],
)
async def test_a_malformed_object_is_refused_by_the_field_at_fault(
    api: Api, change: dict, error: type, text: str
) -> None:
    with pytest.raises(error, match=text):
        await api.create(config_map("x") | change)


async def test_creation_needs_a_namespace_that_exists_and_is_not_going_away(api: Api) -> None:
    with pytest.raises(NotFound, match='namespaces "nowhere" not found'):
        await api.create(config_map("a"), "nowhere")
    await api.create({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "team"}})
    assert (await api.delete("ns", "team"))["status"]["phase"] == "Terminating"
    with pytest.raises(Forbidden, match="because it is being terminated"):
        await api.create(config_map("a"), "team")


async def test_a_namespace_goes_once_its_finalizer_is_taken(api: Api) -> None:
    made = await api.create({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "team"}})
    assert made["spec"]["finalizers"] == ["kubernetes"]
    marked = await api.delete("ns", "team")
    await api.update(marked | {"spec": {"finalizers": []}}, "finalize")
    with pytest.raises(NotFound):
        await api.get("ns", "team")


async def test_an_update_of_a_stale_object_conflicts_and_without_revision_wins(api: Api) -> None:
    first = await api.create(config_map("a", k="1"))
    second = await api.update(first | {"data": {"k": "2"}})
    with pytest.raises(Conflict, match="the object has been modified"):
        await api.update(first | {"data": {"k": "3"}})
    assert (await api.update(config_map("a", k="4") | {"metadata": {"name": "a", "namespace": "default"}}))["data"] == {
        "k": "4"
    }
    assert second["metadata"]["uid"] == first["metadata"]["uid"]


async def test_an_update_that_changes_nothing_writes_nothing(api: Api) -> None:
    made = await api.create(deployment("web"))
    assert (await api.update(made))["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    assert (await api.patch("deploy", "web", {"spec": {"replicas": 1}}))["metadata"]["resourceVersion"] == made[
        "metadata"
    ]["resourceVersion"]


async def test_generation_counts_changes_of_spec_alone(api: Api) -> None:
    await api.create(deployment("web"))
    assert (await api.patch("deploy", "web", {"metadata": {"labels": {"a": "b"}}}))["metadata"]["generation"] == 1
    assert (await api.patch("deploy", "web", {"status": {"replicas": 1}}, "status"))["metadata"]["generation"] == 1
    assert (await api.patch("deploy", "web", {"spec": {"replicas": 3}}))["metadata"]["generation"] == 2


async def test_spec_and_status_are_written_apart(api: Api) -> None:
    made = await api.create(deployment("web") | {"status": {"replicas": 9}})
    assert made["status"].get("replicas", 0) == 0
    both = made | {"spec": made["spec"] | {"replicas": 5}, "status": {"replicas": 2}}
    by_status = await api.update(both, "status")
    assert (by_status["spec"]["replicas"], by_status["status"]["replicas"]) == (1, 2)
    both = by_status | {"spec": made["spec"] | {"replicas": 5}, "status": {"replicas": 7}}
    by_spec = await api.update(both)
    assert (by_spec["spec"]["replicas"], by_spec["status"]["replicas"]) == (5, 2)


async def test_what_the_server_set_cannot_be_changed(api: Api) -> None:
    made = await api.create(config_map("a"))
    forged = made | {
        "metadata": made["metadata"] | {"creationTimestamp": "2001-01-01T00:00:00Z", "deletionTimestamp": "x"}
    }
    kept = (await api.update(forged))["metadata"]
    assert kept["creationTimestamp"] == made["metadata"]["creationTimestamp"] and "deletionTimestamp" not in kept
    with pytest.raises(Conflict, match="UID in precondition"):
        await api.update(made | {"metadata": made["metadata"] | {"uid": "another"}})


async def test_concurrent_patches_all_take_effect(api: Api) -> None:
    await api.create(config_map("a"))
    await asyncio.gather(*(api.patch("cm", "a", {"data": {f"k{i}": "v"}}) for i in range(40)))
    assert len((await api.get("cm", "a"))["data"]) == 40


async def test_a_patch_that_names_a_stale_revision_conflicts(api: Api) -> None:
    made = await api.create(config_map("a"))
    await api.patch("cm", "a", {"data": {"k": "v"}})
    with pytest.raises(Conflict):
        stale = {"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}, "data": {"k": "w"}}
        await api.patch("cm", "a", stale)
    with pytest.raises(Conflict):
        operation = {"op": "replace", "path": "/metadata/resourceVersion", "value": "1"}
        await api.patch("cm", "a", [operation], media=JSON_PATCH)


async def test_unknown_fields_are_warned_of_refused_or_ignored(api: Api) -> None:
    body = pod("a") | {"spec": pod("a")["spec"] | {"colour": "blue"}}
    assert (await api.written(body, dry_run=True)).warnings == ['unknown field "spec.colour"']
    assert (await api.written(body, dry_run=True, field_validation="Ignore")).warnings == []
    with pytest.raises(BadRequest, match=r'strict decoding error: unknown field "spec\.colour"'):
        await api.written(body, field_validation="Strict")


async def test_a_dry_run_answers_and_writes_nothing(api: Api) -> None:
    assert (await api.create(service("web"), dry_run=True))["spec"]["clusterIP"]
    with pytest.raises(NotFound):
        await api.get("svc", "web")
    made = await api.create(config_map("a", k="1"))
    assert (await api.update(made | {"data": {"k": "2"}}, dry_run=True))["data"] == {"k": "2"}
    assert (await api.get("cm", "a"))["data"] == {"k": "1"}


async def test_scale_is_read_and_written_for_a_workload(api: Api) -> None:
    await api.create(deployment("web", 2))
    scale = await api.get("deploy", "web", subresource="scale")
    assert (scale["kind"], scale["spec"], scale["status"]["selector"]) == ("Scale", {"replicas": 2}, "app=web")
    scale["spec"]["replicas"] = 4
    assert (await api.update(scale, "scale"))["spec"]["replicas"] == 4
    with pytest.raises(Conflict):
        await api.update(scale | {"spec": {"replicas": 5}}, "scale")
    assert (await api.patch("deploy", "web", {"spec": {"replicas": 0}}, "scale"))["spec"]["replicas"] == 0
    with pytest.raises(Invalid, match=r"spec\.replicas"):
        await api.patch("deploy", "web", {"spec": {"replicas": -1}}, "scale")
    assert (await api.get("deploy", "web"))["metadata"]["generation"] == 3
    with pytest.raises(NotFound):
        await api.get("cm", "a", subresource="scale")


async def test_pods_get_their_admission_defaults(api: Api) -> None:
    made = await api.create(pod("a") | {"status": {"phase": "Running"}})
    assert made["status"] == {"phase": "Pending", "qosClass": "BestEffort"}
    assert made["spec"]["serviceAccountName"] == "default"
    found = {(t["key"], t["effect"], t["tolerationSeconds"]) for t in made["spec"]["tolerations"]}
    assert found == {(f"node.kubernetes.io/{what}", "NoExecute", 30) for what in ("not-ready", "unreachable")}
    tolerant = pod("b")
    tolerant["spec"]["tolerations"] = [{"operator": "Exists"}]
    assert (await api.create(tolerant))["spec"]["tolerations"] == [{"operator": "Exists"}]


async def test_of_many_binds_one_wins(api: Api, registry: Registry) -> None:
    made = await api.create(pod("a"))
    uid = made["metadata"]["uid"]
    binds = (registry.bind(api.user, "default", "a", uid, f"n{i}") for i in range(10))
    results = await asyncio.gather(*binds, return_exceptions=True)
    assert sum(isinstance(result, bytes) for result in results) == 1
    bound = await api.get("po", "a")
    losers = [result for result in results if isinstance(result, Conflict)]
    assert len(losers) == 9
    assert f'pod a is already assigned to node "{bound["spec"]["nodeName"]}"' in str(losers[0])
    assert bound["status"]["conditions"][0] | {"lastTransitionTime": ""} == {
        "type": "PodScheduled",
        "status": "True",
        "lastTransitionTime": "",
    }


async def test_a_bind_by_the_binding_subresource_checks_the_uid(api: Api, registry: Registry) -> None:
    await api.create(pod("a"))
    ref = api.ref("po", "a", subresource="binding")
    with pytest.raises(Conflict, match="UID"):
        await registry.create(api.user, ref, {"metadata": {"uid": "x"}, "target": {"name": "n1"}}, WriteOptions())
    await registry.create(api.user, ref, {"target": {"kind": "Node", "name": "n1"}}, WriteOptions())
    assert (await api.get("po", "a"))["spec"]["nodeName"] == "n1"


async def test_users_without_a_role_are_refused_in_kubernetes_words(registry: Registry) -> None:
    stranger = Api(registry, User("x"))
    with pytest.raises(Forbidden) as caught:
        await stranger.page("po")
    assert str(caught.value) == (
        'pods is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace "default"'
    )


async def test_a_node_writes_itself_and_no_other(registry: Registry) -> None:
    node = Api(registry, User("system:node:n1", ("system:nodes",)))
    await node.create({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n1"}}, "")
    await node.patch("no", "n1", {"status": {"conditions": []}}, "status", namespace="")
    with pytest.raises(Forbidden):
        await node.create({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n2"}}, "")
    with pytest.raises(Forbidden):
        await node.create(config_map("a"))


async def test_a_store_that_is_gone_is_reported_as_unavailable(api: Api, store: Store) -> None:
    await store.close()
    with pytest.raises(ServiceUnavailable, match="the store is unavailable"):
        await api.create(config_map("a"))
