"""What benchmarks report with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kernelet.dataplane.bench import Report, Result, quantile
from kernelet.dataplane.bench.proxy import LAST, report
from kernelet.dataplane.bench.scale_agent import ENDPOINTS, services


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    """The machine was half as fast in the third round, for both: that must not show."""
    made = Result.versus("case", "engine", [90, 95, 45], "req/s", "bare", [100, 100, 50])
    assert (made.value, made.reference_value, made.ratio, made.spread) == (90, 100, 0.9, (45, 95))


def test_rounds_of_different_number_are_compared_by_their_medians() -> None:
    assert Result.versus("case", "engine", [50], "s", "bare", [90, 100, 110]).ratio == 0.5


@pytest.mark.parametrize(("part", "value"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_a_quantile_is_a_sample(part: float, value: int) -> None:
    assert quantile(range(1, 101), part) == value


def test_new_connections_of_a_service_are_compared_with_bare_and_with_direct() -> None:
    samples = {(LAST, "bare"): [200.0], (LAST, "direct"): [100.0], (LAST, "nftables"): [90.0]}
    made = report(samples, ["bare", "direct", "nftables", "userspace"])
    rows = [(row.subject, row.reference, row.ratio) for row in made.results]
    assert rows == [
        ("bare", None, None),
        ("direct", "bare", 0.5),
        ("nftables", "bare", 0.45),
        ("nftables", "direct", 0.9),
    ]


def test_json_has_null_where_there_is_no_reference(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    Report("proxy", "1", [Result.of("case", "bare", [1.0, 2.0, 4.0], "s")]).write_json(file)
    (row,) = json.loads(file.read_text())["results"]
    assert (row["value"], row["spread"], row["reference"], row["ratio"]) == (2.0, [1.0, 4.0], None, None)


def test_a_plot_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "plot.png"
    bare = Result.of("case", "bare", [0.0], "req/s")
    Report("proxy", "1", [bare, Result.versus("case", "engine", [2.0], "req/s", "bare", [4.0])]).plot(file)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_fifty_thousand_services_are_all_different() -> None:
    made = services(50_000, ["10.244.0.100"])
    backends = {(b.address, b.port) for service in made[:-1] for b in service.ports[0].backends}
    assert len({service.cluster_ips for service in made}) == 50_000
    assert len(backends) == 49_999 * ENDPOINTS
