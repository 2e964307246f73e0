"""Hosts for tests: processes in namespaces of their own, with their own network, processes, cgroups, /run and state.

What runs on such a host sees no other one, and is gone with it: killing its process 1 ends everything on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from .cluster import Ran, run
from .netns import Lab, Namespace
from .netns import run as command

_INIT = Path(__file__).parent / "host.sh"
_CGROUPS = Path("/sys/fs/cgroup")
_JOIN = """
for file in /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/unified/cgroup.procs; do
  [ ! -e $file ] || echo $$ > $file
done
exec "$@"
"""
START_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Host:
    """One host: `address` on `eth0`."""

    name: str
    address: str
    pid: int

    def argv(self, *words: str) -> list[str]:
        """A command as it is run on the host: in its namespaces, and below the root of its cgroup2 hierarchy."""
        spaces = ["--mount", "--pid", "--uts", "--net", "--ipc", "--cgroup"]
        return ["nsenter", "-t", str(self.pid), *spaces, "--", "sh", "-c", _JOIN, "sh", *words]

    async def run(self, *words: str, ok: bool = True, seconds: float = 60.0) -> Ran:
        """Runs a command on the host to its end."""
        done = await run(*self.argv(*words), seconds=seconds)
        assert not ok or done.code == 0, f"{self.name}: {' '.join(words)}: {done}"
        return done

    @contextlib.asynccontextmanager
    async def running(self, *words: str, until: str, seconds: float = 60.0) -> AsyncIterator[str]:
        """Keeps a command running while the block runs, once it has printed `until`; what it printed until then."""
        process = await asyncio.create_subprocess_exec(
            *self.argv(*words), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        assert process.stdout is not None
        printed = ""
        try:
            try:
                async with asyncio.timeout(seconds):
                    while until not in printed and (line := await process.stdout.readline()):
                        printed += line.decode()
            except TimeoutError:
                raise AssertionError(f"{self.name}: {' '.join(words)} never said {until!r}: {printed}") from None
            assert until in printed, printed
            draining = asyncio.create_task(process.stdout.read())
            yield printed
            _signal(process, signal.SIGTERM)
            await asyncio.wait_for(draining, 60)
        finally:
            _signal(process, signal.SIGKILL)
            await asyncio.wait_for(process.wait(), 30)


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """To nsenter's child, which is what was meant to run; nsenter ends with it."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), number)


@contextlib.contextmanager
def new_hosts(count: int) -> Iterator[list[Host]]:
    """Hosts on one network, 192.0.2.0/24, which leads nowhere else."""
    with Lab() as lab:
        between = lab.namespace("switch")
        between.ip("link add br0 type bridge", "link set br0 up", "addr add 192.0.2.254/24 dev br0")
        yield [_host(lab, between, number) for number in range(1, count + 1)]


def _host(lab: Lab, between: Namespace, number: int) -> Host:
    name, address = f"host-{number}", f"192.0.2.{number}"
    mark = f"kl-test-{name}-{secrets.token_hex(3)}"
    state = Path(tempfile.mkdtemp(prefix=f"{mark}-"))
    lab.callback(shutil.rmtree, state, ignore_errors=True)
    hierarchies = _hierarchies()
    groups = [Path(folder) / mark for folder, _, _ in hierarchies]
    lab.callback(_remove_groups, groups)
    pid = _start(lab, name, state, hierarchies, groups)
    # The link's other end goes with the host's namespace.
    command("ip", "link", "add", f"h{number}", "netns", between.name, "type", "veth", "peer", "eth0", "netns", str(pid))
    between.ip(f"link set h{number} master br0 up")
    host = Host(name, address, pid)
    for words in (f"addr add {address}/24 dev eth0", "link set eth0 up", "route add default via 192.0.2.254"):
        command(*host.argv("ip", *words.split()))
    return host


def _start(lab: Lab, name: str, state: Path, hierarchies: list[tuple[str, str, str]], groups: list[Path]) -> int:
    """Process 1's id, as seen from here."""
    for group in groups:
        _make_group(group)
    # The shell joins the groups before unshare makes them the root of what the host sees.
    join = "".join(f"echo $$ > {group}/cgroup.procs; " for group in groups)
    spaces = "--mount --pid --fork --kill-child --uts --ipc --net --cgroup"
    rows = " ".join(":".join(row) for row in hierarchies)
    process = subprocess.Popen(
        ["sh", "-c", f"{join} exec unshare {spaces} sh {_INIT} {name} {state} {rows}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    lab.callback(_stop, process)
    assert process.stdout is not None
    said = process.stdout.readline()
    assert said == b"ready\n", f"{name} did not start: {said!r}"
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    if process.stdout is not None:
        process.stdout.read()  # until the last process of the host has let go of it
        process.stdout.close()


def _hierarchies() -> list[tuple[str, str, str]]:
    """(folder, type, options) of the cgroup hierarchies mounted here (cgroups(7))."""
    found = []
    for line in Path("/proc/mounts").read_text().splitlines():
        _, folder, kind, options = line.split()[:4]
        if kind in ("cgroup", "cgroup2"):
            own = [word for word in options.split(",") if word not in ("rw", "relatime", "nosuid", "nodev", "noexec")]
            found.append((folder, kind, ",".join(own) if kind == "cgroup" else "rw"))
    return found


def _make_group(group: Path) -> None:
    group.mkdir()
    for name in ("cpuset.cpus", "cpuset.mems"):
        file, above = group / name, group.parent / name
        if file.exists() and above.exists():
            file.write_text(above.read_text())


def _remove_groups(groups: list[Path]) -> None:
    for group in groups:
        folders = sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True)
        for folder in [*folders, group]:
            _wait_empty(folder / "cgroup.procs")
            folder.rmdir()


def _wait_empty(processes: Path) -> None:
    """The host's processes were killed with its first one; the kernel takes its time to bury them."""
    deadline = time.monotonic() + 10
    while processes.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
