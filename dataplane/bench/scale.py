"""`kernelet bench scale`: what the number of services, with ten endpoints each, costs an engine.

Every start has a process of its own in a world of its own (topology.py), and worlds of all sizes stand side by side
while first connections are measured, in turns. All backends exist: one pod answers for every address, so that a client
may connect to any service. A kernel engine's process is killed before the next one starts: its
routes stay, and while any process of the machine, in whichever network namespace, listens for nftables' notifications,
the kernel writes one for every element of every transaction, which doubles the time of a cold start.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from .report import Report, Result, minutes, quantile
from .scale_agent import FIRST_SERVICE, PODS, PORTS
from .subjects import BY_NAME, available, backends, wait_answering
from .topology import SERVICE_PORT, BenchError, World, find_nginx, workshop

PROCESS = "start of the agent's process, before cold start"
COLD, RESTART = "cold start to programmed", "restart, kernel programmed already"
CHANGE_P50, CHANGE_P99 = "one endpoint changed, p50", "one endpoint changed, p99"
TIDY = "tidying up after a change, p50"
CONNECT = "first connection to a service, p50"
MEMORY, EMPTY = "peak memory of the agent", "memory of the agent without services"
_UNITS = {COLD: "s", RESTART: "s", CHANGE_P50: "ms", CHANGE_P99: "ms", TIDY: "ms", CONNECT: "us", MEMORY: "MB"}
_ALIKE = {PROCESS: "s", EMPTY: "MB"}
"""What does not depend on the number of services."""
_AGENT = "from kernelet.dataplane.bench.scale_agent import main; main()"
Samples = dict[tuple[str, int], list[float]]
"""(case, services) -> a value a round; of first connections a value a batch."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured."""

    sizes: tuple[int, ...]
    rounds: int
    changes: int
    batches: int
    """In which first connections are measured, by turns with the other sizes."""
    connections: int
    """In one batch."""

    def duration(self, engines: list[str]) -> float:
        """Seconds, roughly. Userspace engines have no restart to be measured, and little to tidy up."""
        each = 1 + 0.011 * self.changes + 0.07 * self.batches
        whole = sum(each + size / 1500 for size in self.sizes)
        return self.rounds * whole * sum(0.5 if BY_NAME[engine].userspace else 1 for engine in engines)


FULL = Extent((10, 1_000, 10_000, 50_000), rounds=5, changes=500, batches=20, connections=100)
QUICK = Extent((10, 1_000, 10_000), rounds=1, changes=30, batches=4, connections=20)


class AgentProcess:
    """`scale_agent` in a world's node."""

    def __init__(self, world: World, engine: str) -> None:
        places = (str(world.client.cgroup or ""), str(world.pins))
        command = world.node.command(sys.executable, "-c", _AGENT, engine, *places)
        log = world.folder / "agent.log"
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True
            )
        self._log = log
        world.callback(self.kill)
        self.seconds = self._until_ready()
        """From the command to an engine that may be started: Python, and what is imported."""

    def _until_ready(self) -> float:
        began = time.perf_counter()
        self.ask("ready")
        return time.perf_counter() - began

    def ask(self, *command: Any) -> dict[str, Any]:
        """Raises BenchError with what the engine says, or with the end of the process's log."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise BenchError(f"the process that holds the engine has died: {self._log.read_text()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchError(answer["error"])
        return answer

    def kill(self) -> None:
        """As a crash would; what the engine has put into the kernel stays."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def bench_scale(names: list[str], extent: Extent, say: Callable[[str], None]) -> Report:
    """Raises BenchError; whatever happens, all worlds are removed."""
    for name in names:
        if name not in available() or name == "haproxy":
            known = ", ".join(engine for engine in available() if engine != "haproxy")
            raise BenchError(f"no engine is called {name!r}; there are {known}")
    say(f"{', '.join(names)}: about {minutes(extent.duration(names))}")
    made = Report("scale", metadata.version("kernelet"))
    measured = {name: _Measured(defaultdict(list), {}) for name in names}
    with workshop() as folder:
        nginx = find_nginx(folder)
        for number in range(1, extent.rounds + 1):
            for name in names:
                say(f"{name}, round {number} of {extent.rounds}")
                _round(name, extent, nginx, folder, measured[name], say)
    for name, found in measured.items():
        made.results += _results(name, found.samples)
        made.notes += [f"{name} cannot hold {size:,} services: {why}" for size, why in found.refused.items()]
    return made


@dataclass(frozen=True, slots=True)
class _Measured:
    samples: Samples
    refused: dict[int, str]
    """Numbers of services that the engine cannot hold, and what it says."""


