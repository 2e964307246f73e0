"""`kernelet bench proxy`: the engines and haproxy against the pods' own addresses.

Rounds are interleaved: each measures every subject once before the next begins, in an order that moves on by one, so
that a disturbance of the machine meets all alike. Each subject has a world of its own (topology.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata

from .load import CONNECTIONS, PAUSE_MS, THREADS, ab, bulk, udp, wrk
from .report import Report, Result
from .subjects import Subject, choose, wait_ready
from .topology import World, find_nginx, workshop

SUSTAINED = 3
"""Rounds of new connections without a pause: TIME_WAIT entries of the first weigh upon the last."""
KEEP_ALIVE = "keep-alive requests"
FIRST, LAST = "new connection per request, first round", f"new connection per request, sustained round {SUSTAINED}"
HALF_P50, HALF_P99 = "latency at half saturation, p50", "latency at half saturation, p99"
HALF_CPU = "CPU of the machine per request at half saturation"
AB, BULK, UDP = "ab -c 50 -n {}", "bulk TCP, one stream", "UDP question and answer, one at a time"
Samples = dict[tuple[str, str], list[float]]
"""(case, subject) -> a value a round."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured."""

    rounds: int
    seconds: int
    """Of one measurement."""
    ab_requests: int
    ab_rounds: int
    others: bool
    """Latency, bulk and UDP too."""

    def duration(self, subjects: int) -> int:
        """Seconds, roughly; ab through a userspace proxy is the part that is hardest to foretell."""
        each = self.seconds + 1
        wrk_seconds = self.rounds * (1 + SUSTAINED + (3 if self.others else 0)) * each
        return subjects * (wrk_seconds + self.ab_rounds * self.ab_requests // 6000 + 3)


FULL = Extent(rounds=5, seconds=8, ab_requests=100_000, ab_rounds=1, others=True)
QUICK = Extent(rounds=1, seconds=1, ab_requests=3000, ab_rounds=1, others=False)


class _Bench:
    def __init__(self, extent: Extent, worlds: list[tuple[Subject, World]], say: Callable[[str], None]) -> None:
        self._extent, self._worlds, self._say = extent, worlds, say
        self.samples: Samples = defaultdict(list)

    def run(self) -> None:
        self._each(self._extent.rounds, KEEP_ALIVE, self._keep_alive)
        self._each(self._extent.rounds, "new connection per request", self._new_connections)
        if self._extent.others:
            self._each(self._extent.rounds, "latency at half saturation", self._latency)
            self._each(self._extent.rounds, BULK, self._bulk)
            self._each(self._extent.rounds, UDP, self._udp)
        self._each(self._extent.ab_rounds, AB.format(self._extent.ab_requests), self._ab)

    def _each(self, rounds: int, title: str, measure: Callable[[Subject, World], str]) -> None:
        for number in range(rounds):
            turn = number % len(self._worlds)
            for subject, world in self._worlds[turn:] + self._worlds[:turn]:
                self._say(f"{title}, round {number + 1} of {rounds}, {subject.name}: {measure(subject, world)}")

    def _keep(self, case: str, subject: Subject, value: float) -> None:
        self.samples[case, subject.name].append(value)

    def _keep_alive(self, subject: Subject, world: World) -> str:
        load = wrk(subject, world, self._extent.seconds)
        self._keep(KEEP_ALIVE, subject, load.requests_per_second)
        return f"{load.requests_per_second:,.0f}/s"

    def _new_connections(self, subject: Subject, world: World) -> str:
        rates = [wrk(subject, world, self._extent.seconds, close=True).requests_per_second for _ in range(SUSTAINED)]
        self._keep(FIRST, subject, rates[0])
        self._keep(LAST, subject, rates[-1])
        return ", ".join(f"{rate:,.0f}/s" for rate in rates)

    def _latency(self, subject: Subject, world: World) -> str:
        """At half of bare's rate; where a subject does not reach that, at half of its own."""
        rates = [max(self.samples[KEEP_ALIVE, name]) for name in ("bare", subject.name)]
        connections = max(THREADS, round(min(rates) / 2 * PAUSE_MS / 1000))
        load = wrk(subject, world, self._extent.seconds, connections=connections, pause=True)
        self._keep(HALF_P50, subject, load.p50_us)
        self._keep(HALF_P99, subject, load.p99_us)
        self._keep(HALF_CPU, subject, load.cpu_us_per_request)
        return f"p50 {load.p50_us:.0f} us, p99 {load.p99_us:.0f} us at {load.requests_per_second:,.0f}/s"

    def _bulk(self, subject: Subject, world: World) -> str:
        value = bulk(subject, world, max(1, self._extent.seconds // 2))
        self._keep(BULK, subject, value)
        return f"{value:.1f} Gbit/s"

    def _udp(self, subject: Subject, world: World) -> str:
        if not subject.udp:
            return "does no UDP"
        value = udp(subject, world, max(1, self._extent.seconds // 2))
        self._keep(UDP, subject, value)
        return f"{value:,.0f}/s"

    def _ab(self, subject: Subject, world: World) -> str:
        value = ab(subject, world, self._extent.ab_requests)
        self._keep(AB.format(self._extent.ab_requests), subject, value)
        return f"{value:,.0f}/s"


def bench_proxy(names: list[str], extent: Extent, say: Callable[[str], None]) -> Report:
    """Compares what is called so with the references. Raises BenchError; whatever happens, all worlds are removed."""
    subjects = choose(names)
    say(f"{', '.join(s.name for s in subjects)}: about {extent.duration(len(subjects)) / 60:.0f} minutes")
    with workshop() as folder, ExitStack() as stack:
        nginx = find_nginx(folder)
        worlds = []
        for subject in subjects:
            world = stack.enter_context(World(subject.name, nginx, folder))
            subject.proxy().start(world)
            wait_ready(subject, world)
            worlds.append((subject, world))
        say(f"{len(worlds)} worlds are ready: {CONNECTIONS} connections, {THREADS} client addresses and backends each")
        bench = _Bench(extent, worlds, say)
        bench.run()
    return report(bench.samples, [subject.name for subject in subjects])


_UNITS = {HALF_P50: "us", HALF_P99: "us", HALF_CPU: "us", BULK: "Gbit/s"}


def report(samples: Samples, subjects: Iterable[str]) -> Report:
    """Every case against `bare`; new connections of services also against `direct`, which tracks connections too."""
    made = Report("proxy", metadata.version("kernelet"))
    order = list(subjects)
    for case in dict.fromkeys(case for case, _ in samples):
        unit = _UNITS.get(case, "req/s")
        for subject in (name for name in order if samples.get((case, name))):
            values = samples[case, subject]
            for reference in ("bare", "direct"):
                wanted = reference == "bare" or (case in (FIRST, LAST) and subject != "bare")
                if wanted and subject != reference:
                    made.results.append(Result.versus(case, subject, values, unit, reference, samples[case, reference]))
            if subject == "bare":
                made.results.append(Result.of(case, subject, values, unit))
    return made
