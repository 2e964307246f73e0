"""Working inside another network namespace without leaving this process's own.

setns(2) moves one thread. So work for another namespace runs in a thread made for it, which ends with the work: a pool
thread would carry the foreign namespace to its next task. Nothing forks, so it is safe beside gRPC.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ._netns import lib

T = TypeVar("T")

__all__ = ["enter", "open_of_pid", "run_in"]


def enter(fd: int) -> None:
    """Moves the calling thread into the namespace open at `fd`. Raises OSError (EPERM without CAP_SYS_ADMIN)."""
    code = lib.kl_enter_netns(fd)
    if code:
        raise OSError(code, f"setns: {os.strerror(code)}")


def open_of_pid(pid: int) -> int:
    """A descriptor of a process's network namespace; the caller closes it. Raises FileNotFoundError once it is gone."""
    return os.open(Path(f"/proc/{pid}/ns/net"), os.O_RDONLY | os.O_CLOEXEC)


def run_in(fd: int, work: Callable[[], T]) -> T:
    """Runs `work` in the namespace open at `fd` and returns or raises what it does; blocks until it ends."""

    def body() -> T:
        enter(fd)
        return work()

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="netns") as thread:
        return thread.submit(body).result()
