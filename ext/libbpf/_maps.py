"""Maps: elements one by one, and many with one call."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Any

from ._errors import BpfError, failure
from ._handle import Handle
from ._libbpf import ffi, lib

_BATCH = 16384
"""Elements that one call reads."""
_MOST_MAPS = 64
"""The kernel's limit for one program (MAX_USED_MAPS)."""
_PERCPU_TYPES = frozenset((5, 6, 10))  # BPF_MAP_TYPE_PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH


def possible_cpus() -> int:
    """How many values an element of a per-CPU map has."""
    count = lib.libbpf_num_possible_cpus()
    if count < 0:
        raise failure(count, "count the CPUs")
    return count


@dataclass(frozen=True, slots=True)
class MapInfo:
    id: int
    type: int
    key_size: int
    value_size: int
    """Bytes; in a per-CPU map, of one CPU's value."""
    max_entries: int
    flags: int

    @classmethod
    def read(cls, raw: Any) -> MapInfo:
        return cls(raw.id, raw.type, raw.key_size, raw.value_size, raw.max_entries, raw.flags)

    @property
    def stride(self) -> int:
        """Bytes of a value as it is read and written: all CPUs' in a per-CPU map, each padded to 8."""
        if self.type in _PERCPU_TYPES:
            return (self.value_size + 7) // 8 * 8 * possible_cpus()
        return self.value_size


class Map(Handle):
    """An open map. Keys and values are bytes of its sizes, which are checked before the kernel reads them."""

    kind = "map"

    def __init__(self, fd: int, name: str) -> None:
        """Takes over the descriptor. Raises BpfError where it is no map."""
        super().__init__(fd, name)
        raw = ffi.new("struct kl_map_info *")
        code = lib.kl_map_info(fd, raw)
        if code < 0:
            self.close()
            raise failure(code, f"look at BPF map {name}")
        self.info = MapInfo.read(raw)
        self._key, self._value = self.info.key_size, self.info.stride

    @classmethod
    def copy_of(cls, fd: int, name: str) -> Map:
        """A map by another descriptor of the same."""
        return cls(os.dup(fd), name)

    @classmethod
    def by_id(cls, number: int) -> Map:
        """A map anywhere on the host, named as the kernel has it: by 15 characters at most. Raises BpfError."""
        name = ffi.new("char[16]")
        fd = lib.kl_map_by_id(number, name)
        if fd < 0:
            raise failure(fd, f"open BPF map {number}")
        return cls(fd, ffi.string(name).decode())

    @classmethod
    def of_program(cls, program_id: int) -> dict[str, Map]:
        """The maps that a loaded program uses, by name. Raises BpfError."""
        ids = ffi.new("uint32_t[]", _MOST_MAPS)
        count = lib.kl_program_maps(program_id, ids, _MOST_MAPS)
        if count < 0:
            raise failure(count, f"list the maps of BPF program {program_id}")
        found: dict[str, Map] = {}
        try:
            for index in range(min(count, _MOST_MAPS)):
                item = cls.by_id(ids[index])
                found[item.name] = item
        except BpfError:
            for item in found.values():
                item.close()
            raise
        return found

    def lookup(self, key: bytes) -> bytes | None:
        """Raises BpfError."""
        self._expect(key, self._key, 1, "key")
        value = bytearray(self._value)
        code = lib.bpf_map_lookup_elem(self.fd, key, ffi.from_buffer(value))
        if code == -errno.ENOENT:
            return None
        if code < 0:
            raise failure(code, f"read an element of BPF map {self.name}")
        return bytes(value)

    def update(self, key: bytes, value: bytes) -> None:
        """Raises BpfError."""
        self._expect(key, self._key, 1, "key")
        self._expect(value, self._value, 1, "value")
        code = lib.bpf_map_update_elem(self.fd, key, value, 0)
        if code < 0:
            raise failure(code, f"write an element of BPF map {self.name}")

    def delete(self, key: bytes) -> bool:
        """False where there was none. Raises BpfError."""
        self._expect(key, self._key, 1, "key")
        code = lib.bpf_map_delete_elem(self.fd, key)
        if code < 0 and code != -errno.ENOENT:
            raise failure(code, f"delete an element of BPF map {self.name}")
        return not code

    def update_many(self, count: int, keys: bytes, values: bytes) -> None:
        """Writes `count` elements, whose keys and values lie one after another, in one system call.

        Each element changes atomically, the whole does not; a signal does not interrupt it. Raises BpfError, which says
        how many were written.
        """
        if not count:
            return
        self._expect(keys, self._key, count, "keys")
        self._expect(values, self._value, count, "values")
        done = ffi.new("uint32_t *", count)
        code = lib.bpf_map_update_batch(self.fd, keys, values, done, ffi.NULL)
        if code < 0:
            deed = f"write {count} elements of BPF map {self.name} (max_entries {self.info.max_entries})"
            raise failure(code, f"{deed}, of which {done[0]} are written")

    def delete_many(self, count: int, keys: bytes) -> None:
        """Deletes what is there of `count` keys that lie one after another. Raises BpfError."""
        self._expect(keys, self._key, count, "keys")
        start = 0
        while start < count:
            done = ffi.new("uint32_t *", count - start)
            code = lib.bpf_map_delete_batch(self.fd, keys[start * self._key :], done, ffi.NULL)
            if not code:
                return
            if code != -errno.ENOENT:
                raise failure(code, f"delete {count} elements of BPF map {self.name}")
            start += done[0] + 1  # the one that was not there is skipped

    def read(self) -> tuple[int, bytes, bytes]:
        """All elements: how many, their keys one after another, and their values. Raises BpfError.

        Elements that others write meanwhile may be missing or be there in either form.
        """
        token = ffi.new("uint32_t[4]")
        room, first, total = _BATCH, True, 0
        keys, values = bytearray(), bytearray()
        while True:
            count = ffi.new("uint32_t *", room)
            key_buffer, value_buffer = bytearray(room * self._key), bytearray(room * self._value)
            code = lib.bpf_map_lookup_batch(
                self.fd,
                ffi.NULL if first else token,
                token,
                ffi.from_buffer(key_buffer),
                ffi.from_buffer(value_buffer),
                count,
                ffi.NULL,
            )
            if code == -errno.ENOSPC and not count[0]:
                room *= 2  # one bucket holds more than there was room for
                continue
            if code < 0 and code not in (-errno.ENOENT, -errno.ENOSPC):
                raise failure(code, f"read BPF map {self.name}")
            keys += memoryview(key_buffer)[: count[0] * self._key]
            values += memoryview(value_buffer)[: count[0] * self._value]
            total += count[0]
            first = False
            if code == -errno.ENOENT:
                return total, bytes(keys), bytes(values)

    def items(self) -> list[tuple[bytes, bytes]]:
        """All elements as pairs. Raises BpfError."""
        count, keys, values = self.read()
        key, value = self._key, self._value
        return [(keys[i * key : (i + 1) * key], values[i * value : (i + 1) * value]) for i in range(count)]

    def _expect(self, data: bytes, size: int, count: int, what: str) -> None:
        if len(data) != size * count:
            raise ValueError(
                f"{what} of BPF map {self.name} must have {size * count} bytes ({count} x {size}), not {len(data)}"
            )
