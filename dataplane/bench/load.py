"""Load generators, run in a world's client: wrk, h2load, ab, iperf3, and UDP questions one at a time."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .subjects import Subject, check_alive
from .topology import BULK_PORT, UDP_PORT, BenchError, World

CONNECTIONS = 64
THREADS = 4
UNSTEADY_SECONDS = 1
"""The first of a constant rate, whose latencies are not counted: connections are made, caches are filled."""


@dataclass(frozen=True, slots=True)
class Latency:
    """What requests at a constant rate met."""

    requests_per_second: float
    sorted_us: list[int]
    """Of every request."""
    cpu_us_per_request: float
    """Of the whole machine: client, proxy, kernel and backends."""


_SCRIPT = """
local targets = {{ {targets} }}
local addresses, sent = {{}}, 0
function init(args)
  for index, target in ipairs(targets) do
    addresses[index] = wrk.lookup(target[1], target[2])[1]
  end
  math.randomseed(tonumber(tostring(addresses):match("0x(%x+)"), 16))
  keeping = wrk.format()
  wrk.headers["Connection"] = "close"
  closing = wrk.format()
end
function request()
  wrk.thread.addr = addresses[math.random(#addresses)]
  sent = sent + 1
  return sent <= {closed} and closing or keeping
end
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('RESULT {{"requests": %d, "us": %d, "errors": %d}}\\n',
    summary.requests, summary.duration,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""
"""Each connection that is made goes to a target picked at random: so the pods' own addresses are balanced as services
are. All of wrk's first connections go to one address, so those are closed after their first request."""


def wrk(subject: Subject, world: World, seconds: int, *, close: bool = False) -> float:
    """HTTP requests a second over connections that stay, or with `close` over a new one each.

    Raises BenchError where more than one request in a thousand fails.
    """
    targets = subject.targets(world)
    script = world.folder / "wrk.lua"
    quoted = ", ".join('{{"{}", "{}"}}'.format(*target.split(":")) for target in targets)
    script.write_text(_SCRIPT.format(targets=quoted, closed="math.huge" if close else CONNECTIONS // THREADS))
    command = ["wrk", f"-t{THREADS}", f"-c{CONNECTIONS}", f"-d{seconds}", "--timeout", "5", "-s", str(script)]
    text = world.client.run(*command, f"http://{targets[0]}/", seconds=seconds + 30)
    found = re.search(r"RESULT (.*)", text)
    if found is None:
        raise BenchError(f"wrk said nothing to be understood for {subject.name}: {text}")
    data = json.loads(found[1])
    _check_failures(subject, world, data["errors"], data["requests"])
    check_alive(subject, world)  # wrk does not count connections that nobody answers.
    return float(data["requests"] / data["us"] * 1e6)


def _check_failures(subject: Subject, world: World, failed: int, requests: int) -> None:
    if not requests or failed > requests / 1000:
        raise BenchError(f"{subject.name}: {failed} of {requests} requests failed; {world.logs()}")


def constant_rate(subject: Subject, world: World, seconds: int, rate: float) -> Latency:
    """HTTP requests at `rate` a second over connections that stay, each sent when its time has come.

    One h2load for each client address and its target, as with wrk's threads. A connection whose last answer is still
    awaited sends late, so `requests_per_second` falls behind `rate` once that happens much. The first second is not
    in the latencies. Raises BenchError where more than one request in a thousand fails.
    """
    share = CONNECTIONS // THREADS
    options = ["--h1", "-t1", f"-c{share}", "-D", str(UNSTEADY_SECONDS + seconds), f"--rps={rate / CONNECTIONS:.3f}"]
    logs = [world.folder / f"requests-{index}.tsv" for index in range(THREADS)]
    before = busy_seconds()
    with ThreadPoolExecutor(THREADS) as pool:
        running = [
            pool.submit(world.client.run, "h2load", *options, f"--log-file={log}", f"http://{target}/")
            for log, target in zip(logs, subject.targets(world), strict=True)
        ]
        for each in running:
            each.result()
    busy = busy_seconds() - before
    rows = [row for log in logs for row in _rows(log)]
    _check_failures(subject, world, sum(status != 200 for _, status, _ in rows), len(rows))
    steady = min(began for began, _, _ in rows) + UNSTEADY_SECONDS * 1_000_000
    times = sorted(took for began, status, took in rows if began >= steady and status == 200)
    window = max(began for began, _, _ in rows) - steady
    return Latency(len(times) / window * 1e6, times, busy / len(rows) * 1e6)


def _rows(log: Path) -> Iterator[tuple[int, int, int]]:
    """(microseconds since the epoch, HTTP status, microseconds until the answer's end) of each request."""
    with log.open() as file:
        for line in file:
            began, status, took = line.split("\t")
            yield int(began), int(status), int(took)
    log.unlink()


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
    address, port = subject.targets(world, BULK_PORT)[0].split(":")
    server = world.backends[0].serving("iperf3", "-s", "-p", port, "--forceflush", ready="Server listening")
    with server:
        text = world.client.run("iperf3", "-J", "-c", address, "-p", port, "-t", str(seconds), seconds=seconds + 30)
    try:
        return float(json.loads(text)["end"]["sum_received"]["bits_per_second"]) / 1e9
    except KeyError:  # iperf3 counts some ways to fail as success.
        raise BenchError(f"iperf3 through {subject.name} failed: {text[-1000:]}") from None


_UDP_SERVER = """
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("0.0.0.0", {port}))
print("ready", flush=True)
while True:
    data, client = sock.recvfrom(64)
    sock.sendto(data, client)
"""
_UDP_CLIENT = """
import socket, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(1)
sock.connect(("{address}", {port}))
answers = 0
end = time.perf_counter() + {seconds}
while time.perf_counter() < end:
    sock.send(b"?"); sock.recv(64)
    answers += 1
print(answers / {seconds})
"""


def udp(subject: Subject, world: World, seconds: int) -> float:
    """Questions a second of one client that waits for each answer. Raises BenchError."""
    address, port = subject.targets(world, UDP_PORT)[0].split(":")
    with world.backends[0].serving(sys.executable, "-c", _UDP_SERVER.format(port=port), ready="ready"):
        program = _UDP_CLIENT.format(address=address, port=port, seconds=seconds)
        return float(world.client.run(sys.executable, "-c", program, seconds=seconds + 30))
