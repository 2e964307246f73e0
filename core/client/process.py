"""Who a process is, so that another one on the same machine can tell that it is gone."""

from __future__ import annotations

import os
import secrets
import socket
from functools import cache
from pathlib import Path


def new_identity() -> str:
    """`host_pid_random`: unique even when a pid is used again."""
    return f"{socket.gethostname()}_{os.getpid()}_{secrets.token_hex(4)}"


@cache
def own_mark() -> str:
    """`<boot id>/<pid namespace>/<pid>/<start time>`; "" where /proc does not tell.

    A process of the same boot and pid namespace is the one meant only if its start time (clock ticks since boot,
    proc(5)) is the same.
    """
    try:
        return f"{_machine()}/{os.getpid()}/{_start_time(os.getpid())}"
    except OSError:
        return ""


def is_gone(mark: str) -> bool:
    """Whether the marked process ran on this machine and has ended; False where that cannot be known."""
    boot, namespace, pid, started = (mark.split("/") + [""] * 4)[:4]
    try:
        if not pid.isdecimal() or f"{boot}/{namespace}" != _machine():
            return False
        os.kill(int(pid), 0)
        return _start_time(int(pid)) != started
    except ProcessLookupError:
        return True
    except OSError:
        # Another user's process, or a /proc that hides it.
        return False


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"


def _start_time(pid: int) -> str:
    """Field 22 of /proc/<pid>/stat. Raises ProcessLookupError for a zombie: it runs no more."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    fields = text[text.rindex(")") + 2 :].split()
    if fields[0] in "ZX":
        raise ProcessLookupError(pid)
    return fields[19]
