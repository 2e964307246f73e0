from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support.apiserver import ApiServer
from support.proxy import FaultyProxy
from support.waiting import eventually

from kernelet.core.api.errors import JSON
from kernelet.core.api.kinds import KINDS
from kernelet.core.client.client import Client
from kernelet.core.client.election import ADDRESS, LeaderElector, Timing
from kernelet.core.client.process import is_gone, own_mark

LEASES = KINDS.resolve("leases")
QUICK = Timing(lease=2.0, renew=1.0, retry=0.2)


class Term:
    """A leading task that notes when it started and ended."""

    def __init__(self) -> None:
        self.started: list[float] = []
        self.ended: list[float] = []

    async def __call__(self) -> None:
        self.started.append(time.monotonic())
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.ended.append(time.monotonic())


async def lease_of(client: Client, namespace: str) -> JSON:
    return await client.raw.get(LEASES, "leader", namespace)


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def test_one_of_two_leads_and_when_it_stops_the_other_starts_at_once(client: Client, namespace: str) -> None:
    first, second = Term(), Term()
    one = asyncio.create_task(LeaderElector(client, "leader", namespace, address="10.0.0.1:80").run(first))
    await eventually(lambda: bool(first.started))
    two = asyncio.create_task(LeaderElector(client, "leader", namespace, address="10.0.0.2:80").run(second))
    await asyncio.sleep(1.5)
    assert not second.started
    assert (await lease_of(client, namespace))["metadata"]["annotations"][ADDRESS] == "10.0.0.1:80"
    await stop(one)
    assert await eventually(lambda: bool(second.started)) < 0.5
    assert first.ended[0] < second.started[0]
    lease = await lease_of(client, namespace)
    assert lease["metadata"]["annotations"][ADDRESS] == "10.0.0.2:80"
    assert lease["spec"]["leaseTransitions"] == 1
    await stop(two)
    assert not (await lease_of(client, namespace))["spec"]["holderIdentity"]


async def test_a_leader_cut_off_stops_before_its_lease_is_taken_and_leads_again_later(
    client: Client, namespace: str, shared_api_server: ApiServer
) -> None:
    first, second = Term(), Term()
    async with FaultyProxy(shared_api_server.grpc_port) as proxy:
        config = replace(client.config, address=f"127.0.0.1:{proxy.port}")
        async with Client(config) as far:
            one = asyncio.create_task(LeaderElector(far, "leader", namespace, timing=QUICK).run(first))
            await eventually(lambda: bool(first.started))
            two = asyncio.create_task(LeaderElector(client, "leader", namespace, timing=QUICK).run(second))
            await asyncio.sleep(0.5)
            proxy.cut()
            await eventually(lambda: bool(second.started))
            assert first.ended[0] + 0.5 < second.started[0]
            await stop(two)
            await proxy.mend()
            await eventually(lambda: len(first.started) == 2, 20)
            await stop(one)


async def test_a_leader_survives_a_server_that_is_killed_and_restarted(api_server: ApiServer) -> None:
    term = Term()
    async with api_server.client() as client:
        task = asyncio.create_task(LeaderElector(client, "leader", "default").run(term))
        await eventually(lambda: bool(term.started))
        api_server.kill()
        await asyncio.to_thread(api_server.start)
        renewed = (await lease_of(client, "default"))["spec"]["renewTime"]
        await asyncio.sleep(2.5)
        assert (await lease_of(client, "default"))["spec"]["renewTime"] > renewed
        assert not term.ended
        await stop(task)


async def test_a_leader_killed_on_this_machine_is_succeeded_at_once(
    client: Client, namespace: str, shared_api_server: ApiServer
) -> None:
    script = (
        "import asyncio, sys\n"
        "from kernelet.core.client.client import Client\n"
        "from kernelet.core.client.election import LeaderElector\n"
        "from kernelet.core.security.kubeconfig import load_kubeconfig\n"
        "async def main():\n"
        "    async with Client(load_kubeconfig(sys.argv[1])) as client:\n"
        "        await LeaderElector(client, 'leader', sys.argv[2]).run(lead)\n"
        "async def lead():\n"
        "    print('leading', flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    kubeconfig: Path = shared_api_server.data / "admin.kubeconfig"
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(kubeconfig), namespace, stdout=asyncio.subprocess.PIPE
    )
    assert other.stdout is not None
    assert await asyncio.wait_for(other.stdout.readline(), 20) == b"leading\n"
    term = Term()
    task = asyncio.create_task(LeaderElector(client, "leader", namespace).run(term))
    await asyncio.sleep(0.5)
    assert not term.started
    other.send_signal(signal.SIGKILL)
    await other.wait()
    assert await eventually(lambda: bool(term.started)) < 2.0
    await stop(task)


async def test_the_end_of_the_leading_task_ends_the_election_with_its_result(client: Client, namespace: str) -> None:
    async def fails() -> None:
        raise RuntimeError("cannot lead")

    with pytest.raises(RuntimeError, match="cannot lead"):
        await asyncio.wait_for(LeaderElector(client, "leader", namespace).run(fails), 5)
    assert not (await lease_of(client, namespace))["spec"]["holderIdentity"]


def test_a_process_is_known_to_be_gone_only_on_its_own_machine() -> None:
    mark = own_mark()
    boot, namespace, pid, started = mark.split("/")
    assert pid == str(os.getpid())
    assert not is_gone(mark)
    assert is_gone(f"{boot}/{namespace}/{pid}/{int(started) - 1}")
    assert not is_gone(f"other-boot/{namespace}/{pid}/1")
    assert not is_gone("")


def test_timings_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match="renew deadline"):
        Timing(lease=5, renew=6)
