"""The structs of a compiled object, read from its BTF (kernel documentation, bpf/btf.rst)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM = 1, 2, 3, 4, 5, 6
_TYPEDEF, _VOLATILE, _CONST, _RESTRICT = 8, 9, 10, 11
_FUNC_PROTO, _VAR, _DATASEC, _DECL_TAG, _ENUM64 = 13, 14, 15, 17, 19


@dataclass
class Member:
    name: str
    offset: int
    size: int


@dataclass
class Layout:
    size: int
    members: list[Member]


def section(path: Path, wanted: str) -> bytes:
    """A section of a 64-bit ELF file."""
    data = path.read_bytes()
    (start,) = struct.unpack_from("<Q", data, 0x28)
    width, count, names_at = struct.unpack_from("<HHH", data, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", data, start + i * width) for i in range(count)]
    names = headers[names_at][4]
    for name, _, _, _, offset, size in headers:
        begin = names + name
        if data[begin : data.index(b"\0", begin)].decode() == wanted:
            return data[offset : offset + size]
    raise LookupError(f"{path} has no section {wanted}")


class Btf:
    """The types of an object."""

    def __init__(self, path: Path) -> None:
        data = section(path, ".BTF")
        header, type_at, type_size, text_at, _ = struct.unpack_from("<IIIII", data, 4)
        self._text = data[header + text_at :]
        self._types: list[tuple[str, int, int, int, bytes]] = [("void", 0, 0, 0, b"")]
        self._read(data[header + type_at : header + type_at + type_size])

    def _name(self, offset: int) -> str:
        return self._text[offset : self._text.index(b"\0", offset)].decode()

    def _read(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            name, info, size = struct.unpack_from("<III", data, at)
            kind, count = info >> 24 & 0x1F, info & 0xFFFF
            more = {
                _INT: 4, _ARRAY: 12, _STRUCT: 12 * count, _UNION: 12 * count, _ENUM: 8 * count, _FUNC_PROTO: 8 * count,
                _VAR: 4, _DATASEC: 12 * count, _DECL_TAG: 4, _ENUM64: 12 * count,
            }.get(kind, 0)  # fmt: skip
            self._types.append((self._name(name), kind, count, size, data[at + 12 : at + 12 + more]))
            at += 12 + more

    def size(self, number: int) -> int:
        """Bytes of a type."""
        _, kind, _, size, more = self._types[number]
        if kind in (_TYPEDEF, _VOLATILE, _CONST, _RESTRICT):
            return self.size(size)
        if kind == _ARRAY:
            element, _, count = struct.unpack("<III", more)
            return self.size(element) * count
        return 8 if kind == _PTR else size

    def layout(self, name: str) -> Layout:
        """Raises LookupError."""
        for found, kind, count, size, more in self._types:
            if (found, kind) == (name, _STRUCT):
                rows = [struct.unpack_from("<III", more, 12 * i) for i in range(count)]
                return Layout(size, [Member(self._name(row[0]), row[2] // 8, self.size(row[1])) for row in rows])
        raise LookupError(f"no struct {name} in the object's BTF")
