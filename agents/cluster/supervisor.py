"""Keeps a cluster's processes running: starts, restarts with back-off, adopts those that outlived a supervisor.

A supervisor that was killed leaves its units running; the next one finds them by their pid files and waits for them by
pidfd (pidfd_open(2)), which also works for processes that are not its children. Of each cluster there is one supervisor
at a time: two would start each other's units.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from .paths import ClusterPaths
from .processes import ProcessId
from .spec import ClusterSpec, Unit

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0
STEADY_SECONDS = 10.0
"""A unit that ran this long is restarted at once again."""
STOP_GRACE = 10.0
CONTROL_PLANE = ("etcd", "apiserver", "controllers")
"""Stopped last, in reverse order: the others may want to say goodbye."""


@dataclass(slots=True)
class _State:
    unit: Unit
    wanted: bool = True
    process: ProcessId | None = None
    restarts: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Supervisor:
    """Owns the processes of one cluster on this host."""

    def __init__(self, paths: ClusterPaths, spec: ClusterSpec) -> None:
        self._paths = paths
        self._states = {unit.name: _State(unit) for unit in spec.units}
        self._shutdown = asyncio.Event()

    async def run(self) -> None:
        """Until `shutdown` is asked for or SIGTERM comes; then stops every unit.

        Raises RuntimeError when another supervisor runs already.
        """
        self._take_over()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._shutdown.set)
        try:
            server = await asyncio.start_unix_server(self._serve, self._paths.supervisor_socket)
            self._paths.supervisor_socket.chmod(0o600)
            async with server:
                await self._keep_all()
        finally:
            await self._stop_all()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _take_over(self) -> None:
        """Becomes this cluster's supervisor, after one that is dead."""
        self._paths.run.mkdir(parents=True, exist_ok=True)
        self._paths.logs.mkdir(parents=True, exist_ok=True)
        own, other = ProcessId.of(os.getpid()), ProcessId.read(self._paths.pid_file("supervisor"))
        if other is not None and other != own:
            raise RuntimeError(
                f"cluster {self._paths.name} is supervised by process {other.pid} already; "
                "stop that one, or remove the cluster with `kernelet reset`"
            )
        if own is not None:
            own.write(self._paths.pid_file("supervisor"))
        with suppress(FileNotFoundError):
            self._paths.supervisor_socket.unlink()

    async def _keep_all(self) -> None:
        """Until shutdown; what a keeper raises ends it."""
        keepers = [asyncio.create_task(self._keep(state), name=state.unit.name) for state in self._states.values()]
        ended = asyncio.create_task(self._shutdown.wait())
        try:
            done, _ = await asyncio.wait([*keepers, ended], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*keepers, ended):
                task.cancel()
            await asyncio.gather(*keepers, ended, return_exceptions=True)
        for task in done - {ended}:
            task.result()

    async def _stop_all(self) -> None:
        states = list(self._states.values())
        nodes = [state for state in states if state.unit.name not in CONTROL_PLANE]
        await asyncio.gather(*(self._stop(state, signal.SIGTERM) for state in nodes))
        for state in reversed([state for state in states if state not in nodes]):
            await self._stop(state, signal.SIGTERM)
        for name in ("supervisor.sock", "supervisor.pid"):
            with suppress(FileNotFoundError):
                (self._paths.run / name).unlink()

    async def _keep(self, state: _State) -> None:
        pause = FIRST_PAUSE
        while True:
            state.changed.clear()
            if not state.wanted:
                await state.changed.wait()
                continue
            started = asyncio.get_running_loop().time()
            await self._run_once(state)
            if not state.wanted:
                continue
            state.restarts += 1
            if asyncio.get_running_loop().time() - started > STEADY_SECONDS:
                pause = FIRST_PAUSE
            log.warning("unit ended, starting it again unit=%s pause=%.1f", state.unit.name, pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await state.changed.wait()
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _run_once(self, state: _State) -> None:
        """Starts the unit, or adopts it where it runs, and waits for its end."""
        try:
            state.process = ProcessId.read(self._paths.pid_file(state.unit.name)) or self._spawn(state.unit)
        except OSError as error:
            log.error("unit cannot be started unit=%s: %s", state.unit.name, error)
            return
        await _wait_end(state.process)
        state.process = None

    def _spawn(self, unit: Unit) -> ProcessId:
        """Raises OSError where the program is missing or its port is taken."""
        with ExitStack() as stack:
            argv, fds = list(unit.argv), []
            if unit.listen:
                listener = stack.enter_context(_bind(unit.listen))
                fds.append(listener.fileno())
                argv += ["--listen-fd", str(listener.fileno())]
            return self._spawn_with(unit, argv, fds)

    def _spawn_with(self, unit: Unit, argv: list[str], fds: list[int]) -> ProcessId:
        if unit.netns:
            # Not `ip netns exec`: that mounts a new /sys, which hides cgroups and the bpf filesystem.
            argv = ["nsenter", f"--net={unit.netns}", "--", *argv]
        with self._paths.log_file(unit.name).open("ab") as output:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=fds,
                start_new_session=True,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
        # A child that is gone already is found ended by its keeper, and started again with a pause.
        process = ProcessId.of(child.pid) or ProcessId(child.pid, 0)
        process.write(self._paths.pid_file(unit.name))
        log.info("started unit=%s pid=%d", unit.name, child.pid)
        return process

    async def _stop(self, state: _State, number: signal.Signals) -> None:
        state.wanted = False
        process = state.process or ProcessId.read(self._paths.pid_file(state.unit.name))
        if process is not None:
            process.send(number)
            try:
                async with asyncio.timeout(STOP_GRACE):
                    await _wait_end(process)
            except TimeoutError:
                log.warning("unit did not stop, killing it unit=%s", state.unit.name)
                process.send(signal.SIGKILL)
                await _wait_end(process)
        if not state.wanted:  # Else it was wanted again meanwhile, and the file may be its successor's.
            self._paths.pid_file(state.unit.name).unlink(missing_ok=True)
        state.changed.set()

    # Control socket: one JSON object a line, one answer a line.

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async for line in reader:
                writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError) as error:
            log.info("control connection ended: %s", error)  # ValueError: a line longer than the reader's limit
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            return {"ok": True, "result": await self._perform(json.loads(line))}
        except (ValueError, KeyError, TypeError) as error:
            return {"ok": False, "error": f"request {line.decode(errors='replace').strip()}: {error}"}

    async def _perform(self, request: dict[str, Any]) -> Any:
        """Raises KeyError and ValueError for what is not known here."""
        operation = request["op"]
        if operation == "status":
            return self._status()
        if operation == "shutdown":
            return self._shutdown.set()
        if operation not in ("start", "stop"):
            raise ValueError(f"no such operation {operation!r}")
        if request["unit"] not in self._states:
            raise ValueError(f"no such unit, only {', '.join(self._states)}")
        state = self._states[request["unit"]]
        if operation == "stop":
            await self._stop(state, signal.Signals[request.get("signal", "SIGTERM")])
        else:
            state.wanted = True
            state.changed.set()
        return None

    def _status(self) -> dict[str, Any]:
        return {
            name: {
                "wanted": state.wanted,
                "pid": state.process.pid if state.process else 0,
                "restarts": state.restarts,
            }
            for name, state in self._states.items()
        }


