"""The bpf filesystem, which keeps maps and links when the process that made them is gone."""

from __future__ import annotations

import errno
from pathlib import Path

from ._errors import BpfError, failure
from ._libbpf import lib


def require_bpffs(folder: Path) -> None:
    """Raises BpfError unless the folder is in a mounted bpf filesystem."""
    found = lib.kl_is_bpffs(bytes(folder))
    if found < 0:
        raise failure(found, f"look at {folder}")
    if not found:
        fix = "mount one: mount -t bpf bpf /sys/fs/bpf"
        raise BpfError(errno.ENOTSUP, f"cannot keep maps in {folder}: it is not in a bpf filesystem; {fix}")


def mount_bpffs(folder: Path) -> bool:
    """Mounts a bpf filesystem there unless there is one; whether it did. Raises BpfError."""
    if lib.kl_is_bpffs(bytes(folder)) == 1:
        return False
    code = lib.kl_mount_bpffs(bytes(folder))
    if code < 0:
        raise failure(
            code,
            f"mount a bpf filesystem at {folder}",
            fix="the kernel needs CONFIG_BPF_SYSCALL, and the process CAP_SYS_ADMIN; or mount it beforehand",
        )
    return True
