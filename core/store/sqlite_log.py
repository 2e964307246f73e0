"""The log table and the SQL over it; every function here blocks and runs in a thread of the store.

One row per committed write. What stands for a key is its newest row, unless that is a deletion. `prev_revision` chains
a key's rows, so that an event finds what stood before, and so that compaction need only look at the rows written since
the last one: each of them names the row it replaced. A second table with the live keys alone would make long lists
independent of the number of versions kept, at the price of one more B-tree to write for every change; compaction keeps
the log near the live size, and lists are mostly served from memory by the reader's cache, so there is none.
"""

from __future__ import annotations

import sqlite3
from operator import itemgetter
from typing import Any

from .contract import Compacted, Event, EventType, KeyExists, KeyMissing, KeyValue, Page, RevisionMismatch, WatchBatch
from .keys import future, key_range

APPLICATION_ID = 0x4B4C5354
SCHEMA_VERSION = 1
PAGE_EVENTS = 512
PAGE_BYTES = 8 << 20
SWEEP_ROWS = 500
SHRINK_PAGES = 256

_SCHEMA = (
    """CREATE TABLE log (
        revision INTEGER PRIMARY KEY,
        key TEXT NOT NULL,
        create_revision INTEGER NOT NULL,
        prev_revision INTEGER NOT NULL,
        deleted INTEGER NOT NULL,
        value BLOB NOT NULL)""",
    # `deleted` is in the index so that counting and finding the newest row of each key never reads the table.
    "CREATE INDEX log_key ON log (key, revision, deleted)",
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    # Oldest revision that can be asked; and up to where rows which that made useless are removed.
    "INSERT INTO meta VALUES ('oldest', 1), ('swept', 1)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)

_NEWEST_ROW = "SELECT revision, create_revision, deleted, value FROM log WHERE key = ? ORDER BY revision DESC LIMIT 1"
_APPEND = "INSERT INTO log (revision, key, create_revision, prev_revision, deleted, value) VALUES (?, ?, ?, ?, ?, ?)"
_NEWEST_PER_KEY = (
    "SELECT key, max(revision) AS revision, deleted FROM log INDEXED BY log_key "
    "WHERE key >= ? AND key < ? AND revision <= ? GROUP BY key"
)
_COUNT = f"SELECT count(*) FROM ({_NEWEST_PER_KEY}) WHERE deleted = 0"
# The limit inside picks the right keys. Ordering outside would copy every value into a sorter; see read_page.
_LIST = (
    "SELECT newest.key, log.value, log.create_revision, log.revision "
    f"FROM ({_NEWEST_PER_KEY} HAVING deleted = 0 ORDER BY key LIMIT ?) AS newest "
    "CROSS JOIN log ON log.revision = newest.revision"
)
# The unary plus keeps the planner on the revision order: a prefix often covers most of the log.
_CHANGES = (
    "SELECT log.revision, log.key, log.create_revision, log.deleted, log.value, "
    "old.revision, old.create_revision, old.value "
    "FROM log LEFT JOIN log AS old ON old.revision = log.prev_revision "
    "WHERE log.revision >= ? AND +log.key >= ? AND +log.key < ? ORDER BY log.revision"
)


class NotAStore(sqlite3.DatabaseError):
    """The file is a database, but not ours, or of a newer version."""


def connect(path: str, *, writer: bool) -> sqlite3.Connection:
    """A connection whose transactions are explicit; the writer's creates the tables. Raises sqlite3.Error."""
    connection = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
    try:
        if writer:
            _prepare(connection)
        else:
            connection.execute("PRAGMA query_only = ON")
        connection.execute("PRAGMA cache_size = -16384")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    is_new = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
    if is_new:
        # Has to be said before the first page is written.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    else:
        found = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        if found != [APPLICATION_ID, SCHEMA_VERSION]:
            raise NotAStore(f"application id and version are {found}, not {[APPLICATION_ID, SCHEMA_VERSION]}")
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA journal_size_limit = {32 << 20}")
    if is_new:
        connection.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            connection.execute(statement)
        connection.execute("COMMIT")


def newest_revision(connection: sqlite3.Connection) -> int:
    newest = connection.execute("SELECT max(revision) FROM log").fetchone()[0]
    return int(newest or 0)


def oldest_revision(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT value FROM meta WHERE name = 'oldest'").fetchone()[0])


class Log:
    """Changes to the log inside the writer's open transaction; `newest` counts on with each."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = self._db = connection
        self.newest = newest_revision(connection)

    def create(self, key: str, value: bytes) -> Event:
        if self._standing(key) is not None:
            raise KeyExists(f"key {key} exists")
        revision = self._append(key, None, value)
        return Event(EventType.PUT, KeyValue(key, value, revision, revision), None)

    def update(self, key: str, value: bytes, expected: int) -> Event:
        old = self._expect(key, expected, always=True)
        revision = self._append(key, old, value)
        return Event(EventType.PUT, KeyValue(key, value, old.create_revision, revision), old)

    def delete(self, key: str, expected: int) -> Event:
        old = self._expect(key, expected, always=expected != 0)
        revision = self._append(key, old, None)
        return Event(EventType.DELETE, KeyValue(key, old.value, old.create_revision, revision), old)

    def set_oldest(self, revision: int) -> None:
        self._db.execute("UPDATE meta SET value = max(value, ?) WHERE name = 'oldest'", (revision,))

    def sweep(self) -> bool:
        """Removes some of the rows nobody may ask for any more; True if there may be others.

        Ascending, and a deletion together with the value it removed, so that a stop half-way leaves no deleted key
        looking alive.
        """
        meta = dict(self._db.execute("SELECT name, value FROM meta"))
        rows = self._db.execute(
            "SELECT revision, prev_revision, deleted FROM log "
            "WHERE revision >= ? AND revision < ? ORDER BY revision LIMIT ?",
            (meta["swept"], meta["oldest"], SWEEP_ROWS),
        ).fetchall()
        doomed = [(previous,) for _, previous, _ in rows if previous]
        doomed += [(revision,) for revision, _, deleted in rows if deleted]
        self._db.executemany("DELETE FROM log WHERE revision = ?", doomed)
        more = len(rows) == SWEEP_ROWS
        swept = rows[-1][0] + 1 if more else meta["oldest"]
        self._db.execute("UPDATE meta SET value = ? WHERE name = 'swept'", (swept,))
        return more

    def shrink(self) -> bool:
        """Gives some free pages back to the file system if they are many; True if there may be others."""
        pages = self._db.execute("PRAGMA page_count").fetchone()[0]
        free = self._db.execute("PRAGMA freelist_count").fetchone()[0]
        if free < max(SHRINK_PAGES, pages // 4):
            return False
        self._db.execute(f"PRAGMA incremental_vacuum({SHRINK_PAGES})").fetchall()
        return True

    def _standing(self, key: str) -> KeyValue | None:
        row = self._db.execute(_NEWEST_ROW, (key,)).fetchone()
        if row is None or row[2]:
            return None
        return KeyValue(key, row[3], row[1], row[0])

    def _expect(self, key: str, expected: int, *, always: bool) -> KeyValue:
        old = self._standing(key)
        if old is None:
            raise KeyMissing(f"key {key} does not exist")
        if always and old.mod_revision != expected:
            raise RevisionMismatch(f"key {key} is at revision {old.mod_revision}, not {expected}", old)
        return old

    def _append(self, key: str, old: KeyValue | None, value: bytes | None) -> int:
        self.newest += 1
        revision = self.newest
        created, previous = (old.create_revision, old.mod_revision) if old else (revision, 0)
        self._db.execute(_APPEND, (revision, key, created, previous, value is None, value or b""))
        return revision


def read_key(connection: sqlite3.Connection, key: str) -> KeyValue | None:
    row = connection.execute(_NEWEST_ROW, (key,)).fetchone()
    if row is None or row[2]:
        return None
    return KeyValue(key, row[3], row[1], row[0])


def read_page(connection: sqlite3.Connection, prefix: str, revision: int, limit: int, start_key: str) -> Page:
    """See Store.list. Raises Compacted, FutureRevision."""
    first, end = key_range(prefix)
    first = max(first, start_key)
    connection.execute("BEGIN")
    try:
        newest = newest_revision(connection)
        if revision > newest:
            raise future(revision, newest)
        if revision:
            _check_kept(connection, revision)
        at = revision or newest
        rows = connection.execute(_LIST, (first, end, at, limit + 1 if limit > 0 else -1)).fetchall()
        # In order already, as it happens, which costs the sort one pass; SQL does not promise it.
        rows.sort(key=itemgetter(0))
        next_key, remaining = "", 0
        if 0 < limit < len(rows):
            next_key = rows.pop()[0]
            remaining = connection.execute(_COUNT, (next_key, end, at)).fetchone()[0]
    finally:
        connection.execute("COMMIT")
    return Page(tuple(KeyValue(*row) for row in rows), at, next_key, remaining)


def read_changes(connection: sqlite3.Connection, prefix: str, from_revision: int) -> tuple[WatchBatch, bool]:
    """A page of events from `from_revision` on, and whether there may be more after it. Raises Compacted."""
    first, end = key_range(prefix)
    connection.execute("BEGIN")
    try:
        _check_kept(connection, from_revision)
        newest = newest_revision(connection)
        events: list[Event] = []
        size = 0
        cursor = connection.execute(_CHANGES, (from_revision, first, end))
        for row in cursor:
            event = _event(row)
            events.append(event)
            size += len(event.kv.value)
            if len(events) >= PAGE_EVENTS or size > PAGE_BYTES:
                cursor.close()
                return WatchBatch(tuple(events), event.kv.mod_revision), True
    finally:
        connection.execute("COMMIT")
    return WatchBatch(tuple(events), newest), False


def _event(row: tuple[Any, ...]) -> Event:
    revision, key, created, deleted, value, old_revision, old_created, old_value = row
    previous = None
    if old_revision is not None:
        previous = KeyValue(key, old_value, old_created, old_revision)
    if deleted and previous is not None:
        value = previous.value
    kind = EventType.DELETE if deleted else EventType.PUT
    return Event(kind, KeyValue(key, value, created, revision), previous)


def _check_kept(connection: sqlite3.Connection, revision: int) -> None:
    oldest = oldest_revision(connection)
    if revision < oldest:
        raise Compacted(f"revision {revision} is compacted; the oldest kept is {oldest}", oldest)
