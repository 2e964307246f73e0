"""`kernelet bench scale`: what the number of services, with ten endpoints each, costs an engine.

Every measurement has a process of its own in a world of its own (topology.py), and worlds of all sizes stand side by
side while first connections are measured, in turns. A kernel engine's process is killed before the next one starts: its
routes stay, and while any process of the machine, in whichever network namespace, listens for nftables' notifications,
the kernel writes one for every element of every transaction, which doubles the time of a cold start.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from .report import Report, Result, quantile
from .scale_agent import PROBED
from .subjects import BY_NAME, available
from .topology import SERVICE_PORT, BenchError, World, find_nginx, workshop

COLD, RESTART = "cold start to programmed", "restart, kernel programmed already"
CHANGE_P50, CHANGE_P99 = "one endpoint changed, p50", "one endpoint changed, p99"
CONNECT = "first connection to a service, p50"
MEMORY, EMPTY = "peak memory of the agent", "memory of the agent without services"
_UNITS = {COLD: "s", RESTART: "s", CHANGE_P50: "ms", CHANGE_P99: "ms", CONNECT: "us", MEMORY: "MB", EMPTY: "MB"}
_AGENT = "from kernelet.dataplane.bench.scale_agent import main; main()"
Samples = dict[tuple[str, int], list[float]]
"""(case, services) -> a value a round."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured."""

    sizes: tuple[int, ...]
    rounds: int
    changes: int
    connections: int
    """In one batch, of which there are ten."""

    def duration(self, engines: int) -> int:
        """Seconds, roughly."""
        return round(engines * self.rounds * sum(4 + size / 1400 for size in self.sizes))


FULL = Extent((10, 1_000, 10_000, 50_000), rounds=5, changes=1000, connections=200)
QUICK = Extent((10, 1_000, 10_000), rounds=1, changes=200, connections=50)


class AgentProcess:
    """`scale_agent` in a world's node."""

    def __init__(self, world: World, engine: str) -> None:
        places = (str(world.client.cgroup or ""), str(world.config.pins or ""))
        command = world.node.command(sys.executable, "-c", _AGENT, engine, *places)
        log = world.folder / "agent.log"
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True
            )
        self._log = log
        world.callback(self.kill)

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
    say(f"{', '.join(names)}: about {extent.duration(len(names)) / 60:.0f} minutes")
    made = Report("scale", metadata.version("kernelet"))
    with workshop() as folder:
        nginx = find_nginx(folder)
        for name in names:
            samples: Samples = defaultdict(list)
            for number in range(1, extent.rounds + 1):
                say(f"{name}, round {number} of {extent.rounds}")
                _round(name, extent, nginx, folder, samples, say)
            made.results += _results(name, samples)
    return made


def _round(
    engine: str, extent: Extent, nginx: Path, folder: Path, samples: Samples, say: Callable[[str], None]
) -> None:
    with ExitStack() as stack:
        running: dict[int, tuple[World, AgentProcess]] = {}
        for size in extent.sizes:
            world = stack.enter_context(World(f"{engine}-{size}", nginx, folder))
            agent = AgentProcess(world, engine)
            try:
                text = _program(agent, world, size, extent.changes, samples)
            except BenchError as error:
                say(f"{engine} with {size:,} services: {error}")
                agent.kill()
                continue
            say(f"{engine} with {size:,} services: {text}")
            running[size] = (world, agent)
            if not BY_NAME[engine].userspace:
                agent.kill()
        _connect(running, extent.connections, samples)
        if BY_NAME[engine].userspace:
            return  # What it does is gone with its process: each start is a cold one.
        for size, (world, _) in running.items():
            again = AgentProcess(world, engine)
            seconds = again.ask("start", size, world.backend_addresses)["seconds"]
            samples[RESTART, size].append(seconds)
            say(f"{engine} with {size:,} services: restarted in {seconds:.3f} s")
            again.ask("close")
            again.kill()


def _program(agent: AgentProcess, world: World, size: int, changes: int, samples: Samples) -> str:
    started = agent.ask("start", size, world.backend_addresses)
    samples[COLD, size].append(started["seconds"])
    samples[MEMORY, size].append(started["peak_mb"])
    samples[EMPTY, size].append(started["empty_mb"])
    took = [seconds * 1000 for seconds in agent.ask("change", changes)["seconds"]]
    samples[CHANGE_P50, size].append(quantile(took, 0.5))
    samples[CHANGE_P99, size].append(quantile(took, 0.99))
    return (
        f"cold start {started['seconds']:.3f} s, a change {quantile(took, 0.5):.2f} ms (p99 "
        f"{quantile(took, 0.99):.2f} ms), {started['peak_mb']:.0f} MB"
    )


def _connect(running: dict[int, tuple[World, AgentProcess]], count: int, samples: Samples) -> None:
    """In ten batches by turns, so that a disturbance of the machine meets all sizes alike."""
    took: dict[int, list[float]] = defaultdict(list)
    for _ in range(10):
        for size, (world, _agent) in random.sample(list(running.items()), len(running)):
            program = _CONNECT.format(address=PROBED, port=SERVICE_PORT, count=count)
            took[size] += json.loads(world.client.run(sys.executable, "-c", program))
    for size, times in took.items():
        samples[CONNECT, size].append(quantile(times, 0.5) * 1e6)


_CONNECT = """
import json, socket, time
took = []
for _ in range({count}):
    sock = socket.socket()
    sock.settimeout(5)
    # Reset at the end, so that none waits in TIME_WAIT.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes((1, 0, 0, 0, 0, 0, 0, 0)))
    began = time.perf_counter()
    sock.connect(("{address}", {port}))
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
            subject, values = f"{engine}, {size:,} services", samples[case, size]
            if case == CONNECT and size != sizes[0]:
                least = samples[case, sizes[0]]
                made.append(Result.versus(case, subject, values, unit, f"{sizes[0]} services", least))
            elif case != EMPTY or size == sizes[0]:
                made.append(Result.of(case, subject if case != EMPTY else engine, values, unit))
    return made
