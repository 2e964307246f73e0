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
from ipaddress import ip_address
from pathlib import Path

from ..proxy import EngineError, create_engine
from ..routes import Backend, BackendFlag, Delta, Protocol, RouteTable, ServicePort, ServiceRoute
from .topology import CONFIG, HTTP_PORT, SERVICE_PORT

ENDPOINTS = 10
PROBED = "10.96.0.10"
"""The service address whose backends exist: clients measure with it."""
_PROBED_NAME = "bench/probed"
_SERVICES = int(ip_address("10.97.0.0"))
_PODS = int(ip_address("10.244.16.0"))


def services(count: int, probed: list[str]) -> list[ServiceRoute]:
    """`count` services of `ENDPOINTS` endpoints each; the last one's backends are `probed`."""
    made = []
    for number in range(count - 1):
        backends = tuple(_backend(number * ENDPOINTS + index) for index in range(ENDPOINTS))
        address = (_SERVICES + number).to_bytes(4, "big")
        made.append(_service(f"bench/service-{number}", address, backends))
    real = tuple(Backend(ip_address(address).packed, HTTP_PORT) for address in probed)
    made.append(_service(_PROBED_NAME, ip_address(PROBED).packed, real))
    return made


def _backend(number: int) -> Backend:
    """Of a pod somewhere in the cluster; pods repeat after sixty thousand, with another port."""
    again, pod = divmod(number, 60_000)
    return Backend((_PODS + pod).to_bytes(4, "big"), HTTP_PORT + again, BackendFlag.READY, f"node-{pod % 100}")


def _service(name: str, address: bytes, backends: tuple[Backend, ...]) -> ServiceRoute:
    return ServiceRoute(name, (address,), (ServicePort("http", Protocol.TCP, SERVICE_PORT, 0, backends),))


class Agent:
    """An engine, and the table as the agent's feed would hold it."""

    def __init__(self, engine_name: str, cgroup: str, pins: str) -> None:
        config = replace(CONFIG, cgroups=(Path(cgroup),), pins=Path(pins)) if cgroup else CONFIG
        self.engine = create_engine(engine_name, config)
        self.table = RouteTable()

    def start(self, count: int, probed: list[str]) -> dict[str, float]:
        """From a decoded snapshot to a kernel that holds it, in seconds, and the memory before and after in MB."""
        empty = peak_mb()
        snapshot = Delta("bench", 1, 0, services(count, probed))
        gc.collect()
        began = time.perf_counter()
        self.engine.start()
        self.engine.apply(snapshot)
        seconds = time.perf_counter() - began
        self.table.apply(snapshot)
        return {"seconds": seconds, "peak_mb": peak_mb(), "empty_mb": empty}

    def change(self, times: int) -> dict[str, list[float]]:
        """One endpoint replaced in a service picked at random, so many times: seconds each, applied and tidied up."""
        took = []
        # The one that clients measure with keeps the backends that exist.
        names = [name for name in self.table.services if name != _PROBED_NAME]
        for number in range(times):
            delta = self._changed(self.table.services[random.choice(names)], number)
            began = time.perf_counter()
            self.engine.apply(delta)
            took.append(time.perf_counter() - began)
            self.engine.tidy()
            self.table.apply(delta)
        return {"seconds": took}

    def _changed(self, service: ServiceRoute, number: int) -> Delta:
        port = service.ports[0]
        backends = list(port.backends)
        backends[number % len(backends)] = replace(backends[number % len(backends)], port=20_000 + number % 30_000)
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
