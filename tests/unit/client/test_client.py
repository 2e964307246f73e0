from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import replace

import pytest
from lightkube.models.core_v1 import ConfigMap, Namespace
from lightkube.models.meta_v1 import ObjectMeta
from support.apiserver import ApiServer, free_ports

from kernelet.core.api.errors import AlreadyExists, Conflict, NotFound, ServiceUnavailable, Unauthorized
from kernelet.core.api.kinds import KINDS
from kernelet.core.client import calls
from kernelet.core.client.client import Client
from kernelet.core.client.config import ClientConfig

CONFIG_MAPS = KINDS.resolve("configmaps")


def config_map(name: str, namespace: str, **data: str) -> ConfigMap:
    return ConfigMap(metadata=ObjectMeta(name=name, namespace=namespace, labels={"app": name}), data=data)


async def test_an_object_is_created_read_changed_patched_and_deleted(client: Client, namespace: str) -> None:
    created = await client.create(config_map("a", namespace, key="1"))
    assert created.metadata and created.metadata.uid
    created.data = {"key": "2"}
    updated = await client.update(created)
    assert updated.metadata and updated.metadata.resourceVersion != created.metadata.resourceVersion
    patched = await client.patch(ConfigMap, "a", {"data": {"more": "3"}}, namespace)
    assert patched.data == {"key": "2", "more": "3"}
    assert await client.get(ConfigMap, "a", namespace) == patched
    await client.delete(ConfigMap, "a", namespace)
    with pytest.raises(NotFound, match=r'configmaps "a" not found'):
        await client.get(ConfigMap, "a", namespace)


async def test_errors_are_those_the_server_raised(client: Client, namespace: str) -> None:
    created = await client.create(config_map("a", namespace))
    with pytest.raises(AlreadyExists) as caught:
        await client.create(config_map("a", namespace))
    assert caught.value.name == "a"
    await client.patch(ConfigMap, "a", {"data": {"key": "1"}}, namespace)
    with pytest.raises(Conflict, match="the object has been modified"):
        await client.update(created)
    with pytest.raises(Conflict):
        await client.delete(ConfigMap, "a", namespace, uid="another")


async def test_a_long_collection_is_listed_page_by_page(
    client: Client, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "PAGE", 3)
    names = [f"m-{n}" for n in range(8)]
    for name in names:
        await client.create(config_map(name, namespace))
    listing = await client.list(ConfigMap, namespace, fields="metadata.name!=kube-root-ca.crt")
    assert [item.metadata.name for item in listing.items if item.metadata] == names
    chosen = await client.list(ConfigMap, namespace, labels="app in (m-1,m-2)")
    assert len(chosen.items) == 2
    raw = await client.raw.list(CONFIG_MAPS, namespace, labels="app=m-1")
    assert raw.items[0]["metadata"]["name"] == "m-1"


async def test_a_watch_tells_changes_after_a_revision(client: Client, namespace: str) -> None:
    listing = await client.list(ConfigMap, namespace)
    await client.create(config_map("a", namespace))
    await client.delete(ConfigMap, "a", namespace)
    async with aclosing(client.watch(ConfigMap, namespace, resource_version=str(listing.revision))) as events:
        seen = []
        async for event in events:
            if event.type != "BOOKMARK":
                seen.append(event.type)
            if len(seen) == 2:
                break
    assert seen == ["ADDED", "DELETED"]


async def test_a_read_waits_for_a_server_that_restarts(api_server: ApiServer) -> None:
    async with api_server.client() as client:
        await client.get(Namespace, "default")
        api_server.kill()
        reading = asyncio.create_task(client.get(Namespace, "default"))
        creating = asyncio.create_task(client.create(config_map("late", "default")))
        await asyncio.to_thread(api_server.start)
        found = await reading
        assert found.metadata and found.metadata.name == "default"
        assert (await creating).metadata


async def test_the_unix_socket_serves_the_same(api_server: ApiServer) -> None:
    async with api_server.client(address=f"unix://{api_server.socket}") as client:
        assert (await client.get(Namespace, "default")).metadata


async def test_a_server_that_is_not_there_is_named_when_the_deadline_ends(client_config: ClientConfig) -> None:
    (port,) = free_ports(1)
    config = replace(client_config, address=f"127.0.0.1:{port}", timeout=0.5)
    async with Client(config) as client:
        for call in (client.get(Namespace, "default"), client.create(config_map("a", "default"))):
            started = time.monotonic()
            with pytest.raises(ServiceUnavailable, match=f"127.0.0.1:{port} cannot be reached"):
                await call
            assert time.monotonic() - started < 1.5


async def test_a_server_of_another_cluster_is_not_trusted(client_config: ClientConfig, tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    from kernelet.core.security.pki import Pki

    other = Pki.ensure(tmp_path_factory.mktemp("other-ca"))
    async with Client(replace(client_config, ca_pem=other.ca_pem, timeout=0.5)) as client:
        with pytest.raises(ServiceUnavailable, match="certificate"):
            await client.get(Namespace, "default")


async def test_a_token_nobody_issued_is_refused(shared_api_server: ApiServer) -> None:
    address = f"127.0.0.1:{shared_api_server.token_port}"
    config = shared_api_server.config(address=address, cert_pem=b"", key_pem=b"", token="wrong")
    async with Client(config) as client:
        with pytest.raises(Unauthorized):
            await client.get(Namespace, "default")
