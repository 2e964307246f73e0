"""A dockerd to run containers with: the one that runs, or one of our own that outlives every Kernelet process.

Our own runs without docker's bridge and without docker's firewall rules: Kernelet wires pods itself, and docker's rules
would set the FORWARD policy to DROP. It is started in a session of its own, so that nothing which ends us ends it; a
mark file beside its data says that it is ours to stop. Readiness is dockerd's sd_notify(3) message, not a poll.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from .docker import DEFAULT_SOCKET
from .docker_streams import EngineStreams
from .plugins import RuntimeFailure

log = logging.getLogger(__name__)

_START_SECONDS = 40.0
_STOP_SECONDS = 30.0
_PING_SECONDS = 5.0
_LOG_TAIL = 1000


@dataclass(frozen=True, slots=True)
class Dockerd:
    """A dockerd that answers."""

    socket: str
    started: bool
    """This call started it."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """Identifies a dockerd that we started, beyond the reuse of its process id."""

    pid: int
    start_time: int
    socket: str
    exec_root: str


async def ensure_dockerd(
    data_root: Path, *, socket_path: str = "", exec_root: Path | None = None, start: bool = True
) -> Dockerd:
    """Finds a dockerd that answers, or starts one.

    With `socket_path` only that socket counts; without, the default one is tried and then our own below `data_root`.
    `data_root` gets folders for dockerd's images and its log. Raises RuntimeFailure naming cause and fix.
    """
    own = socket_path or str(data_root / "docker.sock")
    for candidate in [socket_path] if socket_path else [DEFAULT_SOCKET, own]:
        if await answers(candidate):
            return Dockerd(candidate, started=False)
    if not start:
        raise RuntimeFailure(f"no dockerd answers on {own}; start docker, or let `kernelet` start one")
    _check_can_start(data_root)
    async with _locked(data_root / "dockerd.lock"):
        # Another node may have started it while we waited for the lock.
        if await answers(own):
            return Dockerd(own, started=False)
        await _start(own, data_root, exec_root or data_root / "exec")
    return Dockerd(own, started=True)


async def answers(socket_path: str) -> bool:
    """Whether a dockerd answers on a unix socket."""
    streams = EngineStreams(socket_path)
    try:
        async with asyncio.timeout(_PING_SECONDS):
            await streams.ping()
    except (RuntimeFailure, TimeoutError):
        return False
    finally:
        await streams.close()
    return True


async def stop_dockerd(data_root: Path) -> bool:
    """Stops the dockerd that `ensure_dockerd` started with this data root, and unmounts what it left.

    False when there is none of ours. Raises RuntimeFailure when it does not end.
    """
    mark = _read_mark(data_root)
    if mark is None:
        return False
    running = _start_time(mark.pid) == mark.start_time
    if running:
        await _end(mark.pid, mark.socket)
    containerd = _containerd_of(Path(mark.exec_root))
    if containerd:
        await _end(containerd, mark.socket)
    await asyncio.to_thread(_clean_up, data_root, Path(mark.exec_root))
    return running


def _check_can_start(data_root: Path) -> None:
    if shutil.which("dockerd") is None:
        raise RuntimeFailure("no dockerd runs and the program is missing; apt-get install docker.io")
    data_root.mkdir(parents=True, exist_ok=True)


def _mark_file(data_root: Path) -> Path:
    return data_root / "dockerd.json"


def _read_mark(data_root: Path) -> _Mark | None:
    try:
        return _Mark(**json.loads(_mark_file(data_root).read_text()))
    except FileNotFoundError:
        return None


def _clean_up(data_root: Path, exec_root: Path) -> None:
    for mounted in mounts_below(data_root, exec_root):
        subprocess.run(["umount", "--lazy", mounted], check=False, capture_output=True)
    _mark_file(data_root).unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    with path.open("w") as file:
        await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
        yield


def _spawn(socket_path: str, data_root: Path, exec_root: Path, notify: str) -> int:
    """Starts dockerd in a session of its own and marks it as ours; its process id."""
    command = ["dockerd", "--iptables=false", "--ip6tables=false", "--bridge=none"]
    command += [f"--data-root={data_root / 'data'}", f"--exec-root={exec_root}"]
    command += [f"--host=unix://{socket_path}", f"--pidfile={data_root / 'dockerd.pid'}"]
    environment = {**os.environ, "NOTIFY_SOCKET": notify}
    with _log_path(data_root).open("ab") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, env=environment
        )
    mark = _Mark(process.pid, _start_time(process.pid), socket_path, str(exec_root))
    _mark_file(data_root).write_text(json.dumps(asdict(mark)))
    return process.pid


def _log_path(data_root: Path) -> Path:
    return data_root / "dockerd.log"


async def _start(socket_path: str, data_root: Path, exec_root: Path) -> None:
    log_path = _log_path(data_root)
    with _notify_socket() as (receiver, address):
        pid = await asyncio.to_thread(_spawn, socket_path, data_root, exec_root, address)
        try:
            async with asyncio.timeout(_START_SECONDS):
                ready = await _ready_or_dead(receiver, pid)
        except TimeoutError as error:
            raise RuntimeFailure(f"dockerd is not ready after {_START_SECONDS:.0f} s; see {log_path}") from error
    if not ready or not await answers(socket_path):
        _reap(pid)
        tail = log_path.read_bytes()[-_LOG_TAIL:].decode(errors="replace").strip()
        raise RuntimeFailure(f"dockerd ended at its start; the end of {log_path}:\n{tail}")
    log.info("started dockerd pid=%d socket=%s", pid, socket_path)


@contextlib.contextmanager
def _notify_socket() -> Iterator[tuple[socket.socket, str]]:
    with (
        tempfile.TemporaryDirectory(prefix="kernelet-notify-") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as receiver,
    ):
        address = f"{folder}/notify"
        receiver.bind(address)
        yield receiver, address


async def _ready_or_dead(receiver: socket.socket, pid: int) -> bool:
    """True at READY=1; False when the process ends before that."""
    loop = asyncio.get_running_loop()
    dead = asyncio.ensure_future(_ended(pid))
    try:
        while True:
            message = asyncio.ensure_future(loop.sock_recv(receiver, 4096))
            await asyncio.wait({message, dead}, return_when=asyncio.FIRST_COMPLETED)
            if not message.done():
                message.cancel()
                return False
            if b"READY=1" in message.result().split(b"\n"):
                return True
    finally:
        dead.cancel()


async def _ended(pid: int) -> None:
    """Returns once the process is dead, child of ours or not (pidfd_open(2))."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_reader(descriptor, over.set)
    try:
        await over.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def _end(pid: int, socket_path: str) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await _ended(pid)
        except TimeoutError:
            log.warning("process does not end pid=%d signal=%s", pid, number.name)
            continue
        _reap(pid)
        return
    raise RuntimeFailure(f"dockerd of {socket_path} (process {pid}) does not end; look for processes in state D")


def _reap(pid: int) -> None:
    """Collects the process if it is a child of ours; it need not be."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _start_time(pid: int) -> int:
    """When the process began, in clock ticks since boot (proc(5), field 22); 0 for none, or only its zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])


def _containerd_of(exec_root: Path) -> int:
    """The containerd that a killed dockerd left behind; 0 for none."""
    try:
        pid = int((exec_root / "containerd" / "containerd.pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ValueError):
        return 0
    return pid if str(exec_root).encode() in command else 0


def mounts_below(*folders: Path) -> list[str]:
    """Mount points at or below the folders, innermost first (proc(5), mountinfo; spaces are escaped as \\040)."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4].encode().decode("unicode_escape")
        if any(Path(point).is_relative_to(folder) for folder in folders):
            found.append(point)
    return sorted(found, key=len, reverse=True)
