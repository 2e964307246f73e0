"""Compiled objects: open, change, load, and take the maps and programs out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ._errors import failure, failure_with_log
from ._libbpf import ffi, lib
from ._maps import Map, MapInfo

lib.kl_init()


@dataclass(frozen=True, slots=True)
class Program:
    """A loaded program; it is valid while its object is open."""

    name: str
    fd: int
    attach_type: int

    def run(self, context: bytes) -> tuple[int, bytes]:
        """Runs it once (BPF_PROG_TEST_RUN): what it returns, and its context afterwards.

        Program types without test runs raise BpfError with ENOTSUPP.
        """
        buffer = bytearray(context)
        result = ffi.new("uint32_t *")
        code = lib.kl_run(self.fd, ffi.from_buffer(buffer), len(buffer), result)
        if code < 0:
            raise failure(code, f"run BPF program {self.name}")
        return int(result[0]), bytes(buffer)


class Object:
    """One object file. Between making and `load` its maps may be resized or replaced by existing ones."""

    def __init__(self, path: Path) -> None:
        """Raises BpfError where the file is missing or is no BPF object."""
        self._path = path
        handle = ffi.new("struct bpf_object **")
        code = lib.kl_open(bytes(path), handle)
        if code < 0:
            raise failure_with_log(code, f"open BPF object {path}")
        self._object: Any = handle[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Programs that are attached, and maps taken by `map`, stay."""
        if self._object is not None:
            lib.bpf_object__close(self._object)
            self._object = None

    def resize(self, name: str, max_entries: int) -> None:
        """Raises BpfError."""
        self._check(lib.kl_resize(self._object, name.encode(), max_entries), f"resize map {name}")

    def reuse(self, name: str, existing: Map) -> None:
        """The programs will use this map in place of a new one. Raises BpfError."""
        self._check(lib.kl_reuse(self._object, name.encode(), existing.fd), f"reuse map {name}")

    def declared(self, name: str) -> MapInfo:
        """What the object says of a map; its id is 0. Raises BpfError."""
        raw = ffi.new("struct kl_map_info *")
        self._check(lib.kl_map_declared(self._object, name.encode(), raw), f"find map {name}")
        return MapInfo.read(raw)

    def load(self) -> None:
        """Makes maps and has the programs verified. Raises BpfError with the verifier's log."""
        code = lib.kl_load(self._object)
        if code < 0:
            raise failure_with_log(code, f"load BPF object {self._path}")

    def map(self, name: str) -> Map:
        """A map of the loaded object, which outlives the object and is the caller's to close. Raises BpfError."""
        fd = lib.kl_map_fd(self._object, name.encode())
        self._check(fd, f"find map {name}")
        return Map.copy_of(fd, name)

    def program(self, name: str) -> Program:
        """Raises BpfError."""
        fd = lib.kl_program_fd(self._object, name.encode())
        self._check(fd, f"find program {name}")
        return Program(name, fd, lib.kl_attach_type(self._object, name.encode()))

    def _check(self, code: int, deed: str) -> None:
        if code < 0:
            raise failure(code, f"{deed} of BPF object {self._path}")
