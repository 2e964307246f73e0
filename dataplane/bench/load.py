"""Load generators, run in a world's client: wrk, ab, iperf3, and UDP questions one at a time."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from .subjects import Subject, check_alive
from .topology import BULK_PORT, UDP_PORT, BenchError, World, stop

CONNECTIONS = 64
THREADS = 4
PAUSE_MS = 10
"""Mean pause between two requests of a connection under an offered rate."""


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk saw."""

    requests_per_second: float
    p50_us: float
    p90_us: float
    p99_us: float
    errors: int
    cpu_us_per_request: float
    """Of the whole machine: client, proxy, kernel and backends."""


_SCRIPT = """
local targets = {{ {targets} }}
local used = 0
function setup(thread)
  local target = targets[used % #targets + 1]
  used = used + 1
  thread.addr = wrk.lookup(target[1], target[2])[1]
end
{delay}
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('RESULT {{"requests": %d, "us": %d, "p50": %f, "p90": %f, "p99": %f, "errors": %d}}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(90), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""
_DELAY = f"""
function init(args) math.randomseed(os.time()) end
function delay() return math.random(1, {2 * PAUSE_MS - 1}) end
"""


def wrk(
    subject: Subject,
    world: World,
    seconds: int,
    *,
    close: bool = False,
    connections: int = CONNECTIONS,
    pause: bool = False,
) -> Load:
    """HTTP requests over connections that stay, or with `close` over a new one each.

    Raises BenchError where more than one request in a thousand fails.
    """
    targets = subject.targets(world)
    script = world.folder / "wrk.lua"
    quoted = ", ".join('{{"{}", "{}"}}'.format(*target.split(":")) for target in targets)
    script.write_text(_SCRIPT.format(targets=quoted, delay=_DELAY if pause else ""))
    header = ["-H", "Connection: close"] if close else []
    command = ["wrk", f"-t{THREADS}", f"-c{connections}", f"-d{seconds}", "--timeout", "5", "-s", str(script), *header]
    before = busy_seconds()
    text = world.client.run(*command, f"http://{targets[0]}/", seconds=seconds + 30)
    busy = busy_seconds() - before
    found = re.search(r"RESULT (.*)", text)
    if found is None:
        raise BenchError(f"wrk said nothing to be understood for {subject.name}: {text}")
    data = json.loads(found[1])
    requests = data["requests"]
    if not requests or data["errors"] > requests / 1000:
        raise BenchError(
            f"{subject.name}: {data['errors']} of {requests} requests failed; see the logs in {world.folder}"
        )
    check_alive(subject, world)  # wrk does not count connections that nobody answers.
    rate = requests / data["us"] * 1e6
    return Load(rate, data["p50"], data["p90"], data["p99"], data["errors"], busy / requests * 1e6)


def busy_seconds() -> float:
    """Time that the machine's processors have worked since it started (proc(5), /proc/stat)."""
    with Path("/proc/stat").open() as file:
        user, nice, system, _, _, irq, softirq, *_ = map(int, file.readline().split()[1:])
    return (user + nice + system + irq + softirq) / 100


def ab(subject: Subject, world: World, requests: int) -> float:
    """`ab -c 50 -n REQUESTS`: a new connection for each, to one address; requests a second. Raises BenchError."""
    target = subject.targets(world)[0]
    text = world.client.run("ab", "-q", "-c", "50", "-n", str(requests), f"http://{target}/", seconds=600)
    rate = re.search(r"Requests per second:\s+([0-9.]+)", text)
    failed = re.search(r"Failed requests:\s+([0-9]+)", text)
    if rate is None or failed is None or int(failed[1]) > requests / 1000:
        raise BenchError(f"ab against {subject.name} failed: {text}")
    return float(rate[1])


def bulk(subject: Subject, world: World, seconds: int) -> float:
    """One TCP stream to the first backend, in Gbit/s. Raises BenchError."""
    server = world.backends[0].start("iperf3", "-s", "-p", str(BULK_PORT), log=world.folder / "iperf3.log")
    try:
        address = subject.targets(world, BULK_PORT)[0].split(":")[0]
        return _iperf3(world, address, seconds) / 1e9
    finally:
        stop(server)


def _iperf3(world: World, address: str, seconds: int) -> float:
    """Bits a second, tried again for a while: the server takes a moment to listen, and tells nobody when it does.

    A proxy takes the connection all the same, so that iperf3 fails in many ways, of which some count as success.
    """
    for _ in range(20):
        try:
            text = world.client.run("iperf3", "-J", "-c", address, "-p", str(BULK_PORT), "-t", str(seconds))
            return float(json.loads(text)["end"]["sum_received"]["bits_per_second"])
        except KeyError:
            last = BenchError(f"iperf3 through {world.subject} failed: {text[-1000:]}")
        except BenchError as error:
            last = error
        time.sleep(0.1)
    raise last


_UDP_SERVER = """
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("0.0.0.0", {port}))
while True:
    data, client = sock.recvfrom(64)
    sock.sendto(data, client)
"""
_UDP_CLIENT = """
import socket, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(0.2)
sock.connect(("{address}", {port}))
deadline = time.monotonic() + 5
while True:
    try:
        sock.send(b"?"); sock.recv(64)
        break
    except OSError:
        if time.monotonic() > deadline: raise
sock.settimeout(1)
times = []
end = time.perf_counter() + {seconds}
now = time.perf_counter()
while now < end:
    sock.send(b"?"); sock.recv(64)
    then, now = now, time.perf_counter()
    times.append(now - then)
times.sort()
print(len(times) / {seconds}, times[len(times) // 2] * 1e6, times[len(times) * 99 // 100] * 1e6)
"""


def udp(subject: Subject, world: World, seconds: int) -> float:
    """Questions a second of one client that waits for each answer. Raises BenchError."""
    server = world.backends[0].start(
        sys.executable, "-c", _UDP_SERVER.format(port=UDP_PORT), log=world.folder / "udp.log"
    )
    try:
        address = subject.targets(world, UDP_PORT)[0].split(":")[0]
        program = _UDP_CLIENT.format(address=address, port=UDP_PORT, seconds=seconds)
        return float(world.client.run(sys.executable, "-c", program).split()[0])
    finally:
        stop(server)
