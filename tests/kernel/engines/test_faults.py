"""Thousands of random changes leave the kernel equal to the table, kills in their middle to it or the one before."""

from __future__ import annotations

import itertools
import os
import random
import secrets
import signal
import time

import pytest

from kernelet.dataplane.proxy import Engine
from kernelet.dataplane.routes import Protocol

from .kernel import leftovers
from .offers import ROWS, row
from .proxy import Proxy, killed
from .walk import Row, Walk, expected

STEPS = {"nftables": 10_000, "ebpf": 10_000, "userspace": 1_000}
"""The baseline's changes go through another process, one question at a time."""
BETWEEN_COMPARISONS = 200
KILLS = 20
MANY = {"names": 100, "most": 60}


@pytest.fixture
def seed() -> int:
    """KERNELET_TEST_SEED repeats a walk."""
    made = int(os.environ.get("KERNELET_TEST_SEED") or secrets.randbelow(1 << 32))
    print(f"KERNELET_TEST_SEED={made}")
    return made


def held_by(proxy: Proxy, walk: Walk) -> frozenset[Row]:
    sctp = proxy.name not in ROWS["ClusterIP: SCTP"]
    return expected(walk.table, [protocol for protocol in Protocol if sctp or protocol != Protocol.SCTP])


@row("after any changes the kernel equals the table")
def test_any_changes_leave_kernel_and_table_equal_and_nothing_when_all_is_removed(proxy: Proxy, seed: int) -> None:
    walk, restart = Walk(seed), STEPS[proxy.name] // 10
    proxy.apply(walk.step(snapshot=True))
    for number in range(1, STEPS[proxy.name]):
        if number % restart == 0:
            proxy.stop()
            proxy.start()
        proxy.engine.apply(walk.step(snapshot=number % restart == 0 or number % 97 == 0))
        if number % BETWEEN_COMPARISONS == 0:
            proxy.engine.tidy()
            assert proxy.engine.restore() == held_by(proxy, walk), f"after delta {number}"
            assert proxy.repair() == 0, f"delta {number} led elsewhere than a comparison with the whole table does"
    assert proxy.engine.restore() == held_by(proxy, walk)
    proxy.apply(walk.removal())
    assert leftovers(proxy) == {}


@row("after any changes the kernel equals the table")
def test_every_single_change_leaves_kernel_and_table_equal(proxy: Proxy, seed: int) -> None:
    walk = Walk(seed, names=4)
    proxy.apply(walk.step(snapshot=True))
    for number in range(150):
        proxy.apply(walk.step(snapshot=number % 10 == 9))
        assert proxy.engine.restore() == held_by(proxy, walk), f"after delta {number}"
        assert proxy.repair() == 0, f"delta {number} led elsewhere than a comparison with the whole table does"
        if number % 30 == 29:
            proxy.apply(walk.removal())
            assert leftovers(proxy) == {}


@row("a version is applied whole or not at all, also under kill -9")
def test_a_kill_in_the_middle_of_a_change_leaves_the_version_before_or_after_it(proxy: Proxy, seed: int) -> None:
    """A process that changes up to 60 services a time is killed at a random moment."""
    proxy.stop()
    moments = random.Random(seed)
    before: frozenset[Row] = frozenset()
    for attempt in range(KILLS):
        begun = steps_before_a_kill(proxy, seed + attempt, moments.uniform(0, 0.1))
        walk = Walk(seed + attempt, **MANY)
        for _ in range(begun - 1):
            walk.step()
            before = held_by(proxy, walk)
        walk.step()
        proxy.start()
        assert proxy.engine.restore() in (before, held_by(proxy, walk)), f"attempt {attempt}, in version {begun}"
        proxy.engine.apply(walk.snapshot())
        before = held_by(proxy, walk)
        assert proxy.engine.restore() == before
        assert proxy.repair() == 0
        proxy.stop()
    proxy.start()
    proxy.engine.apply(walk.snapshot())
    proxy.apply(walk.removal())
    assert leftovers(proxy) == {}


def steps_before_a_kill(proxy: Proxy, seed: int, seconds: float) -> int:
    """How many steps of the walk a process had begun when it was killed, so long after its first."""
    reader, writer = os.pipe()

    def change(engine: Engine) -> None:
        walk = Walk(seed, **MANY)
        for number in itertools.count():
            delta = walk.step(snapshot=number % 3 == 0)
            os.write(writer, b"+")
            engine.apply(delta)

    child = proxy.in_doomed_process(change)
    os.close(writer)
    with os.fdopen(reader, "rb") as begun:
        first = begun.read(1)
        time.sleep(seconds)  # The moment is the test's own choice.
        os.kill(child, signal.SIGKILL)
        killed(child)
        return len(first + begun.read())
