"""Benchmarks as a person runs them: they measure what they say, and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kernelet.dataplane.bench.load import CONNECTIONS, constant_rate, wrk
from kernelet.dataplane.bench.subjects import BY_NAME, wait_ready
from kernelet.dataplane.bench.topology import PREFIX, BenchError, World, find_nginx, workshop
from kernelet.dataplane.bench.tracking import forget, tracking

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make network namespaces")
_BENCH = "from kernelet.agents.bench.command import command; command()"


def command(*words: str) -> list[str]:
    return [sys.executable, "-c", _BENCH, *words]


def left_over(pid: int) -> list[str]:
    return [path.name for path in Path("/run/netns").glob(f"{PREFIX}{pid}-*")]


@pytest.mark.parametrize("name", ["bare", "nftables", "haproxy", "userspace"])
def test_requests_reach_all_backends_from_all_client_addresses(name: str) -> None:
    subject = BY_NAME[name]
    with workshop() as folder, World(name, find_nginx(folder), folder) as world:
        subject.proxy.start(world)
        wait_ready(subject, world)
        assert wrk(subject, world, 1, close=True) > 0
        seen = world.node.run("ip", "neigh").splitlines()
        reached = {
            address for address in world.backend_addresses if any(line.startswith(f"{address} ") for line in seen)
        }
        assert reached == set(world.backend_addresses)
        rules = world.node.run("nft", "list", "ruleset")
        assert bool(rules) == (name != "bare"), "the reference is measured with nothing in the kernel"
    assert not left_over(os.getpid())


def test_a_failing_backend_ends_the_benchmark_rather_than_spoiling_its_figures() -> None:
    subject = BY_NAME["bare"]
    with workshop() as folder, World("bare", find_nginx(folder), folder) as world:
        world.backends[1].ip("link set eth0 down")
        with pytest.raises(BenchError, match="does not answer any more"):
            wrk(subject, world, 1)
    assert not left_over(os.getpid())


def test_latencies_are_those_of_every_request_at_the_rate_that_was_asked_for() -> None:
    subject = BY_NAME["bare"]
    with workshop() as folder, World("bare", find_nginx(folder), folder) as world:
        wait_ready(subject, world)
        seen = constant_rate(subject, world, 1, rate=10 * CONNECTIONS)
        assert 5 * CONNECTIONS < len(seen.sorted_us) <= 11 * CONNECTIONS
        assert seen.sorted_us == sorted(seen.sorted_us) and seen.sorted_us[0] > 0


def test_a_reference_that_is_not_what_it_is_called_ends_the_benchmark() -> None:
    with workshop() as folder, World("direct", find_nginx(folder), folder) as world:
        wait_ready(BY_NAME["bare"], world)
        with pytest.raises(BenchError, match="of 4 connections the node tracks 0"):
            wait_ready(BY_NAME["direct"], world)
        BY_NAME["direct"].proxy.start(world)
        wait_ready(BY_NAME["direct"], world)
        with pytest.raises(BenchError, match="of 4 connections the node tracks 4"):
            wait_ready(BY_NAME["bare"], world)


def test_what_a_subject_leaves_in_the_table_of_connections_can_be_forgotten() -> None:
    subject = BY_NAME["nftables"]
    with workshop() as folder, World("nftables", find_nginx(folder), folder) as world:
        subject.proxy.start(world)
        wait_ready(subject, world)
        seen = tracking(world)
        assert seen.entries >= len(subject.targets(world)) and seen.limit > seen.entries and seen.pushed_out == 0
        forget(world)
        assert tracking(world).entries == 0


def test_scale_reports_every_case_of_several_rounds(tmp_path: Path) -> None:
    file = tmp_path / "scale.json"
    words = ["--engines", "nftables", "--sizes", "10,20", "--rounds", "2", "--json", str(file)]
    done = subprocess.run(command("scale", "--quick", *words), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(file.read_text())["results"]
    assert {row["case"]: row["rounds"] for row in results if row["size"] == 20} == {
        "cold start to programmed": 2,
        "restart, kernel programmed already": 2,
        "one endpoint changed, p50": 2,
        "one endpoint changed, p99": 2,
        "tidying up after a change, p50": 2,
        "first connection to a service, p50": 8,
        "peak memory of the agent": 2,
    }


def test_an_engine_that_cannot_hold_so_many_services_is_reported_rather_than_failing(tmp_path: Path) -> None:
    file = tmp_path / "scale.json"
    words = ["--engines", "userspace", "--sizes", "10,300", "--rounds", "1", "--json", str(file)]
    limited = ["prlimit", "--nofile=200:200", *command("scale", "--quick", *words)]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    written = json.loads(file.read_text())
    assert {row["size"] for row in written["results"]} == {10, None}
    assert [note.split(":")[0] for note in written["notes"]] == ["userspace cannot hold 300 services"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_benchmark_leaves_nothing_behind(number: signal.Signals) -> None:
    running = subprocess.Popen(
        command("proxy", "--engines", "userspace", "--seconds", "60"), stderr=subprocess.PIPE, text=True
    )
    try:
        assert running.stderr is not None
        for line in running.stderr:
            if "worlds are ready" in line:
                break
        assert left_over(running.pid)
        running.send_signal(number)
        assert running.wait(30) != 0
    finally:
        running.kill()
        running.wait()
    assert not left_over(running.pid)


def test_an_unknown_engine_is_named_with_those_that_there_are() -> None:
    done = subprocess.run(
        command("proxy", "--engines", "magic"), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "'magic'" in done.stderr and "nftables" in done.stderr
