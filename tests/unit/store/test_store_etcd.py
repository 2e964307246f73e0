"""What holds for the etcd store alone: a server that dies, other users of the same server, several stores on it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import aclosing

import pytest
from store_etcd_server import EtcdServer

from kernelet.core.store import Compacted, Event, KeyValue, StoreUnavailable, WatchBatch, Watcher, open_store
from kernelet.core.store.etcd_calls import Address


async def test_a_watch_goes_on_without_a_gap_after_etcd_was_killed(start_etcd: Callable[[], EtcdServer]) -> None:
    server = await asyncio.to_thread(start_etcd)
    store = await open_store(server.url())
    written = [await store.create("/0", b"")]
    seen: list[KeyValue] = []
    async with aclosing(store.watch("/", written[0].mod_revision)) as watcher, asyncio.timeout(30):
        seen += [event.kv for event in (await anext(watcher)).events]
        for round_ in range(1, 3):
            written += [await store.create(f"/{round_}/{number}", b"") for number in range(20)]
            await asyncio.to_thread(server.kill)
            with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{server.port}"):
                await store.create("/down", b"")
            await asyncio.to_thread(server.start)
            while True:
                try:
                    written.append(await store.create(f"/{round_}/again", b""))
                    break
                except StoreUnavailable:
                    await asyncio.sleep(0.05)
        while len(seen) < len(written):
            seen += [event.kv for event in (await anext(watcher)).events]
    assert seen == written
    assert [item.key for item in (await store.list("/")).items] == sorted(item.key for item in written)
    await store.close()


class Cable:
    """A loopback TCP proxy to a server's port which can be cut and joined."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._joined = True
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> int:
        """Its own port."""
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        self.cut()
        self._server.close()
        await self._server.wait_closed()

    def cut(self) -> None:
        self._joined = False
        for writer in self._writers:
            writer.transport.abort()

    def join(self) -> None:
        self._joined = True

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._joined:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        ends = {writer, far_writer}
        self._writers |= ends
        await asyncio.gather(self._copy(reader, far_writer), self._copy(far_reader, writer))
        self._writers -= ends

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()


async def test_a_watcher_is_told_what_was_compacted_while_its_store_was_cut_off(etcd: EtcdServer) -> None:
    cable = Cable(etcd.port)
    url = etcd.url()
    ahead = await open_store(url)
    behind = await open_store(url.replace(str(etcd.port), str(await cable.start())))
    first = await behind.create("/a", b"")
    watcher = behind.watch("/", first.mod_revision)
    assert [event.kv for event in (await anext(watcher)).events] == [first]
    cable.cut()
    standing = first
    for _ in range(5):
        standing = await ahead.update("/a", b"x", standing.mod_revision)
    await ahead.compact(standing.mod_revision)
    cable.join()
    async with asyncio.timeout(10):
        with pytest.raises(Compacted) as refused:
            await anext(watcher)
    assert refused.value.oldest == standing.mod_revision
    async with asyncio.timeout(10), aclosing(behind.watch("/", refused.value.oldest)) as again:
        assert [event.kv for event in (await anext(again)).events] == [standing]
    await behind.close()
    await ahead.close()
    await cable.stop()


async def test_watchers_that_wait_for_an_unreachable_etcd_can_be_closed(etcd: EtcdServer) -> None:
    cable = Cable(etcd.port)
    store = await open_store(etcd.url().replace(str(etcd.port), str(await cable.start())))
    created = await store.create("/a", b"")
    async with aclosing(store.watch("/", created.mod_revision)) as watcher:
        await anext(watcher)
    cable.cut()
    one, other = (store.watch("/", created.mod_revision) for _ in range(2))
    waiting = [asyncio.create_task(collect(watcher)) for watcher in (one, other)]
    await asyncio.sleep(0.1)
    async with asyncio.timeout(2):
        await one.aclose()
        assert await waiting[0] == []
        await store.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            await waiting[1]
    await cable.stop()


async def collect(watcher: Watcher) -> list[WatchBatch]:
    return [batch async for batch in watcher]


async def test_stores_with_different_prefixes_do_not_see_each_other(etcd: EtcdServer) -> None:
    url = etcd.url()
    one, other = await open_store(url), await open_store(f"{url}-other")
    start = await one.revision() + 1
    await one.create("/a", b"one")
    await other.create("/a", b"other")
    last = await one.create("/b", b"one")
    assert [item.value for item in (await one.list("")).items] == [b"one", b"one"]
    assert [item.value for item in (await other.list("")).items] == [b"other"]
    seen: list[Event] = []
    async with aclosing(one.watch("", start)) as watcher:
        while len(seen) < 2:
            seen += (await anext(watcher)).events
    assert [event.kv.key for event in seen] == ["/a", "/b"]
    assert seen[-1].kv == last
    await one.close()
    await other.close()


async def test_a_watcher_gets_on_while_only_others_write_to_the_same_etcd(etcd: EtcdServer) -> None:
    store, stranger = await open_store(etcd.url()), await open_store(etcd.url())
    async with aclosing(store.watch("/", await store.revision() + 1)) as watcher:
        await stranger.create("/x", b"")
        target = await store.revision()
        async with asyncio.timeout(3):
            batch = await anext(watcher)
            while batch.revision < target:
                batch = await anext(watcher)
        assert batch.events == ()
    assert (await store.list("")).items == ()
    await store.close()
    await stranger.close()


async def test_several_stores_on_one_prefix_race_without_losing_an_update(etcd: EtcdServer) -> None:
    url = etcd.url()
    stores = [await open_store(url) for _ in range(3)]
    created = await stores[0].create("/leader", b"")
    calls = [store.update("/leader", str(number).encode(), created.mod_revision) for number, store in enumerate(stores)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    won = [result for result in results if isinstance(result, KeyValue)]
    assert len(won) == 1
    for store in stores:
        assert await store.get("/leader") == won[0]
        await store.close()


def test_a_url_names_endpoints_prefix_and_certificates() -> None:
    address = Address.parse("etcd://10.0.0.1:2379,db.example:2380?prefix=/two/")
    assert address.endpoints == ("10.0.0.1:2379", "db.example:2380")
    assert address.root == "/two"
    assert Address.parse("etcd://[::1]:2379").root == "/kernelet"
    for wrong in ("etcd://host", "etcd://host:1?prefx=/a", "etcd://host:1/a", "etcd://host:1?prefix=a"):
        with pytest.raises(ValueError, match="store 'etcd://host"):
            Address.parse(wrong)
    with pytest.raises(StoreUnavailable, match=r"/nowhere/ca\.crt"):
        Address.parse("etcds://host:1?ca=/nowhere/ca.crt")