async def _wait_end(process: ProcessId) -> None:
    """Waits for a process, child or not, and reaps it if it is a child."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(fd, ended.set)
    try:
        if process.alive:
            await ended.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    _reap(process.pid)


def _reap(pid: int) -> None:
    """Takes the exit status of an ended child; what was adopted is not ours to reap."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _bind(listen: str) -> socket.socket:
    """Raises OSError naming the address."""
    host, _, port = listen.rpartition(":")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), int(port)))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {listen}: {error.strerror}; free the port") from error
    return listener


async def ask(paths: ClusterPaths, request: dict[str, Any], deadline: float = 30.0) -> Any:
    """One request to a running supervisor.

    Raises ConnectionError when none runs or it does not answer in time, RuntimeError when it refuses.
    """
    try:
        async with asyncio.timeout(deadline):
            answer = await _exchange(paths, request)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise ConnectionError(f"cluster {paths.name}: its supervisor does not run") from error
    except TimeoutError as error:
        raise ConnectionError(f"cluster {paths.name}: its supervisor did not answer within {deadline:.0f} s") from error
    if not answer["ok"]:
        raise RuntimeError(f"cluster {paths.name}: {answer['error']}")
    return answer["result"]


async def _exchange(paths: ClusterPaths, request: dict[str, Any]) -> dict[str, Any]:
    reader, writer = await asyncio.open_unix_connection(paths.supervisor_socket)
    try:
        writer.write(json.dumps(request).encode() + b"\n")
        answer: dict[str, Any] = json.loads(await reader.readline() or b'{"ok": false, "error": "no answer"}')
        return answer
    finally:
        writer.close()


def spawn_detached(paths: ClusterPaths) -> None:
    """Starts a supervisor for the cluster in the background; it outlives this process."""
    paths.logs.mkdir(parents=True, exist_ok=True)
    paths.run.mkdir(parents=True, exist_ok=True)
    with paths.log_file("supervisor").open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "kernelet.agents.cluster.supervise", paths.name],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    process = ProcessId.of(child.pid)
    # Here and not by itself alone: whoever removes the cluster in its first moments must find it.
    if process is not None and ProcessId.read(paths.pid_file("supervisor")) is None:
        process.write(paths.pid_file("supervisor"))
