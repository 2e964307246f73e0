"""The supervisor of a cluster's processes, with real ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.apiserver import free_ports
from support.waiting import eventually

from kernelet.agents.cluster import supervisor as module
from kernelet.agents.cluster.paths import ClusterPaths
from kernelet.agents.cluster.processes import ProcessId, stop
from kernelet.agents.cluster.spec import ClusterSpec, Unit
from kernelet.agents.cluster.supervisor import Supervisor, ask

SLEEP = ("sleep", "300")
STUBBORN = (sys.executable, "-c", "import signal,time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(300)")


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[ClusterPaths]:
    """Whatever is left running below it at the end is killed."""
    made = ClusterPaths("test", tmp_path / "state", tmp_path / "run")
    yield made
    for file in made.run.glob("*.pid"):
        process = ProcessId.read(file)
        if process is not None and file.stem != "supervisor":
            stop(process, 0)


def spec_of(*units: Unit) -> ClusterSpec:
    return ClusterSpec("test", "namespaces", 6443, "/run/docker.sock", units)


@contextlib.asynccontextmanager
async def supervising(paths: ClusterPaths, *units: Unit) -> AsyncIterator[Supervisor]:
    made = Supervisor(paths, spec_of(*units))
    task = asyncio.create_task(made.run())
    try:
        await eventually(lambda: task.done() or paths.supervisor_socket.exists())
        yield made
    finally:
        made._shutdown.set()
        await task


async def unit_of(paths: ClusterPaths, name: str) -> dict[str, Any]:
    found: dict[str, Any] = (await ask(paths, {"op": "status"}))[name]
    return found


def running(paths: ClusterPaths, name: str, other_than: ProcessId | None = None) -> ProcessId | None:
    found = ProcessId.read(paths.pid_file(name))
    return found if found != other_than else None


async def start_of(paths: ClusterPaths, name: str, other_than: ProcessId | None = None) -> ProcessId:
    """The unit's process, once there is one."""
    await eventually(lambda: running(paths, name, other_than) is not None)
    found = running(paths, name)
    assert found is not None
    return found


async def test_it_starts_every_unit_and_stops_all_leaving_no_files(paths: ClusterPaths) -> None:
    async with supervising(paths, Unit("a", SLEEP), Unit("b", SLEEP)):
        processes = [await start_of(paths, name) for name in "ab"]
        assert (await unit_of(paths, "a"))["pid"] == processes[0].pid
    assert not any(process.alive for process in processes)
    assert list(paths.run.iterdir()) == []


async def test_a_unit_that_dies_is_started_again(paths: ClusterPaths) -> None:
    async with supervising(paths, Unit("a", SLEEP)):
        first = await start_of(paths, "a")
        first.send(signal.SIGKILL)
        second = await start_of(paths, "a", first)
        assert second.alive
        assert (await unit_of(paths, "a"))["restarts"] == 1


async def test_a_unit_that_dies_at_once_is_started_with_growing_pauses(
    paths: ClusterPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.1)
    loop = asyncio.get_running_loop()
    async with supervising(paths, Unit("a", ("sh", "-c", "echo hello; exit 3"))):
        began = loop.time()
        await eventually(lambda: paths.log_file("a").exists() and paths.log_file("a").read_text().count("hello") == 4)
        assert loop.time() - began > 0.1 + 0.2 + 0.4 - 0.1


async def test_a_program_that_does_not_exist_takes_no_other_unit_with_it(
    paths: ClusterPaths, caplog: pytest.LogCaptureFixture
) -> None:
    async with supervising(paths, Unit("lost", ("/nowhere/program",)), Unit("a", SLEEP)):
        await start_of(paths, "a")
        await eventually(lambda: "unit cannot be started unit=lost" in caplog.text)
        assert (await unit_of(paths, "lost"))["pid"] == 0


async def test_a_listener_is_passed_on_and_a_taken_port_is_waited_for(
    paths: ClusterPaths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.05)
    port = free_ports(1)[0]
    program = (
        "import socket,sys; s=socket.socket(fileno=int(sys.argv[2])); print(sys.argv[1]);"
        "c,_=s.accept(); c.sendall(b'hello'); c.recv(1)"
    )
    holder = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", port)
    unit = Unit("web", (sys.executable, "-c", program), listen=f"127.0.0.1:{port}")
    async with supervising(paths, unit):
        await eventually(lambda: f"cannot listen on 127.0.0.1:{port}" in caplog.text)
        holder.close()
        await start_of(paths, "web")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.readexactly(5) == b"hello"
        writer.close()


async def test_stop_and_start_by_the_control_socket(paths: ClusterPaths) -> None:
    async with supervising(paths, Unit("a", SLEEP), Unit("b", SLEEP)):
        first, other = await start_of(paths, "a"), await start_of(paths, "b")
        await ask(paths, {"op": "stop", "unit": "a", "signal": "SIGKILL"})
        assert not first.alive
        assert await unit_of(paths, "a") == {"wanted": False, "pid": 0, "restarts": 0}
        await ask(paths, {"op": "start", "unit": "a"})
        assert (await start_of(paths, "a", first)).alive
        assert other.alive


