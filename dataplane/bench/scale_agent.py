"""The process that holds the engine in `kernelet bench scale`, as a node's agent does: fresh for every measurement.

It reads one JSON command a line and answers with one JSON line each; it ends with its input.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import time
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

from ..proxy import EngineError, create_engine
from ..routes import Backend, BackendFlag, Delta, Protocol, RouteTable, ServicePort, ServiceRoute
from .topology import HTTP_PORT, SERVICE_PORT, engine_config

ENDPOINTS = 10
FIRST_SERVICE = ip_address("10.97.0.0")
"""Service addresses go on from here without a gap."""
PODS = ip_network("10.244.128.0/17")
"""What backends have for addresses, from the first on."""
_PODS, _FIRST_POD = PODS.num_addresses, int(PODS[0])
CHANGED_PORTS = range(HTTP_PORT + 20, HTTP_PORT + 30)
PORTS = range(HTTP_PORT, CHANGED_PORTS.stop)
"""What backends have for ports."""


def services(count: int) -> list[ServiceRoute]:
    """`count` services of `ENDPOINTS` endpoints each, all different. Up to 65,536 services."""
    made = []
    first = int(FIRST_SERVICE)
    for number in range(count):
        backends = tuple(_backend(number * ENDPOINTS + index) for index in range(ENDPOINTS))
        port = ServicePort("http", Protocol.TCP, SERVICE_PORT, 0, backends)
        made.append(ServiceRoute(f"bench/service-{number}", ((first + number).to_bytes(4, "big"),), (port,)))
    return made


def _backend(number: int) -> Backend:
    """Of a pod somewhere in the cluster; an address comes again with another port."""
    again, pod = divmod(number, _PODS)
    return Backend((_FIRST_POD + pod).to_bytes(4, "big"), HTTP_PORT + again, BackendFlag.READY, f"node-{pod % 100}")


class Agent:
    """An engine, and the table as the agent's feed would hold it."""

    def __init__(self, engine_name: str, cgroup: str, pins: str) -> None:
        config = engine_config(Path(cgroup) if cgroup else None, Path(pins))
        self.engine = create_engine(engine_name, config)
        self.table = RouteTable()

    def ready(self) -> dict[str, float]:
        """Answers once there is an engine to be started."""
        return {}

    def start(self, count: int) -> dict[str, float]:
        """From a decoded snapshot to a kernel that holds it, in seconds, and the memory before and after in MB."""
        empty = peak_mb()
        snapshot = Delta("bench", 1, 0, services(count))
        gc.collect()
        began = time.perf_counter()
        self.engine.start()
        self.engine.apply(snapshot)
        seconds = time.perf_counter() - began
        self.table.apply(snapshot)
        return {"seconds": seconds, "peak_mb": peak_mb(), "empty_mb": empty}

    def change(self, times: int) -> dict[str, list[float]]:
        """One endpoint replaced in a service picked at random, so often: seconds to program each, and to tidy up."""
        took, tidying = [], []
        names = list(self.table.services)
        for number in range(times):
            delta = self._changed(self.table.services[random.choice(names)], number)
            began = time.perf_counter()
            self.engine.apply(delta)
            programmed = time.perf_counter()
            self.engine.tidy()
            took.append(programmed - began)
            tidying.append(time.perf_counter() - programmed)
            self.table.apply(delta)
        return {"seconds": took, "tidy_seconds": tidying}

    def _changed(self, service: ServiceRoute, number: int) -> Delta:
        port = service.ports[0]
        backends = list(port.backends)
        old = backends.pop(number % len(backends))
        another = random.choice([candidate for candidate in CHANGED_PORTS if candidate != old.port])
        backends.append(replace(old, port=another))
        changed = replace(service, ports=(replace(port, backends=tuple(backends)),))
        return Delta("bench", self.table.version + 1, self.table.version, [changed])

    def close(self) -> dict[str, float]:
        self.engine.close(keep=False)
        return {}


def peak_mb() -> float:
    """The most memory this process and its children have had resident (proc(5), VmHWM)."""
    children = Path("/proc/self/task").glob("*/children")
    pids = ["self", *(pid for each in children for pid in each.read_text().split())]
    kilobytes = 0
    for pid in pids:
        for line in Path("/proc", pid, "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                kilobytes += int(line.split()[1])
    return kilobytes / 1024


def main() -> None:
    agent = Agent(*sys.argv[1:])
    for line in sys.stdin:
        command, *values = json.loads(line)
        try:
            answer: object = getattr(agent, command)(*values)
        except EngineError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)
