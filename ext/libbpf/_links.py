"""Attachments of programs to cgroups."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ._errors import failure
from ._handle import Handle
from ._libbpf import ffi, lib
from ._objects import Program


@dataclass(frozen=True, slots=True)
class LinkInfo:
    id: int
    program_id: int
    attach_type: int
    cgroup_id: int
    """The inode number of the cgroup's folder; 0 once the link is detached or the cgroup is gone."""


class Link(Handle):
    """An attachment lives as long as its link, which a pin keeps alive."""

    kind = "link"

    @classmethod
    def attach(cls, program: Program, cgroup: Path) -> Link:
        """Attaches a program to the hook it was written for, beside programs of others. Raises BpfError."""
        target = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = lib.bpf_link_create(program.fd, target, program.attach_type, ffi.NULL)
        finally:
            os.close(target)
        if fd < 0:
            raise failure(fd, f"attach BPF program {program.name} to cgroup {cgroup}")
        return cls(fd, program.name)

    def update(self, program: Program) -> None:
        """Puts another program in the place of the present one, with no moment without either. Raises BpfError."""
        code = lib.bpf_link_update(self.fd, program.fd, ffi.NULL)
        if code < 0:
            raise failure(code, f"replace the program of BPF link {self.name}")

    def detach(self) -> None:
        """Ends the attachment although the link is still pinned or held elsewhere. Raises BpfError."""
        code = lib.bpf_link_detach(self.fd)
        if code < 0:
            raise failure(code, f"detach BPF link {self.name}")

    def info(self) -> LinkInfo:
        """Raises BpfError."""
        raw = ffi.new("struct kl_link_info *")
        code = lib.kl_link_info(self.fd, raw)
        if code < 0:
            raise failure(code, f"look at BPF link {self.name}")
        return LinkInfo(raw.id, raw.program_id, raw.attach_type, raw.cgroup_id)
