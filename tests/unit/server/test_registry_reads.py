from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from kernelet.core.api import codec
from kernelet.core.api.errors import BadRequest, Expired, Timeout
from kernelet.core.server import watchers, watches
from kernelet.core.server.registry import Registry, RegistryConfig
from kernelet.core.store import Store

from .helpers import Api, config_map, deployment, pod


async def fill(api: Api, count: int) -> None:
    await asyncio.gather(*(api.create(config_map(f"c{index:02}")) for index in range(count)))


async def test_a_read_follows_every_write_at_once(api: Api) -> None:
    for index in range(50):
        await api.create(config_map(f"a{index}"))
        assert f"a{index}" in await api.names("cm")
        await api.patch("cm", f"a{index}", {"data": {"k": str(index)}})
        assert (await api.get("cm", f"a{index}"))["data"]["k"] == str(index)


async def test_pages_are_one_snapshot_whatever_is_written_between(api: Api) -> None:
    await fill(api, 10)
    page = await api.page("cm", limit=4)
    assert page.remaining == 6
    await api.delete("cm", "c05")
    await api.create(config_map("c055"))
    found = list(page.items)
    while page.continue_:
        page = await api.page("cm", limit=4, continue_=page.continue_)
        found += page.items
    assert [codec.decode(item)["metadata"]["name"] for item in found] == [f"c{index:02}" for index in range(10)]


async def test_pages_of_a_selection_are_full(api: Api) -> None:
    for index in range(12):
        await api.create(config_map("x") | {"metadata": {"name": f"c{index:02}", "labels": {"odd": str(index % 2)}}})
    page = await api.page("cm", limit=4, label_selector="odd=1")
    await api.create(config_map("zz"))
    rest = await api.page("cm", limit=4, label_selector="odd=1", continue_=page.continue_)
    assert (len(page.items), len(rest.items), rest.continue_) == (4, 2, "")


async def test_a_token_whose_snapshot_is_compacted_has_expired(api: Api, store: Store) -> None:
    await fill(api, 4)
    page = await api.page("cm", limit=2)
    await fill_again(api)
    await store.compact(await store.revision())
    with pytest.raises(Expired, match="continue parameter is too old"):
        await api.page("cm", limit=2, continue_=page.continue_)
    with pytest.raises(BadRequest, match="continue key is not valid"):
        await api.page("cm", continue_="nonsense")


async def fill_again(api: Api) -> None:
    for index in range(4):
        await api.patch("cm", f"c{index:02}", {"data": {"k": "v"}})


async def test_lists_select_by_labels_and_fields(api: Api, registry: Registry) -> None:
    for name, node in (("a", "n1"), ("b", "n2"), ("c", "")):
        made = await api.create(pod(name, labels={"app": name}))
        if node:
            await registry.bind(api.user, "default", name, made["metadata"]["uid"], node)
    assert await api.names("po", field_selector="spec.nodeName=n1") == ["a"]
    assert await api.names("po", field_selector="spec.nodeName!=n1,status.phase=Pending") == ["b", "c"]
    assert await api.names("po", "", label_selector="app in (a,c)") == ["a", "c"]
    assert await api.names("po", field_selector="metadata.name=b,spec.nodeName=n1") == []
    with pytest.raises(BadRequest, match="field label not supported"):
        await api.names("po", field_selector="spec.colour=red")


