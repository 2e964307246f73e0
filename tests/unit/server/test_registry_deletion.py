from __future__ import annotations

import pytest

from kernelet.core.api import times
from kernelet.core.api.errors import Conflict, Invalid, NotFound
from kernelet.core.server.registry import Registry
from kernelet.core.server.requests import DeleteOptions, ListOptions, WriteOptions

from .helpers import Api, config_map, pod


async def running(api: Api, registry: Registry, name: str, **meta: object) -> dict:
    made = await api.create(pod(name, **meta))
    await registry.bind(api.user, "default", name, made["metadata"]["uid"], "n1")
    return await api.get("po", name)


async def test_an_unscheduled_pod_is_removed_at_once(api: Api) -> None:
    await api.create(pod("a"))
    assert (await api.delete("po", "a"))["metadata"]["name"] == "a"
    with pytest.raises(NotFound, match='pods "a" not found'):
        await api.get("po", "a")


async def test_a_finished_pod_is_removed_at_once(api: Api, registry: Registry) -> None:
    await running(api, registry, "a")
    await api.patch("po", "a", {"status": {"phase": "Succeeded"}}, "status")
    await api.delete("po", "a")
    with pytest.raises(NotFound):
        await api.get("po", "a")


async def test_a_running_pod_is_marked_and_removed_by_its_kubelet(api: Api, registry: Registry) -> None:
    await running(api, registry, "a")
    marked = (await api.delete("po", "a"))["metadata"]
    assert marked["deletionGracePeriodSeconds"] == 30
    left = times.parse(marked["deletionTimestamp"]) - times.now()
    assert 28 < left.total_seconds() < 31
    assert (await api.delete("po", "a"))["metadata"] == marked
    shorter = (await api.delete("po", "a", grace_period_seconds=5))["metadata"]
    assert shorter["deletionGracePeriodSeconds"] == 5
    assert shorter["deletionTimestamp"] < marked["deletionTimestamp"]
    await api.delete("po", "a", grace_period_seconds=0)
    with pytest.raises(NotFound):
        await api.get("po", "a")


async def test_an_object_with_finalizers_goes_with_the_last_one(api: Api) -> None:
    await api.create(config_map("a") | {"metadata": {"name": "a", "finalizers": ["x.io/a", "x.io/b"]}})
    assert (await api.delete("cm", "a"))["metadata"]["deletionTimestamp"]
    await api.patch("cm", "a", {"metadata": {"finalizers": ["x.io/b"]}})
    with pytest.raises(Invalid, match="no new finalizers can be added"):
        await api.patch("cm", "a", {"metadata": {"finalizers": ["x.io/b", "x.io/c"]}})
    await api.patch("cm", "a", {"metadata": {"finalizers": None}})
    with pytest.raises(NotFound):
        await api.get("cm", "a")


@pytest.mark.parametrize(("policy", "finalizer"), [("Foreground", "foregroundDeletion"), ("Orphan", "orphan")])
async def test_propagation_waits_with_a_finalizer(api: Api, policy: str, finalizer: str) -> None:
    await api.create(config_map("a"))
    marked = await api.delete("cm", "a", propagation_policy=policy)
    assert marked["metadata"]["finalizers"] == [finalizer]
    await api.delete("cm", "a", propagation_policy="Background")
    with pytest.raises(NotFound):
        await api.get("cm", "a")


async def test_a_delete_answers_with_a_status_of_success(api: Api) -> None:
    made = await api.create(config_map("a"))
    status = await api.delete("cm", "a")
    details = {"name": "a", "kind": "configmaps", "uid": made["metadata"]["uid"]}
    assert (status["status"], status["details"]) == ("Success", details)


async def test_preconditions_protect_another_object(api: Api) -> None:
    made = await api.create(config_map("a"))
    with pytest.raises(Conflict, match="UID in precondition: other"):
        await api.delete("cm", "a", uid="other")
    with pytest.raises(Conflict, match="ResourceVersion"):
        await api.delete("cm", "a", resource_version="1")
    await api.delete("cm", "a", uid=made["metadata"]["uid"])


async def test_a_collection_is_deleted_by_selector(api: Api, registry: Registry) -> None:
    for index in range(30):
        label = {"labels": {"keep": str(index % 2)}}
        await api.create(config_map(f"a{index}") | {"metadata": {"name": f"a{index}"} | label})
    await registry.delete_collection(api.user, api.ref("cm"), ListOptions("keep=0"), DeleteOptions())
    assert len(await api.names("cm")) == 15


async def test_an_eviction_deletes_the_pod(api: Api, registry: Registry) -> None:
    await running(api, registry, "a")
    ref = api.ref("po", "a", subresource="eviction")
    await registry.create(api.user, ref, {"deleteOptions": {"gracePeriodSeconds": 7}}, WriteOptions())
    assert (await api.get("po", "a"))["metadata"]["deletionGracePeriodSeconds"] == 7


async def test_a_dry_run_deletes_nothing(api: Api) -> None:
    await api.create(config_map("a"))
    await api.delete("cm", "a", dry_run=True)
    assert await api.names("cm") == ["a"]
