"""Durable state: the Store contract and its two implementations.

Promises: what a call acknowledged survives kill -9; a watch skips nothing and repeats nothing; both implementations
pass one contract suite (tests/unit/store). Depends on sqlite3 (standard library) and grpcio. Never knows what the
values mean.
"""

from .contract import (
    Compacted,
    Event,
    EventType,
    FutureRevision,
    KeyExists,
    KeyMissing,
    KeyValue,
    Page,
    RevisionMismatch,
    Store,
    StoreError,
    StoreUnavailable,
    WatchBatch,
    Watcher,
)

__all__ = [
    "Compacted",
    "Event",
    "EventType",
    "FutureRevision",
    "KeyExists",
    "KeyMissing",
    "KeyValue",
    "Page",
    "RevisionMismatch",
    "Store",
    "StoreError",
    "StoreUnavailable",
    "WatchBatch",
    "Watcher",
    "open_store",
]


async def open_store(url: str) -> Store:
    """Opens `sqlite:///path/to/file.db` or `etcd://host:port[,host:port]`.

    `etcds://host:port?ca=FILE&cert=FILE&key=FILE` speaks TLS; `prefix=/NAME` (default /kernelet) keeps clusters on one
    etcd apart. The store belongs to the running event loop. Raises ValueError for another scheme and StoreUnavailable
    when it cannot be opened.
    """
    scheme, _, _ = url.partition("://")
    if scheme == "sqlite":
        from .sqlite import SqliteStore

        return await SqliteStore.open(url.removeprefix("sqlite://"))
    if scheme in ("etcd", "etcds"):
        from .etcd import EtcdStore

        return await EtcdStore.open(url)
    raise ValueError(f"store {url!r}: unknown scheme; use sqlite:///FILE or etcd://HOST:PORT")
