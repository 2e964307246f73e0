from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from lightkube.models.core_v1 import ConfigMap
from lightkube.models.meta_v1 import ObjectMeta
from support.apiserver import ApiServer
from support.proxy import FaultyProxy
from support.waiting import eventually

from kernelet.core.client.client import Client
from kernelet.core.client.informer import Change, Informer


def config_map(name: str, namespace: str, **data: str) -> ConfigMap:
    return ConfigMap(metadata=ObjectMeta(name=name, namespace=namespace), data=data)


def by_color(obj: ConfigMap) -> Iterable[str]:
    return [(obj.data or {}).get("color", "none")]


class Seen:
    """A handler that notes changes as `+a`, `~a`, `-a`."""

    def __init__(self) -> None:
        self.changes: list[str] = []

    def __call__(self, change: Change[ConfigMap]) -> None:
        sign = "+" if change.old is None else "-" if change.new is None else "~"
        metadata = change.object.metadata
        assert metadata
        self.changes.append(f"{sign}{metadata.name}")


@asynccontextmanager
async def running(informer: Informer[ConfigMap]) -> AsyncIterator[None]:
    task = asyncio.create_task(informer.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def informer_of(client: Client, namespace: str) -> tuple[Informer[ConfigMap], Seen]:
    fields = "metadata.name!=kube-root-ca.crt"
    informer = Informer(client, ConfigMap, namespace=namespace, fields=fields, indexes={"color": by_color})
    seen = Seen()
    informer.subscribe(seen)
    return informer, seen


async def test_the_copy_follows_the_collection_and_its_indexes_too(client: Client, namespace: str) -> None:
    await client.create(config_map("a", namespace, color="red"))
    informer, seen = informer_of(client, namespace)
    async with running(informer):
        await asyncio.wait_for(informer.synced(), 5)
        assert [item.metadata.name for item in informer.by_index("color", "red") if item.metadata] == ["a"]
        await client.create(config_map("b", namespace, color="red"))
        await client.patch(ConfigMap, "a", {"data": {"color": "blue"}}, namespace)
        await client.delete(ConfigMap, "b", namespace)
        await eventually(lambda: len(seen.changes) == 4)
        assert seen.changes == ["+a", "+b", "~a", "-b"]
        assert informer.by_index("color", "red") == []
        assert informer.by_index("color", "blue") == informer.items() == [informer.get(namespace, "a")]
        late = Seen()
        informer.subscribe(late)
        assert late.changes == ["+a"]


async def test_after_a_kill_of_the_server_the_watch_resumes_without_a_new_list_or_a_lost_change(
    api_server: ApiServer,
) -> None:
    async with api_server.client() as client:
        informer, seen = informer_of(client, "default")
        async with running(informer):
            await asyncio.wait_for(informer.synced(), 5)
            for round_ in range(2):
                await client.create(config_map(f"before-{round_}", "default"))
                api_server.kill()
                await asyncio.to_thread(api_server.start)
                await client.create(config_map(f"after-{round_}", "default"))
                await eventually(lambda: f"+after-{round_}" in seen.changes)  # noqa: B023 - awaited in the loop
        expected = [f"+{when}-{round_}" for round_ in range(2) for when in ("before", "after")]
        assert seen.changes == expected
        assert informer.lists == 1


async def test_a_connection_that_hangs_is_noticed_and_the_watch_resumes_on_another(
    client: Client, namespace: str, shared_api_server: ApiServer
) -> None:
    async with FaultyProxy(shared_api_server.grpc_port) as proxy:
        config = replace(client.config, address=f"127.0.0.1:{proxy.port}", keepalive=2.0)
        far = Client(config)
        informer, seen = informer_of(far, namespace)
        async with far, running(informer):
            await asyncio.wait_for(informer.synced(), 5)
            proxy.strand()
            await client.create(config_map("a", namespace))
            assert await eventually(lambda: seen.changes == ["+a"]) < 5
            assert informer.lists == 1


async def test_a_new_list_tells_the_difference_as_changes(client: Client, namespace: str) -> None:
    for name in ("gone", "changed", "again", "same"):
        await client.create(config_map(name, namespace))
    informer, seen = informer_of(client, namespace)
    async with running(informer):
        await asyncio.wait_for(informer.synced(), 5)
    seen.changes.clear()
    await client.delete(ConfigMap, "gone", namespace)
    await client.delete(ConfigMap, "again", namespace)
    await client.create(config_map("again", namespace))
    await client.patch(ConfigMap, "changed", {"data": {"key": "1"}}, namespace)
    await client.create(config_map("new", namespace))
    informer.revision = 0
    async with running(informer):
        await eventually(lambda: "+new" in seen.changes)
    assert sorted(seen.changes) == sorted(["-gone", "~changed", "-again", "+again", "+new"])
    assert informer.lists == 2


async def test_a_revision_the_server_does_not_know_leads_to_a_new_list(client: Client, namespace: str) -> None:
    await client.create(config_map("a", namespace))
    informer, _ = informer_of(client, namespace)
    informer.revision = 10**12
    async with running(informer):
        await asyncio.wait_for(informer.synced(), 10)
    assert len(informer.items()) == 1


async def test_what_a_handler_raises_ends_the_informer(client: Client, namespace: str) -> None:
    informer, _ = informer_of(client, namespace)

    def broken(change: Change[ConfigMap]) -> None:
        raise RuntimeError("broken handler")

    informer.subscribe(broken)
    await client.create(config_map("a", namespace))
    with pytest.raises(RuntimeError, match="broken handler"):
        await asyncio.wait_for(informer.run(), 5)
