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
from pathlib import Path
from statistics import median

from .load import CONNECTIONS, THREADS, UNSTEADY_SECONDS, ab, bulk, constant_rate, udp, wrk
from .report import Report, Result, curve, minutes, quantile
from .subjects import BY_NAME, Subject, choose, wait_ready
from .topology import World, find_nginx, workshop
from .tracking import forget, tracking

SUSTAINED = 3
"""Rounds of new connections without a pause: TIME_WAIT entries of the first weigh upon the last."""
KEEP_ALIVE = "keep-alive requests"
FIRST, LAST = "new connection per request, first round", f"new connection per request, sustained round {SUSTAINED}"
TRACKED = f"tracked connections after sustained round {SUSTAINED}"
HALF, OWN_HALF = "at half of bare's saturation", "at half of its own saturation"
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
AB, BULK, UDP = "ab -c 50 -n {}", "bulk TCP, one stream", "UDP question and answer, one at a time"
_ROOM = 1.2
"""A rate that is to be offered must be as much below a subject's saturation, or its queue grows without end."""
_KEPT = 0.95
"""Part of an offered rate that must come for latencies to be those of that rate."""
Samples = dict[tuple[str, str], list[float]]
"""(case, subject) -> a value a round."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured."""

    rounds: int
    seconds: int
    """Of one measurement."""
    ab_requests: int
    others: bool
    """Latency, bulk and UDP too."""

    @property
    def latency_rounds(self) -> int:
        """More and shorter ones: what disturbs the machine is to meet all subjects alike."""
        return 2 * self.rounds

    @property
    def short(self) -> int:
        """Seconds of a measurement that is steady at once."""
        return max(1, self.seconds // 2)

    def duration(self, subjects: list[Subject]) -> float:
        """Seconds, roughly; ab's are the hardest to foretell."""
        each = self.rounds * (1 + SUSTAINED) * (self.seconds + 0.3)
        if self.others:
            each += self.latency_rounds * (self.short + UNSTEADY_SECONDS + 0.6)
            each += self.rounds * 2 * (self.short + 0.3)
        ab_seconds = sum(self.ab_requests / (1500 if subject.userspace else 6000) for subject in subjects)
        return len(subjects) * (each + 0.7) + ab_seconds


FULL = Extent(rounds=5, seconds=6, ab_requests=100_000, others=True)
QUICK = Extent(rounds=1, seconds=1, ab_requests=2000, others=False)


class _Bench:
    def __init__(self, extent: Extent, worlds: list[tuple[Subject, World]], say: Callable[[str], None]) -> None:
        self._extent, self._worlds, self._say = extent, worlds, say
        self.samples: Samples = defaultdict(list)
        self._notes: list[str] = []
        self._slow: dict[str, list[float]] = defaultdict(list)
        """Parts of the offered rate that were sent where it was too little, by subject."""
        self.latencies: dict[str, list[int]] = defaultdict(list)
        """Microseconds of every request at half of bare's saturation, by subject."""

    @property
    def notes(self) -> list[str]:
        """What the figures do not tell."""
        slow = [
            f"{name}, latency: in {len(parts)} of {self._extent.latency_rounds} rounds less than {_KEPT:.0%} of the "
            f"requests were sent in time, {min(parts):.0%} at worst: the machine or the subject could not keep up"
            for name, parts in self._slow.items()
        ]
        return [*self._notes, *slow]

    def run(self) -> None:
        self._each(self._extent.rounds, KEEP_ALIVE, self._keep_alive)
        self._each(self._extent.rounds, "new connection per request", self._new_connections)
        if self._extent.others:
            self._each(self._extent.latency_rounds, "latency", self._latency)
            self._each(self._extent.rounds, BULK, self._bulk)
            self._each(self._extent.rounds, UDP, self._udp)
        self._each(1, AB.format(self._extent.ab_requests), self._ab)

    def _each(self, rounds: int, title: str, measure: Callable[[Subject, World], str]) -> None:
        for number in range(rounds):
            turn = number % len(self._worlds)
            for subject, world in self._worlds[turn:] + self._worlds[:turn]:
                self._say(f"{title}, round {number + 1} of {rounds}, {subject.name}: {measure(subject, world)}")

    def _keep(self, case: str, subject: Subject, value: float) -> None:
        self.samples[case, subject.name].append(value)

    def _keep_alive(self, subject: Subject, world: World) -> str:
        rate = wrk(subject, world, self._extent.seconds)
        self._keep(KEEP_ALIVE, subject, rate)
        return f"{rate:,.0f}/s"

    def _new_connections(self, subject: Subject, world: World) -> str:
        before = tracking(world)
        rates = [wrk(subject, world, self._extent.seconds, close=True) for _ in range(SUSTAINED)]
        after = tracking(world)
        forget(world)  # so that the next subject's packets do not walk past what this one has left in the hash table
        self._keep(FIRST, subject, rates[0])
        self._keep(LAST, subject, rates[-1])
        self._keep(TRACKED, subject, after.entries)
        text = f"{', '.join(f'{rate:,.0f}/s' for rate in rates)}; {after.entries:,} connections tracked"
        if after.pushed_out > before.pushed_out:
            full = f"the table was full at {after.limit:,} (net.netfilter.nf_conntrack_max)"
            pushed_out = after.pushed_out - before.pushed_out
            self._notes.append(f"{subject.name}, sustained rounds: {full}, {pushed_out:,} connections were pushed out")
            text += f": {full}"
        return text

    def _latency(self, subject: Subject, world: World) -> str:
        """At half of bare's rate, the same for all; a subject that does not reach that is not compared with it."""
        bare, own = (median(self.samples[KEEP_ALIVE, name]) for name in ("bare", subject.name))
        at, rate = (HALF, bare / 2) if own >= _ROOM * bare / 2 else (OWN_HALF, own / 2)
        seen = constant_rate(subject, world, self._extent.short, rate)
        found = {name: quantile(seen.sorted_us, part) for name, part in PERCENTILES.items()}
        for name, value in found.items():
            self._keep(f"latency {at}, {name}", subject, value)
        self._keep(f"CPU of the machine per request {at}", subject, seen.cpu_us_per_request)
        if at == HALF:
            self.latencies[subject.name] += seen.sorted_us
        if seen.requests_per_second < _KEPT * rate:
            self._slow[subject.name].append(seen.requests_per_second / rate)
        latencies = ", ".join(f"{name} {value:,.0f} us" for name, value in found.items())
        return f"{latencies} at {seen.requests_per_second:,.0f}/s"

    def _bulk(self, subject: Subject, world: World) -> str:
        value = bulk(subject, world, self._extent.short)
        self._keep(BULK, subject, value)
        return f"{value:.1f} Gbit/s"

    def _udp(self, subject: Subject, world: World) -> str:
        if not subject.udp:
            return "does no UDP"
        value = udp(subject, world, self._extent.short)
        self._keep(UDP, subject, value)
        return f"{value:,.0f}/s"

    def _ab(self, subject: Subject, world: World) -> str:
        value = ab(subject, world, self._extent.ab_requests)
        self._keep(AB.format(self._extent.ab_requests), subject, value)
        return f"{value:,.0f}/s"


def bench_proxy(names: list[str], extent: Extent, say: Callable[[str], None]) -> Report:
    """Compares what is called so with the references. Raises BenchError; whatever happens, all worlds are removed."""
    subjects = choose(names)
    say(f"{', '.join(s.name for s in subjects)}: about {minutes(extent.duration(subjects))}")
    with workshop() as folder, ExitStack() as stack:
        nginx = find_nginx(folder)
        worlds = []
        for subject in subjects:
            world = stack.enter_context(World(subject.name, nginx, folder, cgroup=subject.cgroup))
            subject.proxy.start(world)
            wait_ready(subject, world)
            worlds.append((subject, world))
        say(f"{len(worlds)} worlds are ready: {CONNECTIONS} connections, {THREADS} client addresses and backends each")
        bench = _Bench(extent, worlds, say)
        bench.run()
    made = report(bench.samples, [subject.name for subject in subjects])
    made.curves = {name: curve(sorted(times)) for name, times in bench.latencies.items()}
    made.notes = bench.notes
    return made


_UNITS = {BULK: "Gbit/s", TRACKED: "entries"}


def _unit(case: str) -> str:
    return "us" if HALF in case or OWN_HALF in case else _UNITS.get(case, "req/s")


def report(samples: Samples, subjects: Iterable[str]) -> Report:
    """Every case against `bare`, new connections against all references of a subject."""
    made = Report("proxy", metadata.version("kernelet"))
    order = list(subjects)
    for case in dict.fromkeys(case for case, _ in samples):
        for subject in (name for name in order if samples.get((case, name))):
            values = samples[case, subject]
            references = BY_NAME[subject].references if case in (FIRST, LAST) else BY_NAME[subject].references[:1]
            compared = [reference for reference in references if case != TRACKED and samples.get((case, reference))]
            made.results += [
                Result.versus(case, subject, values, _unit(case), reference, samples[case, reference])
                for reference in compared
            ] or [Result.of(case, subject, values, _unit(case))]
    return made


def headline(report: Report, path: Path) -> None:
    """Userspace against kernel, as a PNG. Raises ImportError without matplotlib."""
    from . import plots

    panels = {}
    for title, case in ((KEEP_ALIVE, KEEP_ALIVE), ("new connection for each request", LAST)):
        first = {result.subject: result for result in reversed(report.results) if result.case == case}
        panels[f"{title}, requests/s"] = [
            first[name] for name in BY_NAME if name in first and not name.startswith("direct-")
        ]
    plots.headline(
        "One service, four pods: through the kernel and through a process",
        panels,
        [name for name, subject in BY_NAME.items() if subject.userspace],
        path,
    )
