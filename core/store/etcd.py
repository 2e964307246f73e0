"""EtcdStore: the store in etcd 3.4 or later, which several API servers may share.

A key K of the store is `<prefix>K` in etcd (prefix: `/kernelet` unless the URL says otherwise); other values there are
left alone. The revision is etcd's own, so it also grows when others write. Compare-and-swap is one Txn; the value that
stands comes with the answer, without a second call. Changes come from one watch (etcd_feed).
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

from kernelet.proto import etcd_pb2 as pb

from .contract import (
    Event,
    EventType,
    KeyExists,
    KeyMissing,
    KeyValue,
    Page,
    RevisionMismatch,
    StoreUnavailable,
)
from .etcd_calls import Address, Calls, OutOfRange
from .etcd_feed import Feed
from .keys import check_key, future, key_range
from .watchers import Watch

CHUNK = 2000
CATCH_UP_SECONDS = 5.0


class EtcdStore:
    """A Store in etcd. Make it with open(); it belongs to the running event loop."""

    def __init__(self, calls: Calls, feed: Feed) -> None:
        """Takes over `calls`; `feed` is open."""
        self._calls = calls
        self._feed = feed
        self._root = calls.address.root
        self._oldest = 1
        self._following = asyncio.create_task(feed.run(), name="store-etcd-feed")

    @classmethod
    async def open(cls, url: str) -> EtcdStore:
        """See etcd_calls.Address.parse for the URL. Raises StoreUnavailable when no endpoint answers, ValueError."""
        calls = Calls(Address.parse(url))
        feed = Feed(calls)
        try:
            await feed.open()
        except StoreUnavailable:
            await calls.close()
            raise
        return cls(calls, feed)

    async def get(self, key: str) -> KeyValue | None:
        check_key(key)
        answer = await self._calls.range(pb.RangeRequest(key=self._raw(key)))
        return self._key_value(answer.kvs[0]) if answer.kvs else None

    async def list(self, prefix: str, *, revision: int = 0, limit: int = 0, start_key: str = "") -> Page:
        """Reads in chunks at one revision, so that a long list does not hold up etcd."""
        first, end = key_range(prefix)
        if 0 < revision < self._oldest:
            raise await self._feed.compacted(revision)
        request = pb.RangeRequest(key=self._raw(max(first, start_key)), range_end=self._raw(end))
        request.revision = max(0, revision)
        items: list[KeyValue] = []
        more = True
        while more and (limit <= 0 or len(items) <= limit):
            # One more than asked for, to know where the next page starts.
            request.limit = min(CHUNK, limit + 1 - len(items)) if limit > 0 else CHUNK
            answer = await self._range(request)
            # A later chunk's header may tell a newer revision than the snapshot's.
            request.revision = request.revision or answer.header.revision
            found = (self._key_value(kv) for kv in answer.kvs)
            items += [item for item in found if item is not None]
            more = answer.more
            if more:
                request.key = answer.kvs[-1].key + b"\0"
        if not 0 < limit < len(items):
            return Page(tuple(items), request.revision, "", 0)
        remaining = answer.count - len(answer.kvs) + 1
        return Page(tuple(items[:-1]), request.revision, items[-1].key, remaining)

    async def create(self, key: str, value: bytes) -> KeyValue:
        check_key(key)
        raw = self._raw(key)
        request = pb.TxnRequest()
        request.compare.add(target=pb.Compare.CREATE, result=pb.Compare.EQUAL, key=raw, create_revision=0)
        request.success.add().request_put.CopyFrom(pb.PutRequest(key=raw, value=value))
        answer = await self._calls.txn(request)
        if not answer.succeeded:
            raise KeyExists(f"key {key} exists")
        return KeyValue(key, value, answer.header.revision, answer.header.revision)

    async def update(self, key: str, value: bytes, expected: int) -> KeyValue:
        check_key(key)
        raw = self._raw(key)
        request = _compare_and_swap(raw, expected)
        request.success.add().request_put.CopyFrom(pb.PutRequest(key=raw, value=value, prev_kv=True))
        answer = await self._calls.txn(request)
        if not answer.succeeded:
            self._refuse(key, expected, answer)
        old = answer.responses[0].response_put.prev_kv
        return KeyValue(key, value, old.create_revision, answer.header.revision)

    async def delete(self, key: str, expected: int) -> Event:
        check_key(key)
        raw = self._raw(key)
        request = _compare_and_swap(raw, expected) if expected else _exists(raw)
        request.success.add().request_delete_range.CopyFrom(pb.DeleteRangeRequest(key=raw, prev_kv=True))
        answer = await self._calls.txn(request)
        if not answer.succeeded:
            self._refuse(key, expected, answer)
        found = answer.responses[0].response_delete_range.prev_kvs[0]
        old = KeyValue(key, found.value, found.create_revision, found.mod_revision)
        return Event(EventType.DELETE, replace(old, mod_revision=answer.header.revision), old)

    def watch(self, prefix: str, from_revision: int) -> Watch:
        key_range(prefix)
        return self._feed.hub.watch(prefix, from_revision)

    async def revision(self) -> int:
        return await self._feed.revision()

    async def compact(self, revision: int) -> None:
        """Compacts etcd as a whole, for every user of it, after our own watchers got that far (5 s at most).

        etcd compacted at R keeps the state at R but not all about the change that R was; so R is one less than asked.
        """
        newest = await self._feed.revision()
        if revision > newest:
            raise future(revision, newest)
        if revision <= max(self._oldest, 1):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CATCH_UP_SECONDS):
                await self._feed.hub.reached(revision)
        # Out of range, yet not in the future as seen above: another process compacted as far already.
        with contextlib.suppress(OutOfRange):
            await self._calls.compact(pb.CompactionRequest(revision=revision - 1))
        self._oldest = max(self._oldest, revision)

    async def close(self) -> None:
        self._feed.hub.close()
        self._following.cancel()
        await asyncio.wait([self._following])
        await self._calls.close()
        if not self._following.cancelled() and (error := self._following.exception()) is not None:
            raise error

    async def _range(self, request: pb.RangeRequest) -> pb.RangeResponse:
        try:
            return await self._calls.range(request)
        except OutOfRange as error:
            newest = await self._feed.revision()
            if request.revision > newest:
                raise future(request.revision, newest) from error
            raise await self._feed.compacted(request.revision) from error

    def _raw(self, key: str) -> bytes:
        return f"{self._root}{key}".encode()

    def _key_value(self, found: pb.KeyValue) -> KeyValue | None:
        key = self._feed.key_of(found.key)
        return KeyValue(key, found.value, found.create_revision, found.mod_revision) if key is not None else None

    def _refuse(self, key: str, expected: int, answer: pb.TxnResponse) -> None:
        """Raises for a Txn whose comparison failed; its one answer is the Range of the key."""
        found = answer.responses[0].response_range.kvs
        if not found:
            raise KeyMissing(f"key {key} does not exist")
        current = KeyValue(key, found[0].value, found[0].create_revision, found[0].mod_revision)
        raise RevisionMismatch(f"key {key} is at revision {current.mod_revision}, not {expected}", current)


def _exists(raw: bytes) -> pb.TxnRequest:
    """A Txn that goes on if there is such a key, and reads it if not so."""
    request = pb.TxnRequest()
    request.compare.add(target=pb.Compare.CREATE, result=pb.Compare.GREATER, key=raw, create_revision=0)
    request.failure.add().request_range.CopyFrom(pb.RangeRequest(key=raw))
    return request


def _compare_and_swap(raw: bytes, expected: int) -> pb.TxnRequest:
    """A Txn that goes on if the key is there and at revision `expected`, and reads it if not so."""
    request = _exists(raw)
    request.compare.add(target=pb.Compare.MOD, result=pb.Compare.EQUAL, key=raw, mod_revision=expected)
    return request
