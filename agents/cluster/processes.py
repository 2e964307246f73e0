"""Processes by pid file: a pid alone may be somebody else's by now, so the start time is kept with it."""

from __future__ import annotations

import os
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process that cannot be mistaken for a later one of the same pid."""

    pid: int
    start_time: int
    """Clock ticks since boot: field 22 of /proc/<pid>/stat (proc(5))."""

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """None when there is no such process, or only its zombie."""
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        fields = text[text.rindex(")") + 2 :].split()
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]))

    @classmethod
    def read(cls, path: Path) -> ProcessId | None:
        """The living process of a pid file; None where the file is missing, damaged, or its process has ended."""
        try:
            pid, start_time = (int(part) for part in path.read_text().split())
        except (FileNotFoundError, ValueError):
            return None
        found = cls.of(pid)
        return found if found is not None and found.start_time == start_time else None

    def write(self, path: Path) -> None:
        temporary = path.with_suffix(".new")
        temporary.write_text(f"{self.pid} {self.start_time}\n")
        temporary.replace(path)

    @property
    def alive(self) -> bool:
        return ProcessId.of(self.pid) == self

    def send(self, number: signal.Signals) -> None:
        """Signals the process if it still runs."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.alive:
                signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            return
        finally:
            os.close(fd)


def stop(process: ProcessId, grace: float) -> None:
    """SIGTERM, then SIGKILL after `grace` seconds; returns once the process has ended."""
    process.send(signal.SIGTERM)
    if not wait_end(process, grace):
        process.send(signal.SIGKILL)
        wait_end(process, 10)


def wait_end(process: ProcessId, seconds: float) -> bool:
    """Whether the process ended within that time; works for processes that are not children."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while process.alive:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            poll.poll(left * 1000)
        return True
    finally:
        os.close(fd)
