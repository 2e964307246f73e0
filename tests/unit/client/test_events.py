from __future__ import annotations

import asyncio

from lightkube.models.core_v1 import ConfigMap
from lightkube.models.meta_v1 import ObjectMeta
from support.apiserver import ApiServer

from kernelet.core.api.kinds import KINDS
from kernelet.core.client.client import Client
from kernelet.core.client.events import NORMAL, WARNING, EventRecorder

EVENTS = KINDS.resolve("events")


def about(namespace: str) -> ConfigMap:
    return ConfigMap(metadata=ObjectMeta(name="web", namespace=namespace, uid="u-1"))


async def test_the_same_event_again_is_counted_and_another_is_written(client: Client, namespace: str) -> None:
    async with EventRecorder(client, "tester", "node-1") as events:
        for _ in range(3):
            events.event(about(namespace), WARNING, "Failed", "no room")
        events.event(about(namespace), NORMAL, "Scheduled", "found room")
    items = (await client.raw.list(EVENTS, namespace)).items
    counts = {item["reason"]: item["count"] for item in items}
    assert counts == {"Failed": 3, "Scheduled": 1}
    failed = next(item for item in items if item["reason"] == "Failed")
    assert failed["involvedObject"]["name"] == "web"
    assert failed["involvedObject"]["kind"] == "ConfigMap"
    assert failed["source"] == {"component": "tester", "host": "node-1"}
    assert failed["type"] == WARNING


async def test_recording_never_waits_and_what_does_not_fit_is_counted(client: Client, namespace: str) -> None:
    events = EventRecorder(client, "tester", queued=5)
    for number in range(8):
        events.event(about(namespace), NORMAL, "Busy", f"message {number}")
    assert events.dropped == 3


async def test_events_recorded_while_the_server_is_away_are_written_when_it_is_back(api_server: ApiServer) -> None:
    async with api_server.client() as client, EventRecorder(client, "tester") as events:
        api_server.kill()
        events.event(about("default"), NORMAL, "Away", "while the server was away")
        await asyncio.to_thread(api_server.start)
    async with api_server.client() as client:
        reasons = [item["reason"] for item in (await client.raw.list(EVENTS, "default")).items]
    assert "Away" in reasons
