"""Patches: JSON patch (RFC 6902), merge patch (RFC 7386) and Kubernetes' strategic merge patch.

A patch that is malformed raises BadRequest; one that cannot be applied to this object raises Invalid.
"""

from __future__ import annotations

from typing import Any

import msgspec

from . import strategic
from .errors import JSON, BadRequest, Invalid, UnsupportedMediaType
from .kinds import Kind

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"

_MAX_OPERATIONS = 10_000
_OPERATIONS = ("add", "remove", "replace", "move", "copy", "test")


def apply_patch(kind: Kind, obj: JSON, media_type: str, patch: bytes) -> JSON:
    """The patched object; `obj` stays as it was.

    Raises BadRequest (the patch is malformed), Invalid (it does not fit the object), UnsupportedMediaType.
    """
    try:
        content = msgspec.json.decode(patch)
        if media_type == JSON_PATCH:
            patched = json_patch(obj, content)
        elif media_type == MERGE_PATCH:
            patched = merge_patch(obj, _object(content))
        elif media_type == STRATEGIC_MERGE_PATCH:
            patched = strategic.merge(kind.kind, obj, _object(content))
        else:
            raise UnsupportedMediaType(
                f"patches of type {media_type!r} are not supported; use {JSON_PATCH}, {MERGE_PATCH} or "
                f"{STRATEGIC_MERGE_PATCH}"
            )
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the patch is not valid JSON: {error}") from error
    if not isinstance(patched, dict):
        raise Invalid("the patch replaces the whole object by something that is no object")
    return patched


def _object(content: Any) -> JSON:
    if not isinstance(content, dict):
        raise BadRequest(f"the patch must be a JSON object, got {type(content).__name__}")
    return content


def copy(value: Any) -> Any:
    """A deep copy of a JSON value."""
    if isinstance(value, dict):
        return {key: copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [copy(item) for item in value]
    return value


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386: objects merge, null removes, anything else replaces."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def json_patch(document: Any, operations: Any) -> Any:
    """RFC 6902: operations in order, all or none."""
    if not isinstance(operations, list):
        raise BadRequest("a JSON patch is a list of operations")
    if len(operations) > _MAX_OPERATIONS:
        raise BadRequest(f"the JSON patch has {len(operations)} operations; at most {_MAX_OPERATIONS} are allowed")
    document = copy(document)
    for number, operation in enumerate(operations):
        document = _apply(document, operation, f"operation {number} of the JSON patch")
    return document


def _apply(document: Any, operation: Any, where: str) -> Any:
    if not isinstance(operation, dict) or operation.get("op") not in _OPERATIONS:
        raise BadRequest(f"{where} is malformed: op must be one of {', '.join(_OPERATIONS)}")
    name = operation["op"]
    path = _pointer(operation, "path", where)
    if name in ("add", "replace", "test") and "value" not in operation:
        raise BadRequest(f"{where} is malformed: {name} needs a value")
    if name == "remove":
        return _remove(document, path, where)
    if name == "test":
        if not _equal(_get(document, path, where), operation["value"]):
            raise Invalid(f"{where} failed: the value at {operation['path']!r} is not the one tested for")
        return document
    if name == "replace":
        _get(document, path, where)
        return _put(document, path, copy(operation["value"]), where, replace=True)
    if name == "add":
        return _put(document, path, copy(operation["value"]), where)
    source = _pointer(operation, "from", where)
    value = copy(_get(document, source, where))
    if name == "move":
        if len(path) > len(source) and path[: len(source)] == source:
            raise Invalid(f"{where} failed: {operation['from']!r} cannot be moved into itself")
        document = _remove(document, source, where)
    return _put(document, path, value, where)


def _pointer(operation: JSON, member: str, where: str) -> list[str]:
    """The parts of an RFC 6901 pointer."""
    text = operation.get(member)
    if not isinstance(text, str) or (text and not text.startswith("/")):
        raise BadRequest(f"{where} is malformed: {member} must be a JSON pointer such as /spec/replicas")
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _index(part: str, length: int, where: str) -> int:
    if not (part.isascii() and part.isdigit()) or (part[0] == "0" and part != "0") or len(part) > 9:
        raise Invalid(f"{where} failed: {part[:40]!r} is not an index of a list")
    if int(part) >= length:
        raise Invalid(f"{where} failed: index {part} is beyond the end of a list of {length}")
    return int(part)


def _get(document: Any, path: list[str], where: str) -> Any:
    for depth, part in enumerate(path):
        if isinstance(document, dict) and part in document:
            document = document[part]
        elif isinstance(document, list):
            document = document[_index(part, len(document), where)]
        else:
            raise Invalid(f"{where} failed: there is nothing at /{'/'.join(path[: depth + 1])}")
    return document


def _put(document: Any, path: list[str], value: Any, where: str, *, replace: bool = False) -> Any:
    if not path:
        return value
    parent, last = _get(document, path[:-1], where), path[-1]
    if isinstance(parent, dict):
        parent[last] = value
    elif isinstance(parent, list):
        if replace:
            parent[_index(last, len(parent), where)] = value
        else:
            parent.insert(len(parent) if last == "-" else _index(last, len(parent) + 1, where), value)
    else:
        raise Invalid(f"{where} failed: /{'/'.join(path[:-1])} is neither an object nor a list")
    return document


def _remove(document: Any, path: list[str], where: str) -> Any:
    _get(document, path, where)
    if not path:
        return None
    parent = _get(document, path[:-1], where)
    if isinstance(parent, list):
        del parent[_index(path[-1], len(parent), where)]
    else:
        del parent[path[-1]]
    return document


def _equal(left: Any, right: Any) -> bool:
    """JSON equality: unlike Python's, true is not 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_equal(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(_equal(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)
