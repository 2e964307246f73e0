"""What benchmarks report with."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from kernelet.dataplane.bench import Report, Result, curve, quantile
from kernelet.dataplane.bench.proxy import HALF, KEEP_ALIVE, LAST, OWN_HALF, TRACKED, headline, report
from kernelet.dataplane.bench.scale_agent import ENDPOINTS, PODS, PORTS, services
from kernelet.dataplane.bench.subjects import choose


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    """The machine was half as fast in the third round, for both: that must not show."""
    made = Result.versus("case", "engine", [90, 95, 45], "req/s", "bare", [100, 100, 50])
    assert (made.value, made.reference_value, made.ratio, made.spread) == (90, 100, 0.9, (45, 95))


def test_rounds_of_different_number_are_compared_by_their_medians() -> None:
    assert Result.versus("case", "engine", [50], "s", "bare", [90, 100, 110]).ratio == 0.5


@pytest.mark.parametrize(("part", "value"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_a_quantile_is_a_sample(part: float, value: int) -> None:
    assert quantile(range(1, 101), part) == value


def test_a_curve_rises_to_the_tail_of_the_distribution() -> None:
    made = dict(curve(range(1, 10_001)))
    assert (made[0], made[50], made[99], made[99.99]) == (1, 5000, 9900, 9999)


def test_an_engine_is_measured_with_the_references_it_is_compared_with() -> None:
    assert [subject.name for subject in choose(["nftables"])] == ["bare", "direct", "nftables"]
    assert [subject.name for subject in choose(["ebpf"])] == ["bare", "direct", "direct-ebpf", "ebpf"]


def test_new_connections_are_compared_with_bare_and_with_what_direct_is_for_an_engine() -> None:
    rates = {"bare": 200.0, "direct": 100.0, "direct-ebpf": 160.0, "ebpf": 150.0, "nftables": 90.0}
    made = report({(LAST, name): [rate] for name, rate in rates.items()}, [*rates, "userspace"])
    rows = [(row.subject, row.reference, row.ratio) for row in made.results]
    assert rows == [
        ("bare", None, None),
        ("direct", "bare", 0.5),
        ("direct-ebpf", "bare", 0.8),
        ("direct-ebpf", "direct", 1.6),
        ("ebpf", "bare", 0.75),
        ("ebpf", "direct", 1.5),
        ("ebpf", "direct-ebpf", 0.9375),
        ("nftables", "bare", 0.45),
        ("nftables", "direct", 0.9),
    ]


def test_what_was_not_measured_alike_is_not_compared() -> None:
    """A proxy that cannot bear half of bare's rate has latencies at a rate of its own; entries are no speed."""
    half, own = f"latency {HALF}, p99", f"latency {OWN_HALF}, p99"
    samples = {(half, "bare"): [800.0], (own, "userspace"): [900.0], (TRACKED, "bare"): [0.0]}
    made = report({**samples, (TRACKED, "userspace"): [9.0]}, ["bare", "userspace"])
    assert [(row.case, row.subject, row.unit) for row in made.results] == [
        (half, "bare", "us"),
        (own, "userspace", "us"),
        (TRACKED, "bare", "entries"),
        (TRACKED, "userspace", "entries"),
    ]
    assert all(row.ratio is None for row in made.results)


def test_json_has_null_where_there_is_no_reference(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    Report("proxy", "1", [Result.of("case", "bare", [1.0, 2.0, 4.0], "s")]).write_json(file)
    (row,) = json.loads(file.read_text())["results"]
    assert (row["value"], row["spread"], row["reference"], row["ratio"]) == (2.0, [1.0, 4.0], None, None)


def test_the_table_and_json_tell_what_could_not_be_measured(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    made = Report(
        "scale", "1", [replace(Result.of("case", "engine", [1.0], "s"), size=10_000)], notes=["engine is full"]
    )
    made.write_json(file)
    assert "engine, 10,000 services" in made.table() and "Note: engine is full" in made.table()
    assert json.loads(file.read_text())["notes"] == ["engine is full"]


def test_a_plot_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "plot.png"
    bare = Result.of("case", "bare", [0.0], "req/s")
    sized = [replace(Result.of("other case", "engine", [1.0, 3.0], "s"), size=size) for size in (10, 1000)]
    made = Report("proxy", "1", [bare, Result.versus("case", "engine", [2.0], "req/s", "bare", [4.0]), *sized])
    made.curves["engine"] = curve(range(1, 1000))
    made.plot(file)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_the_headline_is_a_png_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "headline.png"
    samples = {(case, name): [9.0] for case in (KEEP_ALIVE, LAST) for name in ("bare", "direct", "ebpf", "haproxy")}
    headline(report(samples, ["bare", "direct", "ebpf", "haproxy"]), file)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_fifty_thousand_services_are_all_different_and_their_backends_exist() -> None:
    made = services(50_000)
    backends = {(b.address, b.port) for service in made for b in service.ports[0].backends}
    assert len({service.cluster_ips for service in made}) == 50_000
    assert len(backends) == 50_000 * ENDPOINTS
    assert {port for _, port in backends} <= set(PORTS)
    assert all(ip_address(address) in PODS for address in {address for address, _ in backends})
