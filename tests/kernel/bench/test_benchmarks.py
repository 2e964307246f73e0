"""Benchmarks as a person runs them: they measure what they say, and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kernelet.dataplane.bench.load import wrk
from kernelet.dataplane.bench.subjects import BY_NAME, wait_ready
from kernelet.dataplane.bench.topology import PREFIX, BenchError, World, find_nginx, workshop

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
        subject.proxy().start(world)
        wait_ready(subject, world)
        assert wrk(subject, world, 1, close=True).requests_per_second > 0
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


def test_scale_reports_every_case_and_the_routes_are_programmed(tmp_path: Path) -> None:
    file = tmp_path / "scale.json"
    done = subprocess.run(
        command("scale", "--quick", "--engines", "nftables", "--sizes", "10,20", "--json", str(file)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(file.read_text())["results"]
    assert {row["case"] for row in results if row["subject"] == "nftables, 20 services"} == {
        "cold start to programmed",
        "restart, kernel programmed already",
        "one endpoint changed, p50",
        "one endpoint changed, p99",
        "first connection to a service, p50",
        "peak memory of the agent",
    }


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
