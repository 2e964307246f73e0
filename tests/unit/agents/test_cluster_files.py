"""What is kept on disk of a cluster: its spec, its paths, its pid files."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kernelet.agents.cluster.paths import ClusterPaths, check_name
from kernelet.agents.cluster.processes import ProcessId, stop, wait_end
from kernelet.agents.cluster.spec import ClusterSpec, NodeSpec, Unit


def test_a_spec_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    units = (Unit("apiserver", ("a", "b"), "/run/netns/x", "127.0.0.1:1"), Unit("node-1", ("c",)))
    spec = ClusterSpec("test", "namespaces", 6443, "/run/docker.sock", units, (NodeSpec("node-1", "172.30.0.11"),))
    path = tmp_path / "deep" / "cluster.json"
    spec.save(path)
    assert ClusterSpec.load(path) == spec
    assert [entry.name for entry in path.parent.iterdir()] == ["cluster.json"]
    assert spec.unit("node-1") is units[1]
    with pytest.raises(KeyError, match="only apiserver, node-1"):
        spec.unit("node-2")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name": "a"}', b"\xff\xfe", b'{"units": [1]}'])
def test_a_damaged_spec_is_an_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cluster.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cluster\.json: damaged"):
        ClusterSpec.load(path)


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a/b", "..", "a" * 23, "docker", "a\n"])
def test_names_that_cannot_be_part_of_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cluster name"):
        check_name(name)


def test_all_paths_of_a_cluster_are_below_its_roots(tmp_path: Path) -> None:
    assert check_name("my-1") == "my-1"
    paths = ClusterPaths("my-1", tmp_path / "state", tmp_path / "run")
    assert paths.log_file("a") == tmp_path / "state" / "my-1" / "logs" / "a.log"
    assert paths.pid_file("a.b") == tmp_path / "run" / "my-1" / "a.b.pid"
    assert ClusterPaths("x").state == Path("/var/lib/kernelet/x")


@pytest.fixture
def process() -> ProcessId:
    """Not a child of this process that would have to be reaped: its parent has gone."""
    script = "import subprocess as s; print(s.Popen(['sleep', '300'], stdout=-3, stderr=-3).pid)"
    pid = int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    found = ProcessId.of(pid)
    assert found is not None
    return found


def test_a_process_is_known_by_its_file_until_it_ends(process: ProcessId, tmp_path: Path) -> None:
    path = tmp_path / "a.pid"
    process.write(path)
    assert ProcessId.read(path) == process
    assert not wait_end(process, 0.01)
    stop(process, 5)
    assert not process.alive
    assert ProcessId.read(path) is None
    stop(process, 5)  # It is gone: no error, no wait.
    process.send(signal.SIGKILL)


def test_another_process_of_the_same_pid_is_not_taken_for_it(process: ProcessId, tmp_path: Path) -> None:
    earlier = ProcessId(process.pid, process.start_time - 1)
    earlier.write(tmp_path / "a.pid")
    assert ProcessId.read(tmp_path / "a.pid") is None
    assert not earlier.alive
    assert wait_end(earlier, 5)
    stop(earlier, 1)
    assert process.alive
    stop(process, 5)


@pytest.mark.parametrize("content", [b"", b"12", b"a b", b"\xff", b"1 2 3"])
def test_a_damaged_pid_file_is_no_process(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pid").write_bytes(content)
    assert ProcessId.read(tmp_path / "a.pid") is None


def test_what_ignores_sigterm_is_killed() -> None:
    program = "import signal,time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(300)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = ProcessId.of(child.pid)
        assert found is not None
        started = time.monotonic()
        stop(found, 0.2)
        assert 0.2 <= time.monotonic() - started < 5
        assert not found.alive
