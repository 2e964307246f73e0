from __future__ import annotations

import asyncio

import pytest

from kernelet.core.client.workqueue import QueueShutDown, WorkQueue


async def test_a_key_added_many_times_is_handed_out_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for _ in range(3):
        queue.add("a")
    queue.add("b")
    assert [await queue.get(), await queue.get()] == ["a", "b"]
    assert len(queue) == 0


async def test_a_key_added_while_a_worker_has_it_comes_again_when_the_worker_is_done() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    key = await queue.get()
    queue.add("a")
    assert len(queue) == 0
    queue.done(key)
    assert await asyncio.wait_for(queue.get(), 1) == "a"


async def test_failures_come_back_later_each_time_until_forgotten() -> None:
    loop = asyncio.get_running_loop()
    queue: WorkQueue[str] = WorkQueue(first_delay=0.02, longest_delay=0.08)
    pauses = []
    for _ in range(4):
        started = loop.time()
        queue.add_rate_limited("a")
        queue.done(await asyncio.wait_for(queue.get(), 1))
        pauses.append(loop.time() - started)
    assert [round(pause, 2) for pause in pauses] == pytest.approx([0.02, 0.04, 0.08, 0.08], abs=0.015)
    queue.forget("a")
    assert queue.failures("a") == 0


async def test_the_earliest_of_several_times_counts() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 10)
    queue.add_after("a", 0.01)
    queue.add_after("a", 5)
    assert await asyncio.wait_for(queue.get(), 1) == "a"


async def test_a_cancelled_waiter_does_not_take_the_wakeup_of_another_with_it() -> None:
    queue: WorkQueue[str] = WorkQueue()
    first, second = asyncio.create_task(queue.get()), asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("a")
    first.cancel()
    assert await asyncio.wait_for(second, 1) == "a"


async def test_shutting_down_ends_every_waiter() -> None:
    queue: WorkQueue[str] = WorkQueue()
    waiters = [asyncio.create_task(queue.get()) for _ in range(2)]
    await asyncio.sleep(0)
    queue.shutdown()
    for waiter in waiters:
        with pytest.raises(QueueShutDown):
            await asyncio.wait_for(waiter, 1)
