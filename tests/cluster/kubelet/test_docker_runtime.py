"""The contract of plugins.Runtime, on a real dockerd."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from pathlib import Path

import pytest

from kernelet.agents.kubelet.docker import DockerConfig, DockerRuntime
from kernelet.agents.kubelet.images import PAUSE_IMAGE
from kernelet.agents.kubelet.plugins import (
    ContainerSpec,
    ContainerState,
    ImagePullFailure,
    RuntimeFailure,
    RuntimeUnreachable,
)


def spec(images: str, node: str, name: str, *command: str, **changes: object) -> ContainerSpec:
    fields = {"labels": {"io.kernelet.node": node}, "command": ["/bin/sh", "-c", *command]} | changes
    return ContainerSpec(name=f"{node}-{name}", image=images, **fields)  # type: ignore[arg-type]


def namespace_of(pid: int, kind: str) -> int:
    """Identifies the namespace a process is in."""
    return Path(f"/proc/{pid}/ns/{kind}").stat().st_ino


async def started(runtime: DockerRuntime, wanted: ContainerSpec) -> str:
    container_id = await runtime.create(wanted)
    await runtime.start(container_id)
    return container_id


async def test_a_container_goes_from_created_to_running_to_exited(
    runtime: DockerRuntime, images: str, node_name: str
) -> None:
    wanted = spec(images, node_name, "a", "trap 'exit 3' TERM; while :; do sleep 0.05; done")
    container_id = await runtime.create(wanted)
    created = await runtime.inspect(container_id)
    assert created is not None and created.state is ContainerState.CREATED
    assert await runtime.create(wanted) == container_id, "creating again returns the same container"
    await runtime.start(container_id)
    running = await runtime.inspect(container_id)
    assert running is not None and running.state is ContainerState.RUNNING and running.pid > 0
    await runtime.stop(container_id, 5)
    (ended,) = await runtime.list({"io.kernelet.node": node_name})
    assert (ended.state, ended.exit_code, ended.pid) == (ContainerState.EXITED, 3, 0)
    await runtime.remove(container_id)
    await runtime.remove(container_id)
    assert await runtime.inspect(container_id) is None


async def test_stop_kills_after_the_grace_period(runtime: DockerRuntime, images: str, node_name: str) -> None:
    container_id = await started(runtime, spec(images, node_name, "deaf", "trap '' TERM; while :; do sleep 0.05; done"))
    begun = time.monotonic()
    await runtime.stop(container_id, 1)
    assert 0.9 < time.monotonic() - begun < 8
    ended = await runtime.inspect(container_id)
    assert ended is not None and ended.exit_code == 137


async def test_containers_share_the_network_and_ipc_of_their_sandbox(
    runtime: DockerRuntime, images: str, node_name: str
) -> None:
    pause = await started(runtime, ContainerSpec(f"{node_name}-pause", PAUSE_IMAGE, {"io.kernelet.node": node_name}))
    inside = await started(runtime, spec(images, node_name, "in", "sleep 60", sandbox=pause))
    pids = []
    for container_id in (pause, inside):
        status = await runtime.inspect(container_id)
        assert status is not None
        pids.append(status.pid)
    for kind in ("net", "ipc"):
        assert len({namespace_of(pid, kind) for pid in pids}) == 1, f"namespace {kind} is shared"
    begun = time.monotonic()
    await runtime.stop(pause, 10)
    assert time.monotonic() - begun < 3, "pause ends on SIGTERM"


async def test_exec_gives_exit_code_and_output(runtime: DockerRuntime, images: str, node_name: str) -> None:
    container_id = await started(runtime, spec(images, node_name, "x", "sleep 60"))
    result = await runtime.exec(container_id, ["sh", "-c", "echo out; echo err >&2; exit 7"], 10)
    assert (result.exit_code, sorted(result.output.split())) == (7, [b"err", b"out"])
    missing = await runtime.exec(container_id, ["no-such-program"], 10)
    assert missing.exit_code in (126, 127)
    with pytest.raises(TimeoutError):
        await runtime.exec(container_id, ["sleep", "5"], 0.3)


async def test_exec_stream_carries_standard_input_until_it_is_closed(
    runtime: DockerRuntime, images: str, node_name: str
) -> None:
    container_id = await started(runtime, spec(images, node_name, "cat", "sleep 60"))
    stream = await runtime.exec_stream(container_id, ["sh", "-c", "cat; echo bye >&2; exit 5"], stdin=True, tty=False)
    payload = b"x" * 300_000
    frames = []
    try:
        await stream.write(payload)
        await stream.close_stdin()
        async with aclosing(stream.frames()) as found:
            async for frame in found:
                frames.append(frame)
        assert await stream.wait() == 5
    finally:
        await stream.close()
    assert b"".join(data for channel, data in frames if channel == 1) == payload
    assert b"".join(data for channel, data in frames if channel == 2) == b"bye\n"


async def test_logs_follow_until_the_container_ends(runtime: DockerRuntime, images: str, node_name: str) -> None:
    container_id = await started(
        runtime, spec(images, node_name, "log", "for i in 1 2 3; do echo line $i; sleep 0.2; done")
    )
    options = {"timestamps": False, "since_seconds": 0}
    chunks = []
    async with aclosing(runtime.logs(container_id, follow=True, tail_lines=-1, **options)) as lines:
        async for chunk in lines:
            chunks.append(chunk)
    assert b"".join(chunks) == b"line 1\nline 2\nline 3\n"
    async with aclosing(runtime.logs(container_id, follow=False, tail_lines=1, **options)) as lines:
        assert [chunk async for chunk in lines] == [b"line 3\n"]


async def test_the_end_of_a_container_is_an_event(runtime: DockerRuntime, images: str, node_name: str) -> None:
    events = runtime.events({"io.kernelet.node": node_name})
    async with aclosing(events):
        first = asyncio.ensure_future(anext(events))
        await runtime.version()
        container_id = await started(runtime, spec(images, node_name, "short", "exit 0"))
        async with asyncio.timeout(10):
            assert await first == container_id


async def test_a_program_that_is_not_there_ends_the_container_with_its_cause(
    runtime: DockerRuntime, images: str, node_name: str
) -> None:
    container_id = await runtime.create(spec(images, node_name, "none", command=["/no/such/program"]))
    with pytest.raises(RuntimeFailure, match="no such file"):
        await runtime.start(container_id)
    found = await runtime.inspect(container_id)
    assert found is not None and found.state is ContainerState.EXITED
    assert found.exit_code == 127 and "no such file" in found.error


async def test_failures_name_the_image_and_the_fix(runtime: DockerRuntime, node_name: str, tmp_path: object) -> None:
    with pytest.raises(ImagePullFailure, match=r"image 127\.0\.0\.1:9/none:1 is not on this node.*docker load"):
        await runtime.pull("127.0.0.1:9/none:1")
    with pytest.raises(RuntimeFailure, match="No such image"):
        await runtime.create(ContainerSpec(f"{node_name}-n", "no/such:image", {}))
    away = DockerRuntime(DockerConfig(f"{tmp_path}/none.sock"))
    try:
        with pytest.raises(RuntimeUnreachable, match=r"none\.sock does not answer"):
            await away.version()
        with pytest.raises(RuntimeUnreachable, match=r"none\.sock does not answer"):
            await away.stop("abc", 0)
    finally:
        await away.close()
