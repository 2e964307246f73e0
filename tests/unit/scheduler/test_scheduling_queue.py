from __future__ import annotations

import asyncio

import pytest
from support.scheduling import pod

from kernelet.core.scheduler import queue as queue_module
from kernelet.core.scheduler.framework import Helps
from kernelet.core.scheduler.podinfo import PodInfo
from kernelet.core.scheduler.queue import SchedulingQueue, backoff


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> SchedulingQueue:
    monkeypatch.setattr(queue_module, "FIRST_BACKOFF", 0.02)
    return SchedulingQueue()


async def popped(queue: SchedulingQueue) -> str:
    return (await asyncio.wait_for(queue.pop(), 1)).pod.key[1]


async def test_pods_come_by_priority_then_age(queue: SchedulingQueue) -> None:
    for each in (pod("old"), pod("young"), pod("urgent", priority=10)):
        queue.put(PodInfo(each))
    assert [await popped(queue) for _ in range(3)] == ["urgent", "old", "young"]


async def test_an_unschedulable_pod_waits_for_what_may_help_it(queue: SchedulingQueue) -> None:
    queue.put(PodInfo(pod("web")))
    refused = await queue.pop()
    queue.refuse(refused, Helps.NODE_ADDED)
    queue.helped(Helps.POD_REMOVED)
    assert queue.sizes() == (0, 0, 1)
    queue.helped(Helps.NODE_ADDED)
    assert await popped(queue) == "web"


async def test_a_pod_tried_a_moment_ago_goes_through_back_off(queue: SchedulingQueue) -> None:
    queue.put(PodInfo(pod("web")))
    queue.refuse(await queue.pop(), Helps.ANY)
    queue.helped(Helps.NODE_CHANGED)
    assert queue.sizes() == (0, 1, 0)
    assert await popped(queue) == "web"
    assert backoff(3) == 4 * backoff(1)


async def test_a_status_change_leaves_a_pod_where_it_waits_and_a_spec_change_does_not(queue: SchedulingQueue) -> None:
    first = pod("web")
    queue.put(PodInfo(first))
    queue.refuse(await queue.pop(), Helps.NODE_ADDED)
    queue.put(PodInfo(first))
    assert queue.sizes() == (0, 0, 1)
    changed = pod("web", nodeSelector={"disk": "ssd"})
    assert changed.metadata and first.metadata
    changed.metadata.uid = first.metadata.uid
    queue.put(PodInfo(changed))
    assert await popped(queue) == "web"


async def test_a_removed_pod_is_not_handed_out_and_its_successor_of_the_same_name_is(queue: SchedulingQueue) -> None:
    queue.put(PodInfo(pod("web")))
    queue.remove(("default", "web"))
    successor = PodInfo(pod("web"))
    queue.put(successor)
    assert (await queue.pop()).pod is successor
    assert len(queue) == 0