async def test_a_list_at_an_exact_revision_shows_the_past_and_the_future_is_refused(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await api.create(config_map("a"))
    await api.delete("cm", "a")
    revision = made["metadata"]["resourceVersion"]
    assert await api.names("cm") == []
    assert await api.names("cm", resource_version=revision, resource_version_match="Exact") == ["a"]
    assert await api.names("cm", resource_version=revision) == []
    monkeypatch.setattr(watches, "FRESHNESS_SECONDS", 0.05)
    with pytest.raises(Timeout, match="Too large resource version"):
        await api.names("cm", resource_version="999999")


async def test_a_watch_from_nothing_begins_with_what_stands(api: Api) -> None:
    await fill(api, 2)
    events = await api.events("cm", 3, send_initial_events=True)
    assert [event.type for event in events] == ["ADDED", "ADDED", "BOOKMARK"]
    marked = codec.decode(events[2].json)["metadata"]
    assert marked["annotations"] == {"k8s.io/initial-events-end": "true"}
    assert [event.type for event in await api.events("cm", 2)] == ["ADDED", "ADDED"]


async def test_an_object_that_starts_or_stops_matching_is_added_or_deleted(api: Api) -> None:
    before = (await api.page("cm")).revision
    await api.create(config_map("a"))
    await api.patch("cm", "a", {"metadata": {"labels": {"on": "1"}}})
    await api.patch("cm", "a", {"data": {"k": "v"}})
    last = await api.patch("cm", "a", {"metadata": {"labels": {"on": None}}})
    events = await api.events("cm", 3, label_selector="on=1", resource_version=str(before))
    assert [event.type for event in events] == ["ADDED", "MODIFIED", "DELETED"]
    gone = codec.decode(events[2].json)["metadata"]
    assert gone["labels"] == {"on": "1"}
    assert gone["resourceVersion"] == last["metadata"]["resourceVersion"] == str(events[2].revision)


async def test_a_kubelets_watch_sees_a_pod_from_its_binding(api: Api, registry: Registry) -> None:
    async with aclosing(api.watch("po", "", field_selector="spec.nodeName=n1")) as events:
        pending = asyncio.ensure_future(anext(events))
        for name in ("a", "b"):
            made = await api.create(pod(name))
            await registry.bind(api.user, "default", name, made["metadata"]["uid"], "n1" if name == "b" else "n2")
        event = await asyncio.wait_for(pending, 5)
        assert event.type == "ADDED" and codec.decode(event.json)["metadata"]["name"] == "b"
        await api.delete("po", "b", grace_period_seconds=0)
        assert (await anext(events)).type == "DELETED"


async def test_a_watch_resumed_anywhere_equals_the_history(api: Api) -> None:
    start = (await api.page("cm")).revision

    async def churn(name: str) -> None:
        for _ in range(3):
            await api.create(config_map(name))
            await api.patch("cm", name, {"data": {"k": "1"}})
            await api.delete("cm", name)

    async with aclosing(api.watch("cm", resource_version=str(start))) as events:
        live = asyncio.ensure_future(_take(events, 45))
        await asyncio.gather(*(churn(f"c{index}") for index in range(5)))
        history = await asyncio.wait_for(live, 10)
    assert [event.revision for event in history] == sorted({event.revision for event in history})
    for position in range(0, 44, 4):
        resumed = await api.events("cm", 44 - position, resource_version=str(history[position].revision))
        assert resumed == history[position + 1 :]


async def _take(events: Any, count: int) -> list[Any]:
    return [await anext(events) for _ in range(count)]


async def test_a_watch_resumes_over_a_restart_of_the_server(store: Store) -> None:
    async with Registry(store) as first:
        api = Api(first)
        made = await api.create(config_map("a"))
        await api.patch("cm", "a", {"data": {"k": "v"}})
        await api.delete("cm", "a")
    async with Registry(store) as second:
        events = await Api(second).events("cm", 2, resource_version=made["metadata"]["resourceVersion"])
        assert [event.type for event in events] == ["MODIFIED", "DELETED"]


async def test_a_watch_from_a_revision_that_is_gone_has_expired(store: Store) -> None:
    async with Registry(store) as first:
        await fill(Api(first), 4)
        await store.compact(await store.revision())
    async with Registry(store) as second:
        with pytest.raises(Expired, match="too old resource version"):
            await Api(second).events("cm", 1, resource_version="2")


async def test_a_slow_watcher_ends_with_a_clear_error(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchers, "QUEUE_LIMIT", 10)
    await api.create(config_map("first"))
    async with aclosing(api.watch("cm")) as events:
        assert (await anext(events)).type == "ADDED"
        await fill(api, 20)
        await api.names("cm")
        last = await anext(events)
        assert last.type == "ERROR" and codec.decode(last.json)["reason"] == "Expired"
        assert "too slow" in codec.decode(last.json)["message"]
        with pytest.raises(StopAsyncIteration):
            await anext(events)


async def test_bookmarks_tell_an_idle_watcher_how_far_it_is(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "BOOKMARK_SECONDS", 0.02)
    start = (await api.page("deploy")).revision
    async with aclosing(api.watch("deploy", resource_version=str(start), bookmarks=True)) as events:
        pending = asyncio.ensure_future(anext(events))
        made = await api.written(config_map("elsewhere"))
        event = await asyncio.wait_for(pending, 5)
        assert (event.type, event.revision) == ("BOOKMARK", made.revision)
        await api.create(deployment("web"))
        assert (await anext(events)).type == "ADDED"


async def test_a_watch_ends_after_its_timeout_and_leaves_nothing_behind(api: Api, registry: Registry) -> None:
    async with aclosing(api.watch("cm", resource_version="", timeout_seconds=0.05)) as events:
        assert [event async for event in events] == []
    assert len(registry.feed.collection("/registry/configmaps/").watchers) == 0


async def test_namespaced_watches_see_their_namespace_alone(api: Api) -> None:
    start = (await api.page("cm")).revision
    await api.create(config_map("a"), "kube-system")
    await api.create(config_map("b"))
    events = await api.events("cm", 1, resource_version=str(start))
    assert codec.decode(events[0].json)["metadata"]["name"] == "b"


async def test_every_cluster_starts_with_its_namespaces_and_services(store: Store) -> None:
    for _ in range(2):
        async with Registry(store, RegistryConfig(advertise_host="10.9.0.1")) as registry:
            api = Api(registry)
            assert await api.names("ns", "") == ["default", "kube-node-lease", "kube-public", "kube-system"]
            assert (await api.get("svc", "kubernetes"))["spec"]["clusterIP"] == "10.96.0.1"
            assert (await api.get("svc", "kube-dns", "kube-system"))["spec"]["clusterIP"] == "10.96.0.10"
            endpoints = (await api.get("endpointslices", "kubernetes"))["endpoints"]
            assert endpoints == [{"addresses": ["10.9.0.1"], "conditions": {"ready": True}}]
