"""The demonstration itself: all its checks hold, and nothing is left behind, also when it is interrupted."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from pathlib import Path

import pytest

from kernelet.agents.cluster.build import kernelet_command
from kernelet.agents.cluster.paths import ClusterPaths
from kernelet.agents.cluster.topology import namespaces

PACKAGES = Path(__file__).parents[2] / "build" / "debs"


def start(*words: str) -> subprocess.Popen[str]:
    command = [*kernelet_command(), "demo", "--packages", str(PACKAGES), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def left() -> list[str]:
    """Folders, namespaces and processes of the demo's cluster."""
    paths = ClusterPaths("demo")
    found = [str(path) for path in (paths.state, paths.run) if path.exists()]
    found += [name for name in namespaces() if name.startswith("kl-demo")]
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            words = file.read_bytes().decode().split("\0")
            if any(word.startswith(str(paths.state)) for word in words) or words[-2:] == ["demo", ""]:
                found.append(" ".join(words))
    return found


def test_all_checks_of_the_demo_hold_and_nothing_is_left(cluster_dockerd: str, tmp_path: Path) -> None:
    report = tmp_path / "demo.json"
    process = start("--json", str(report))
    output, _ = process.communicate(timeout=180)
    data = json.loads(report.read_text())
    assert [check["what"] for check in data["checks"] if not check["ok"]] == [], output
    assert process.returncode == 0, output
    assert data["seconds"] < 180
    assert len(data["checks"]) >= 15
    assert left() == []


@pytest.mark.parametrize("line", ["waiting for the nodes to be Ready", "kernelet apply -f shop.yaml"])
def test_an_interrupted_demo_leaves_nothing(cluster_dockerd: str, line: str) -> None:
    process = start()
    try:
        assert process.stdout is not None
        assert any(line in text for text in process.stdout), "the demo ended before it came that far"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=90)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1
    assert left() == []
