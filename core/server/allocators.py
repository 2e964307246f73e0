"""Cluster addresses and node ports: each is a key in the store, made by compare-and-swap before the service is.

An allocation is `/registry/kernelet.allocations/ip/10.96.0.7` or `.../port/30080`, holding the service's uid. Since
only one create of a key can succeed, no two services get the same one, however many API servers share the store.
A crash between the two writes leaks an allocation; `reconcile.py` returns it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from ..store import KeyExists, KeyMissing, RevisionMismatch, Store, StoreUnavailable
from .watchcache import Feed

log = logging.getLogger(__name__)

ALLOCATIONS = "/registry/kernelet.allocations/"
_PROBES = 32


class _Holder(msgspec.Struct):
    uid: str
    service: str


class _Value(msgspec.Struct):
    metadata: _Holder


_decoder = msgspec.json.Decoder(_Value)


def holder_of(value: bytes) -> str:
    """The uid of the service an allocation belongs to."""
    return _decoder.decode(value).metadata.uid


class Taken(Exception):
    """The requested value belongs to another service."""


class Exhausted(Exception):
    """Every value of the pool is taken."""


class Pool(Protocol):
    """A numbered set of values: which may be asked for, and which are handed out unasked."""

    name: str
    size: int

    def text(self, number: int) -> str: ...

    def problem(self, text: str) -> str:
        """Why a requested value cannot be given, or ""."""
        ...


class AddressPool:
    """A service network without its first and its last address."""

    name = "ip"

    def __init__(self, cidr: str) -> None:
        self._network = ipaddress.ip_network(cidr)
        self.size = max(self._network.num_addresses - 2, 0)
        self.cidr = cidr
        self.family = f"IPv{self._network.version}"

    def text(self, number: int) -> str:
        return str(self._network[number + 1])

    def problem(self, text: str) -> str:
        address = ipaddress.ip_address(text)
        inside = address in self._network and address not in (self._network[0], self._network[-1])
        return "" if inside else f"the provided IP is not in the valid range. The range of valid IPs is {self.cidr}"


class PortPool:
    """Node ports of an inclusive range."""

    name = "port"

    def __init__(self, lowest: int, highest: int) -> None:
        self._lowest, self._highest = lowest, highest
        self.size = highest - lowest + 1

    def text(self, number: int) -> str:
        return str(self._lowest + number)

    def problem(self, text: str) -> str:
        if self._lowest <= int(text) <= self._highest:
            return ""
        return f"provided port is not in the valid range. The range of valid ports is {self._lowest}-{self._highest}"


@dataclass
class Claims:
    """Allocations made for one service that is not written yet."""

    uid: str
    service: str
    made: list[tuple[str, int]] = field(default_factory=list)
    """Key and mod_revision of each."""
    at: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    dry_run: bool = False


class Allocator:
    """Claims and releases values of pools."""

    def __init__(self, store: Store, feed: Feed) -> None:
        self._store = store
        self._feed = feed

    async def claim(self, pool: Pool, text: str, claims: Claims) -> None:
        """Raises Taken."""
        await self.claim_key(key_of(pool.name, text), claims)

    async def claim_key(self, key: str, claims: Claims) -> None:
        """Raises Taken."""
        if claims.dry_run:
            if await self._store.get(key) is not None:
                raise Taken(key)
            return
        value = msgspec.json.encode(_Value(_Holder(claims.uid, claims.service)))
        try:
            kv = await self._store.create(key, value)
        except KeyExists as error:
            raise Taken(key) from error
        claims.made.append((key, kv.mod_revision))

    async def claim_any(self, pool: Pool, claims: Claims) -> str:
        """A free value, at random. Raises Exhausted. Low values, which people ask for by hand, are used up last."""
        low = min(max(16, pool.size // 16), 256)
        low = low if pool.size > low else 0
        known = self._feed.collection(ALLOCATIONS)
        for number in self._candidates(pool.size, low):
            text = pool.text(number)
            if known.get(key_of(pool.name, text)) is not None:
                continue
            try:
                await self.claim(pool, text, claims)
            except Taken:
                continue
            return text
        raise Exhausted(pool.name)

    @staticmethod
    def _candidates(size: int, low: int) -> Iterator[int]:
        for _ in range(_PROBES):
            yield random.randrange(low, size)
        offset = random.randrange(size)
        rest = [(offset + step) % size for step in range(size)]
        yield from (number for number in rest if number >= low)
        yield from (number for number in rest if number < low)

    async def give_back(self, claims: Claims) -> None:
        """Undoes the claims of a service that was not written."""
        for key, revision in claims.made:
            await self._delete(key, revision)
        claims.made.clear()

    async def release(self, key: str, uid: str) -> None:
        """Frees an allocation of a service that no longer uses it; another service's is left alone."""
        try:
            kv = await self._store.get(key)
        except StoreUnavailable as error:
            log.warning("allocation %s is released later: %s", key, error)
            return
        if kv is not None and holder_of(kv.value) == uid:
            await self._delete(key, kv.mod_revision)

    async def hold(self, claims: Claims) -> bool:
        """Whether all claims still stand: they do unless the write took so long that they were taken for leaked."""
        for key, revision in claims.made:
            kv = await self._store.get(key)
            if kv is None or kv.mod_revision != revision:
                return False
        return True

    async def _delete(self, key: str, revision: int) -> None:
        try:
            await self._store.delete(key, revision)
        except (KeyMissing, RevisionMismatch):
            log.debug("allocation %s was released already", key)
        except StoreUnavailable as error:
            log.warning("allocation %s is released later: %s", key, error)


def key_of(pool: str, text: str) -> str:
    return f"{ALLOCATIONS}{pool}/{text}"
