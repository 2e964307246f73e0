"""Request bodies in Kubernetes' protobuf encoding, as JSON objects.

Go clients since client-go 1.33 (and with them `kubectl create`) send built-in kinds as protobuf; answers may be JSON,
since their Accept lists it. An envelope (magic `k8s\\0`, then runtime.Unknown) names the kind. Field numbers come from
`protobuf_fields.conf`. The encoding writes zero values of fields that were never set, so a zero counts only where the
table marks the field as optional; fields the table does not know are left out, as Kubernetes does.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import resources
from typing import Any

from kernelet.core.api import codec
from kernelet.core.api.errors import JSON, BadRequest

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\x00"
_MAX_DEPTH = 100
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ABSENT = object()
Value = int | bytes


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    type: str
    repeated: bool = False
    mapped: bool = False
    inline: bool = False
    optional: bool = False


def decode(data: bytes) -> JSON:
    """The object in an envelope, with apiVersion and kind. Raises BadRequest for anything else."""
    if not data.startswith(_MAGIC):
        raise BadRequest("the object provided is unrecognized: it is no Kubernetes protobuf message")
    try:
        envelope = {number: value for number, _, value in _fields(data[len(_MAGIC) :])}
        names = {number: _text(value) for number, _, value in _fields(_bytes(envelope.get(1, b"")))}
        api_version, kind = names.get(1, ""), names.get(2, "")
        message = _message_name(api_version, kind)
        if message not in _table():
            raise BadRequest(f"{kind} in version {api_version!r} cannot be read as protobuf; send it as JSON")
        body = _object(message, _bytes(envelope.get(2, b"")), 0)
    except (ValueError, IndexError, struct.error, OverflowError) as error:
        raise BadRequest(f"the object provided is unrecognized: damaged protobuf: {error}") from error
    return {"apiVersion": api_version, "kind": kind, **body}


@cache
def _table() -> dict[str, dict[int, _Field]]:
    text = resources.files(__package__).joinpath("protobuf_fields.conf").read_text()
    messages = {}
    for line in text.splitlines():
        name, _, fields = line.partition(": ")
        if not line.startswith("#") and name:
            messages[name] = dict(_parse(field) for field in fields.split("; "))
    return messages


def _parse(text: str) -> tuple[int, _Field]:
    number, name, kind = text.split(" ")
    bare = kind.lstrip("[]{}~*")
    mark = kind[: len(kind) - len(bare)]
    return int(number), _Field(name, bare, mark == "[]", mark == "{}", mark == "~", mark == "*")


def _message_name(api_version: str, kind: str) -> str:
    if kind == "DeleteOptions":
        return "meta.v1.DeleteOptions"
    group, _, version = api_version.rpartition("/")
    return f"{group.split('.')[0] or 'core'}.{version}.{kind}"


def _object(message: str, data: bytes, depth: int) -> JSON:
    if depth > _MAX_DEPTH:
        raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
    fields = _table()[message]
    result: JSON = {}
    for number, wire, value in _fields(data):
        field = fields.get(number)
        if field is None:
            continue
        if field.inline:
            result |= _object(field.type, _bytes(value), depth + 1)
        elif field.mapped:
            key, item = _map_entry(field, _bytes(value), depth)
            result.setdefault(field.name, {})[key] = item
        elif field.repeated:
            result.setdefault(field.name, []).extend(_repeated(field, wire, value, depth))
        else:
            found = _value(field.type, value, depth)
            if found is not _ABSENT and (found or field.optional or isinstance(found, dict)):
                result[field.name] = found
    return result


def _repeated(field: _Field, wire: int, value: Value, depth: int) -> Iterator[Any]:
    if wire == _BYTES and field.type in ("i", "b"):
        # Packed: proto3 writers may do so, and readers of proto2 must accept it.
        data, at = _bytes(value), 0
        while at < len(data):
            number, at = _varint(data, at)
            yield _value(field.type, number, depth)
        return
    found = _value(field.type, value, depth)
    if found is not _ABSENT:
        yield found


def _map_entry(field: _Field, data: bytes, depth: int) -> tuple[str, Any]:
    parts = {number: value for number, _, value in _fields(data)}
    empty: Value = 0 if field.type in ("i", "b") else b""
    return _text(parts.get(1, b"")), _value(field.type, parts.get(2, empty), depth)


def _value(kind: str, value: Value, depth: int) -> Any:
    scalar = _SCALARS.get(kind) or _SPECIAL.get(kind)
    return scalar(value) if scalar else _object(kind, _bytes(value), depth + 1)


def _text(value: Value) -> str:
    return _bytes(value).decode()


def _bytes(value: Value) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number stands where a message is expected")
    return value


def _integer(value: Value) -> int:
    if not isinstance(value, int):
        raise ValueError("a message stands where a number is expected")
    return value - (1 << 64) if value >= 1 << 63 else value


def _double(value: Value) -> float:
    return float(struct.unpack("<d", struct.pack("<Q", _integer(value) & (1 << 64) - 1))[0])


def _time(value: Value) -> Any:
    """meta/v1 Time: to the second; nothing at all is the time that was never set."""
    parts = {number: _integer(item) for number, _, item in _fields(_bytes(value))}
    if not parts:
        return _ABSENT
    return (_EPOCH + timedelta(seconds=parts.get(1, 0))).strftime("%Y-%m-%dT%H:%M:%SZ")


def _micro_time(value: Value) -> Any:
    parts = {number: _integer(item) for number, _, item in _fields(_bytes(value))}
    if not parts:
        return _ABSENT
    moment = _EPOCH + timedelta(seconds=parts.get(1, 0), microseconds=parts.get(2, 0) // 1000)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _quantity(value: Value) -> Any:
    parts = {number: item for number, _, item in _fields(_bytes(value))}
    return _text(parts.get(1, b"")) or _ABSENT


def _int_or_string(value: Value) -> Any:
    parts = {number: item for number, _, item in _fields(_bytes(value))}
    return _text(parts.get(3, b"")) if parts.get(1, 0) else _integer(parts.get(2, 0))


def _raw_json(value: Value) -> Any:
    parts = {number: item for number, _, item in _fields(_bytes(value))}
    raw = _bytes(parts.get(1, b""))
    return codec.decode(raw) if raw else _ABSENT


def _strings(value: Value) -> list[str]:
    return [_text(item) for number, _, item in _fields(_bytes(value)) if number == 1]


_SCALARS: dict[str, Callable[[Value], Any]] = {
    "s": _text,
    "i": _integer,
    "b": lambda value: bool(_integer(value)),
    "y": lambda value: base64.b64encode(_bytes(value)).decode(),
    "d": _double,
}
_SPECIAL: dict[str, Callable[[Value], Any]] = {
    "meta.v1.Time": _time,
    "meta.v1.MicroTime": _micro_time,
    "meta.v1.FieldsV1": _raw_json,
    "resource.Quantity": _quantity,
    "intstr.IntOrString": _int_or_string,
    "runtime.RawExtension": _raw_json,
    "authentication.v1.ExtraValue": _strings,
    "authorization.v1.ExtraValue": _strings,
    "certificates.v1.ExtraValue": _strings,
}


def _fields(data: bytes) -> Iterator[tuple[int, int, Value]]:
    """(field number, wire type, value) of each field of a message. Raises ValueError, IndexError for torn data."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, wire, value
            continue
        if wire == _BYTES:
            length, at = _varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + length > len(data):
            raise ValueError("the message ends too early")
        piece = data[at : at + length]
        at += length
        yield number, wire, piece if wire == _BYTES else int.from_bytes(piece, "little")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = data[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & (1 << 64) - 1, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")