def _round(
    engine: str, extent: Extent, nginx: Path, folder: Path, measured: _Measured, say: Callable[[str], None]
) -> None:
    samples, subject = measured.samples, BY_NAME[engine]
    with ExitStack() as stack:
        running: dict[int, tuple[World, AgentProcess]] = {}
        for size in extent.sizes:
            if size in measured.refused:
                continue
            made = World(f"{engine}-{size}", nginx, folder, cgroup=subject.cgroup, ports=PORTS)
            world = stack.enter_context(made)
            _answer_for_all_pods(world)
            agent = AgentProcess(world, engine)
            samples[PROCESS, size].append(agent.seconds)
            try:
                text = _program(agent, size, extent.changes, samples)
            except BenchError as error:
                measured.refused[size] = text = str(error)
            else:
                running[size] = (world, agent)
            say(f"{engine} with {size:,} services: {text}")
            if not subject.userspace or size not in running:
                agent.kill()
        _connect(running, extent, samples)
        if subject.userspace:
            return  # What it does is gone with its process: each start is a cold one.
        for size, (world, _) in running.items():
            again = AgentProcess(world, engine)
            seconds = again.ask("start", size)["seconds"]
            samples[RESTART, size].append(seconds)
            say(f"{engine} with {size:,} services: restarted in {seconds:.3f} s")
            again.ask("close")
            again.kill()


def _answer_for_all_pods(world: World) -> None:
    """Makes the first backend pod answer for the addresses of all pods in the routes."""
    address = world.backend_addresses[0]
    world.node.ip(f"route add {PODS} via {address} dev web0 onlink")
    world.backends[0].ip(f"route add local {PODS} dev lo")
    wait_answering(world, world.node, [*backends(world), *(f"{PODS[-1]}:{port}" for port in PORTS)])


def _program(agent: AgentProcess, size: int, changes: int, samples: Samples) -> str:
    started = agent.ask("start", size)
    samples[COLD, size].append(started["seconds"])
    samples[MEMORY, size].append(started["peak_mb"])
    samples[EMPTY, size].append(started["empty_mb"])
    changed = agent.ask("change", changes)
    took = [seconds * 1000 for seconds in changed["seconds"]]
    samples[CHANGE_P50, size].append(quantile(took, 0.5))
    samples[CHANGE_P99, size].append(quantile(took, 0.99))
    samples[TIDY, size].append(quantile(changed["tidy_seconds"], 0.5) * 1000)
    return (
        f"cold start {started['seconds']:.3f} s, a change {quantile(took, 0.5):.2f} ms (p99 "
        f"{quantile(took, 0.99):.2f} ms), {started['peak_mb']:.0f} MB"
    )


def _connect(running: dict[int, tuple[World, AgentProcess]], extent: Extent, samples: Samples) -> None:
    """In batches by turns, so that a disturbance of the machine meets all sizes alike."""
    for _ in range(extent.batches):
        for size, (world, _agent) in random.sample(list(running.items()), len(running)):
            program = _CONNECT.format(
                first=int(FIRST_SERVICE), services=size, port=SERVICE_PORT, count=extent.connections
            )
            times = json.loads(world.client.run(sys.executable, "-c", program))
            samples[CONNECT, size].append(quantile(times, 0.5) * 1e6)


_CONNECT = """
import ipaddress, json, random, socket, time
took = []
for _ in range({count}):
    address = str(ipaddress.ip_address({first} + random.randrange({services})))
    sock = socket.socket()
    sock.settimeout(5)
    # Reset at the end, so that none waits in TIME_WAIT.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes((1, 0, 0, 0, 0, 0, 0, 0)))
    began = time.perf_counter()
    sock.connect((address, {port}))
    took.append(time.perf_counter() - began)
    sock.close()
print(json.dumps(took))
"""


def _results(engine: str, samples: Samples) -> list[Result]:
    """First connections are compared with those among the fewest services."""
    made = []
    for case, unit in _UNITS.items():
        sizes = sorted(size for name, size in samples if name == case)
        for size in sizes:
            values, least = samples[case, size], sizes[0]
            if case == CONNECT and size != least:
                result = Result.versus(case, engine, values, unit, f"{least} services", samples[case, least])
            else:
                result = Result.of(case, engine, values, unit)
            made.append(replace(result, size=size))
    for case, unit in _ALIKE.items():
        every = [value for (name, _), values in samples.items() if name == case for value in values]
        made.append(Result.of(case, engine, every, unit))
    return made
