"""The running kernel's types, read from its BTF (kernel documentation, bpf/btf.rst).

The tracing programs read kernel structs at offsets that differ from build to build. bcc has no CO-RE relocations, and
headers are rarely installed on a node; the kernel itself tells both offsets and the names of its drop reasons.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from .errors import TraceError

VMLINUX = Path("/sys/kernel/btf/vmlinux")
_MAGIC = 0xEB9F
_INT, _ARRAY, _STRUCT, _UNION, _ENUM, _TYPEDEF = 1, 3, 4, 5, 6, 8
_VOLATILE, _CONST, _RESTRICT, _TYPE_TAG = 9, 10, 11, 18
_SAME = (_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG)
# Bytes behind a type's header: (fixed, for each of its members).
_TAIL = {_INT: (4, 0), _ARRAY: (12, 0), _STRUCT: (0, 12), _UNION: (0, 12), _ENUM: (0, 8), 13: (0, 8), 14: (4, 0),
         15: (0, 12), 17: (4, 0), 19: (0, 12)}  # fmt: skip
_HEADER = struct.Struct("=III")
_MEMBER = struct.Struct("=III")


class Btf:
    """Types by name. Raises TraceError where the kernel has no BTF."""

    def __init__(self, path: Path = VMLINUX) -> None:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise TraceError(
                f"{path} cannot be read: {error.strerror}; tracing needs a kernel built with CONFIG_DEBUG_INFO_BTF"
            ) from error
        magic, _, _, header, types, length, texts, _ = struct.unpack_from("=HBBIIIII", data)
        if magic != _MAGIC:
            raise TraceError(f"{path} is no BTF of this machine's byte order")
        self._data = data
        self._texts = header + texts
        self._at = [0]
        self._named: dict[bytes, list[int]] = {}
        self._index(header + types, header + types + length)

    def _index(self, at: int, end: int) -> None:
        """Where each type begins, and the types of each name; by far most of the work, so nothing else is read yet."""
        data, unpack = self._data, _HEADER.unpack_from
        while at < end:
            name, info, _ = unpack(data, at)
            kind, count = info >> 24 & 0x1F, info & 0xFFFF
            if name and kind in (_STRUCT, _ENUM, _TYPEDEF):
                self._named.setdefault(self._name(name), []).append(len(self._at))
            self._at.append(at)
            fixed, each = _TAIL.get(kind, (0, 0))
            at += 12 + fixed + each * count

    def _name(self, offset: int) -> bytes:
        start = self._texts + offset
        return self._data[start : self._data.index(b"\0", start)]

    def _type(self, number: int) -> tuple[int, int, int, int]:
        """(kind, count of members, size or type, where its members begin) behind typedefs and qualifiers."""
        while True:
            at = self._at[number]
            _, info, size = _HEADER.unpack_from(self._data, at)
            kind = info >> 24 & 0x1F
            if kind not in _SAME:
                return kind, info & 0xFFFF, size, at + 12
            number = size

    def has(self, name: str) -> bool:
        """Whether there is a struct, an enum or a typedef of this name."""
        return name.encode() in self._named

    def _only(self, name: str, kind: int) -> int:
        for number in self._named.get(name.encode(), ()):
            if self._type(number)[0] == kind:
                return number
        raise TraceError(f"this kernel has no {'enum' if kind == _ENUM else 'struct'} {name}: it is too old to trace")

    def _members(self, number: int, base: int = 0) -> Iterator[tuple[bytes, int, int]]:
        """(name, type, offset in bits), with the members of anonymous structs and unions among them."""
        _, count, _, at = self._type(number)
        for index in range(count):
            name, kind, offset = _MEMBER.unpack_from(self._data, at + 12 * index)
            offset &= 0xFFFFFF
            if name:
                yield self._name(name), kind, base + offset
            elif kind and self._type(kind)[0] in (_STRUCT, _UNION):
                yield from self._members(kind, base + offset)

    def offset(self, path: str) -> int:
        """Bytes from the start of a struct to a member: `sock.__sk_common.skc_dport`. Raises TraceError."""
        name, *parts = path.split(".")
        number, bits = self._only(name, _STRUCT), 0
        for part in parts:
            found = next((row for row in self._members(number) if row[0] == part.encode()), None)
            if found is None:
                raise TraceError(f"this kernel has no {path}: tracing does not know its layout")
            number, bits = found[1], bits + found[2]
        return bits // 8

    def enum(self, name: str) -> dict[int, str]:
        """Names by number. Raises TraceError."""
        _, count, _, at = self._type(self._only(name, _ENUM))
        pairs = (struct.unpack_from("=Ii", self._data, at + 8 * index) for index in range(count))
        return {value: self._name(text).decode() for text, value in pairs}
