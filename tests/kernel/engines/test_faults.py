"""Thousands of random changes, and kills in the middle of them, leave the kernel equal to the table or to the one before."""

from __future__ import annotations

import os
import secrets
import signal
import time

import pytest

from kernelet.dataplane.proxy import Engine

from .kernel import leftovers
from .offers import row
from .proxy import Proxy
from .walk import Walk, expected

STEPS = {"nftables": 10_000, "ebpf": 10_000, "userspace": 1_000}
"""The baseline's changes go through another process, one question at a time."""
BETWEEN_COMPARISONS = 200
KILLS = 25


@pytest.fixture
def seed() -> int:
    """KERNELET_TEST_SEED repeats a walk."""
    made = int(os.environ.get("KERNELET_TEST_SEED") or secrets.randbelow(1 << 32))
    print(f"KERNELET_TEST_SEED={made}")
    return made


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
            assert proxy.engine.restore() == expected(walk.table), f"after delta {number}"
            assert proxy.repair() == 0, f"delta {number} led elsewhere than a comparison with the whole table does"
    assert proxy.engine.restore() == expected(walk.table)
    proxy.apply(walk.removal())
    assert leftovers(proxy) == {}


@row("after any changes the kernel equals the table")
def test_every_single_change_leaves_kernel_and_table_equal(proxy: Proxy, seed: int) -> None:
    walk = Walk(seed, names=4)
    proxy.apply(walk.step(snapshot=True))
    for number in range(150):
        proxy.apply(walk.step(snapshot=number % 10 == 9))
        assert proxy.engine.restore() == expected(walk.table), f"after delta {number}"
        assert proxy.repair() == 0, f"delta {number} led elsewhere than a comparison with the whole table does"
        if number % 30 == 29:
            proxy.apply(walk.removal())
            assert leftovers(proxy) == {}


@row("a version is applied whole or not at all, also under kill -9")
def test_a_kill_in_the_middle_of_a_change_leaves_the_version_before_or_after_it(proxy: Proxy, seed: int) -> None:
    """A process that changes up to 60 services a time is killed after a random time; what it held must be one version."""
    proxy.stop()
    moments = Walk(seed)._random
    for attempt in range(KILLS):
        reader, writer = os.pipe()

        def change(engine: Engine, kill: int = attempt, told: int = writer) -> None:
            walk = Walk(seed + kill, names=100, most=60)
            for number in range(100_000):
                delta = walk.step(snapshot=number % 3 == 0)
                os.write(told, b"+")
                engine.apply(delta)

        child = proxy.in_doomed_process(change)
        os.close(writer)
        assert os.read(reader, 1), "it has started"
        time.sleep(moments.uniform(0, 0.12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        begun = 1
        while data := os.read(reader, 4096):
            begun += len(data)
        os.close(reader)
        walk = Walk(seed + attempt, names=100, most=60)
        # A first snapshot replaces what the attempt before has left, which is its version 0.
        before = expected(left) if attempt else frozenset()
        for number in range(begun):
            if number:
                before = expected(walk.table)
            walk.step()
        proxy.start()
        held = proxy.engine.restore()
        assert held in (before, expected(walk.table)), f"attempt {attempt}, killed in version {begun}"
        left = walk.table
        proxy.engine.apply(walk.snapshot())
        assert proxy.engine.restore() == expected(walk.table)
        assert proxy.repair() == 0
        proxy.stop()
    proxy.start()
    proxy.engine.apply(walk.snapshot())
    proxy.apply(walk.removal())
    assert leftovers(proxy) == {}