async def test_a_unit_that_ignores_the_signal_is_killed(paths: ClusterPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_GRACE", 0.2)
    async with supervising(paths, Unit("a", STUBBORN)):
        process = await start_of(paths, "a")
        await eventually(lambda: "up" in paths.log_file("a").read_text())
        await ask(paths, {"op": "stop", "unit": "a"})
        assert not process.alive


async def test_a_unit_wanted_again_while_it_stops_keeps_its_new_pid_file(
    paths: ClusterPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STOP_GRACE", 0.3)
    async with supervising(paths, Unit("a", STUBBORN)):
        first = await start_of(paths, "a")
        await eventually(lambda: "up" in paths.log_file("a").read_text())
        stopping = asyncio.create_task(ask(paths, {"op": "stop", "unit": "a"}))
        await eventually(lambda: not stopping.done())
        async with asyncio.timeout(5):
            while (await unit_of(paths, "a"))["wanted"]:
                pass
        await ask(paths, {"op": "start", "unit": "a"})
        await stopping
        second = await start_of(paths, "a", first)
        assert (await unit_of(paths, "a"))["pid"] == second.pid


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"op": "explode", "unit": "a"}, "no such operation 'explode'"),
        ({"op": "stop", "unit": "z"}, "no such unit, only a"),
        ({"op": "stop", "unit": "a", "signal": "SIGNONE"}, "SIGNONE"),
        ({}, "'op'"),
        ([], "list indices"),
    ],
)
async def test_a_request_that_makes_no_sense_is_refused_and_changes_nothing(
    paths: ClusterPaths, request_: Any, message: str
) -> None:
    async with supervising(paths, Unit("a", SLEEP)):
        process = await start_of(paths, "a")
        with pytest.raises(RuntimeError, match=message):
            await ask(paths, request_)
        assert process.alive
        assert (await unit_of(paths, "a"))["wanted"]


async def test_bytes_that_are_no_request_end_the_connection_alone(paths: ClusterPaths) -> None:
    async with supervising(paths, Unit("a", SLEEP)):
        reader, writer = await asyncio.open_unix_connection(paths.supervisor_socket)
        writer.write(b"\xff nonsense\n")
        assert not json.loads(await reader.readline())["ok"]
        writer.write(b"x" * 200_000 + b"\n")
        assert await reader.read() == b""
        writer.close()
        assert await unit_of(paths, "a")


async def test_without_a_supervisor_asking_says_so(paths: ClusterPaths) -> None:
    with pytest.raises(ConnectionError, match="cluster test: its supervisor does not run"):
        await ask(paths, {"op": "status"})


async def test_shutdown_by_the_control_socket_stops_everything(paths: ClusterPaths) -> None:
    async with supervising(paths, Unit("apiserver", SLEEP), Unit("node-1", SLEEP)):
        processes = [await start_of(paths, name) for name in ("apiserver", "node-1")]
        await ask(paths, {"op": "shutdown"})
        await eventually(lambda: not any(process.alive for process in processes))


async def test_there_is_one_supervisor_of_a_cluster_at_a_time(paths: ClusterPaths) -> None:
    with child(paths, Unit("a", SLEEP)) as first:
        process = await start_of(paths, "a")
        with pytest.raises(RuntimeError, match=f"supervised by process {first.pid} already"):
            await Supervisor(paths, spec_of(Unit("a", SLEEP))).run()
        assert process.alive
        assert await ask(paths, {"op": "status"})


async def test_units_outlive_a_killed_supervisor_and_are_adopted_by_the_next(paths: ClusterPaths) -> None:
    with child(paths, Unit("a", SLEEP)) as first:
        process = await start_of(paths, "a")
        first.kill()
        first.wait()
    assert process.alive
    with child(paths, Unit("a", SLEEP)) as second:
        await eventually(lambda: running(paths, "supervisor") is not None)
        await eventually(paths.supervisor_socket.exists)
        assert (await status_when_up(paths))["a"]["pid"] == process.pid
        # What it did not start itself it keeps and stops all the same.
        process.send(signal.SIGKILL)
        again = await start_of(paths, "a", process)
        second.send_signal(signal.SIGTERM)
        await eventually(lambda: second.poll() is not None)
        assert not again.alive
        assert second.returncode == 0


async def test_a_pid_that_was_used_again_is_not_adopted_and_not_harmed(paths: ClusterPaths) -> None:
    stranger = await asyncio.create_subprocess_exec(*SLEEP)
    try:
        paths.run.mkdir(parents=True)
        known = ProcessId.of(stranger.pid)
        assert known is not None
        ProcessId(stranger.pid, known.start_time - 1).write(paths.pid_file("a"))
        async with supervising(paths, Unit("a", SLEEP)):
            assert await start_of(paths, "a") != known
        assert known.alive
    finally:
        stranger.kill()
        await stranger.wait()


@contextlib.contextmanager
def child(paths: ClusterPaths, *units: Unit) -> Iterator[subprocess.Popen[bytes]]:
    """A supervisor in a process of its own."""
    spec_of(*units).save(paths.spec)
    program = Path(__file__).with_name("cluster_program.py")
    made = subprocess.Popen([sys.executable, str(program), str(paths.state_root.parent)])
    try:
        yield made
    finally:
        made.terminate()
        made.wait(20)


async def status_when_up(paths: ClusterPaths) -> dict[str, Any]:
    """Of a supervisor that may have a socket to listen on in a moment only."""
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(ConnectionError):
                found: dict[str, Any] = await ask(paths, {"op": "status"})
                if found["a"]["pid"]:
                    return found
            await asyncio.sleep(0.01)
