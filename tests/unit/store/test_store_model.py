"""A store against a model of it: any sequence of calls, and what is read is what the history says."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from store_etcd_server import EtcdServer

from kernelet.core.store import (
    Compacted,
    Event,
    EventType,
    FutureRevision,
    KeyExists,
    KeyMissing,
    KeyValue,
    RevisionMismatch,
    Store,
    open_store,
)

KEYS = st.sampled_from(["/a", "/a/1", "/a/2", "/a/é", "/a0", "/b/1", "/b/2", "/c"])
PREFIXES = st.sampled_from(["", "/", "/a", "/a/", "/b/", "/none/"])
VALUES = st.binary(max_size=20)
ANY_REVISION = st.floats(0, 1.2)
"""As a fraction of the newest: the future and the compacted past are asked as well."""


class StoreMachine(RuleBasedStateMachine):
    """`history` holds every event; everything expected is computed from it."""

    url: Callable[[], str]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store: Store = self.run(open_store(type(self).url()))
        self.first = self.run(self.store.revision())
        self.history: list[Event] = []
        self.oldest = 0
        self.watcher: Any = None
        self.watched: list[Event] = []

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(asyncio.wait_for(call, 10))

    def teardown(self) -> None:
        self.run(self.store.close())
        self.runner.close()

    def newest(self) -> int:
        return self.history[-1].kv.mod_revision if self.history else self.first

    def pick(self, fraction: float) -> int:
        return self.first + round((self.newest() - self.first) * fraction)

    def standing(self, revision: int) -> dict[str, KeyValue]:
        live: dict[str, KeyValue] = {}
        for event in self.history:
            if event.kv.mod_revision <= revision:
                live.pop(event.kv.key, None)
                if event.type is EventType.PUT:
                    live[event.kv.key] = event.kv
        return dict(sorted(live.items()))

    @initialize()
    def start_watching(self) -> None:
        self.watcher = self.store.watch("", self.first + 1)

    @rule(key=KEYS, value=VALUES)
    def create(self, key: str, value: bytes) -> None:
        if key in self.standing(self.newest()):
            with pytest.raises(KeyExists):
                self.run(self.store.create(key, value))
            return
        created = self.run(self.store.create(key, value))
        assert created == KeyValue(key, value, created.mod_revision, created.mod_revision)
        assert created.mod_revision > self.newest()
        self.history.append(Event(EventType.PUT, created, None))

    @rule(key=KEYS, value=VALUES, offset=st.sampled_from([0, 0, 0, 1, -1]))
    def update(self, key: str, value: bytes, offset: int) -> None:
        old = self.standing(self.newest()).get(key)
        expected = (old.mod_revision if old else self.newest()) + offset
        call = self.store.update(key, value, expected)
        if old is None:
            with pytest.raises(KeyMissing):
                self.run(call)
        elif offset:
            with pytest.raises(RevisionMismatch) as refused:
                self.run(call)
            assert refused.value.current == old
        else:
            updated = self.run(call)
            assert updated == KeyValue(key, value, old.create_revision, updated.mod_revision)
            assert updated.mod_revision > self.newest()
            self.history.append(Event(EventType.PUT, updated, old))

    @rule(key=KEYS, exact=st.booleans())
    def delete(self, key: str, exact: bool) -> None:
        old = self.standing(self.newest()).get(key)
        call = self.store.delete(key, old.mod_revision if exact and old else 0)
        if old is None:
            with pytest.raises(KeyMissing):
                self.run(call)
            return
        event = self.run(call)
        assert event == Event(
            EventType.DELETE, KeyValue(key, old.value, old.create_revision, event.kv.mod_revision), old
        )
        assert event.kv.mod_revision > self.newest()
        self.history.append(event)

    @rule(prefix=PREFIXES, fraction=ANY_REVISION, now=st.booleans(), limit=st.integers(0, 3))
    def list(self, prefix: str, fraction: float, now: bool, limit: int) -> None:
        asked = 0 if now else self.pick(fraction)
        try:
            page = self.run(self.store.list(prefix, revision=asked, limit=limit))
        except Compacted as refused:
            assert asked < self.oldest == refused.oldest
            return
        except FutureRevision:
            assert asked > self.newest()
            return
        assert asked == 0 or asked >= self.oldest
        revision = page.revision
        assert revision == asked or (asked == 0 and revision >= self.newest())
        expected = [item for key, item in self.standing(revision).items() if key.startswith(prefix)]
        found = list(page.items)
        while page.next_key:
            assert len(page.items) == limit
            assert page.remaining == len(expected) - len(found)
            page = self.run(self.store.list(prefix, revision=revision, limit=limit, start_key=page.next_key))
            found += page.items
        assert page.remaining == 0
        assert found == expected

    @rule(prefix=PREFIXES, fraction=ANY_REVISION)
    def replay(self, prefix: str, fraction: float) -> None:
        start = self.pick(fraction) + 1
        expected = [e for e in self.history if e.kv.mod_revision >= start and e.kv.key.startswith(prefix)]

        async def read() -> list[Event]:
            found: list[Event] = []
            async with aclosing(self.store.watch(prefix, start)) as watcher:
                revision = start - 1
                while revision < self.newest():
                    batch = await anext(watcher)
                    assert batch.revision > revision
                    revision = batch.revision
                    found += batch.events
            return found

        if start < self.oldest and start <= self.newest():
            with pytest.raises(Compacted):
                self.run(read())
        else:
            assert self.run(read()) == expected

    @rule()
    def read_the_standing_watch(self) -> None:
        async def read() -> None:
            while len(self.watched) < len(self.history):
                self.watched += (await anext(self.watcher)).events

        try:
            self.run(read())
        except Compacted:
            # It had not read what was compacted; it would have to list anew.
            unread = self.history[len(self.watched)].kv.mod_revision
            assert unread < self.oldest
            self.run(self.watcher.aclose())
            self.watched = list(self.history)
            self.watcher = self.store.watch("", self.newest() + 1)

    @rule(fraction=ANY_REVISION)
    def compact(self, fraction: float) -> None:
        revision = self.pick(fraction)
        if revision > self.newest():
            with pytest.raises(FutureRevision):
                self.run(self.store.compact(revision + 1000))
            return
        self.run(self.store.compact(revision))
        self.oldest = max(self.oldest, revision)

    @invariant()
    def what_stands_is_what_the_history_says(self) -> None:
        live = self.standing(self.newest())
        for key in ("/a", "/b/1"):
            assert self.run(self.store.get(key)) == live.get(key)
        assert self.watched == self.history[: len(self.watched)]


def run_machine(url: Callable[[], str], examples: int, steps: int) -> None:
    machine = type("Machine", (StoreMachine,), {"url": staticmethod(url)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_sqlite_does_what_the_model_does_for_any_sequence_of_calls() -> None:
    folder = Path(tempfile.mkdtemp(prefix="kl-test-store-"))
    numbers = iter(range(1 << 30))
    try:
        run_machine(lambda: f"sqlite://{folder}/{next(numbers)}.db", examples=40, steps=40)
    finally:
        shutil.rmtree(folder)


def test_etcd_does_what_the_model_does_for_any_sequence_of_calls(start_etcd: Callable[[], EtcdServer]) -> None:
    # A server of its own: compaction concerns all of an etcd.
    server = start_etcd()
    run_machine(server.url, examples=8, steps=30)
