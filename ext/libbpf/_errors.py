"""What the kernel or libbpf refused, in words."""

from __future__ import annotations

import errno
import os

from ._libbpf import ffi, lib

_FIXES = {
    errno.EPERM: "it needs root, or CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN",
    errno.EACCES: "the verifier rejected the program, or a capability is missing (CAP_BPF, CAP_NET_ADMIN)",
    errno.ENOMEM: "the kernel has no memory for it; before Linux 5.11 raise RLIMIT_MEMLOCK",
    errno.E2BIG: "the map is full; make it larger",
    errno.ENOSPC: "the map is full; make it larger",
    errno.ENOSYS: "this kernel is built without CONFIG_BPF_SYSCALL",
    errno.EBUSY: "another program is attached there exclusively; detach it (bpftool cgroup tree)",
}


class BpfError(OSError):
    """`strerror` names the object, the cause and, where one is known, the fix."""


def failure(code: int, deed: str, *, fix: str = "") -> BpfError:
    """The error for a call that returned `code`, which is -errno."""
    number = -code
    fix = fix or _FIXES.get(number, "")
    return BpfError(number, f"cannot {deed}: {os.strerror(number)}{'; ' if fix else ''}{fix}")


def failure_with_log(code: int, deed: str) -> BpfError:
    """The same, followed by what libbpf said in this thread."""
    made = failure(code, deed)
    log = ffi.string(lib.kl_log()).decode(errors="replace").strip()
    return BpfError(made.errno, f"{made.strerror}\n{log}" if log else made.strerror)
