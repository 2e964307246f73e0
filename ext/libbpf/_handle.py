"""A descriptor with an owner."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import Self

from ._errors import failure
from ._libbpf import lib


class Handle:
    """Owns `fd`, an open map or link, until closed."""

    kind = "object"

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """The kernel forgets the object when nothing else holds it: no pin, no program, no process."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @classmethod
    def open(cls, path: Path) -> Self:
        """The object that is pinned there. Raises BpfError, FileNotFoundError's errno included."""
        fd = lib.bpf_obj_get(bytes(path))
        if fd < 0:
            raise failure(fd, f"open the pinned {cls.kind} {path}")
        return cls(fd, path.name)

    def pin(self, path: Path) -> None:
        """Pins it there, in place of what is pinned there now: at every moment one of the two is."""
        beside = path.with_name(f"{path.name}-{secrets.token_hex(4)}")
        code = lib.bpf_obj_pin(self.fd, bytes(beside))
        if code < 0:
            raise failure(code, f"pin {self.kind} {self.name} at {path}")
        try:
            beside.rename(path)
        except OSError:
            beside.unlink()
            raise
