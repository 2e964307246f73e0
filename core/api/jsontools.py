"""Careful access to JSON that nobody has checked yet: a field of a wrong type reads as absent."""

from __future__ import annotations

from typing import Any

from .errors import JSON


def child(obj: JSON, key: str) -> JSON:
    """The object at a key, or an empty unattached one."""
    value = obj.get(key)
    return value if isinstance(value, dict) else {}


def children(obj: JSON, key: str) -> list[JSON]:
    """The objects of the list at a key."""
    value = obj.get(key)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def default(obj: JSON, key: str, value: Any) -> None:
    """Sets a text that is absent or empty: the API does not tell the two apart."""
    if obj.get(key) in (None, ""):
        obj[key] = value


def default_number(obj: JSON, key: str, value: int) -> None:
    """Sets a number that is absent or zero, where the API does not tell the two apart."""
    if not obj.get(key):
        obj[key] = value


def default_map(obj: JSON, key: str) -> JSON:
    """The object at a key, made where absent; a field of a wrong type stays, and an unattached object is given."""
    value = obj.get(key)
    if value is None:
        value = obj[key] = {}
    return value if isinstance(value, dict) else {}


def prune_nulls(root: JSON) -> None:
    """Removes null members at every depth, in place. Iterative, since the depth is the client's choice."""
    waiting: list[Any] = [root]
    while waiting:
        value = waiting.pop()
        if type(value) is dict:
            if None in value.values():
                for key in [key for key, item in value.items() if item is None]:
                    del value[key]
            waiting.extend(item for item in value.values() if type(item) in _CONTAINERS)
        else:
            waiting.extend(item for item in value if type(item) in _CONTAINERS)


_CONTAINERS = (dict, list)
