"""Strategic merge patch: a merge patch that knows which lists are sets of named things.

Source: apimachinery strategicpatch. Directives: `$patch: replace|delete|merge` in an object or a list element,
`$retainKeys`, `$setElementOrder/<list>` and `$deleteFromPrimitiveList/<list>`.
"""

from __future__ import annotations

from typing import Any

from .errors import JSON, BadRequest
from .mergekeys import Strategy, strategy

PATCH = "$patch"
RETAIN_KEYS = "$retainKeys"
SET_ORDER = "$setElementOrder/"
DELETE_FROM = "$deleteFromPrimitiveList/"


def merge(struct: str, target: Any, patch: JSON) -> JSON:
    """The merged object of a struct (a kind's name at the root). Raises BadRequest for a malformed directive."""
    directive = patch.get(PATCH)
    if directive == "replace":
        return {key: strip(value) for key, value in patch.items() if key != PATCH}
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise BadRequest(f"the strategic merge patch has an unknown directive $patch: {directive!r}")
    result: JSON = dict(target) if isinstance(target, dict) else {}
    if RETAIN_KEYS in patch:
        kept = _list(patch, RETAIN_KEYS)
        result = {key: value for key, value in result.items() if key in kept}
    for key in [key for key in patch if key.startswith(DELETE_FROM)]:
        field, gone = key[len(DELETE_FROM) :], _list(patch, key)
        if isinstance(result.get(field), list):
            result[field] = [item for item in result[field] if item not in gone]
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        if value is None:
            result.pop(key, None)
            continue
        how = strategy(struct, key)
        if isinstance(value, dict):
            result[key] = merge(how.struct, result.get(key), value)
        elif isinstance(value, list) and (how.key or how.primitives):
            order = _list(patch, SET_ORDER + key) if SET_ORDER + key in patch else None
            result[key] = _merge_list(how, result.get(key), value, order, key)
        else:
            result[key] = strip(value)
    _reorder_untouched(struct, result, patch)
    return result


def strip(value: Any) -> Any:
    """A patch's value without directives and nulls, as it looks where there was nothing to merge with."""
    if isinstance(value, dict):
        return {key: strip(item) for key, item in value.items() if not key.startswith("$") and item is not None}
    if isinstance(value, list):
        return [strip(item) for item in value if not (isinstance(item, dict) and PATCH in item and len(item) == 1)]
    return value


def _list(patch: JSON, key: str) -> list[Any]:
    value = patch[key]
    if not isinstance(value, list):
        raise BadRequest(f"the strategic merge patch has {key} which is not a list")
    return value


def _reorder_untouched(struct: str, result: JSON, patch: JSON) -> None:
    """An order given for a list of which no element changed."""
    for key in patch:
        field = key[len(SET_ORDER) :]
        if key.startswith(SET_ORDER) and field not in patch and isinstance(result.get(field), list):
            how = strategy(struct, field)
            if how.key or how.primitives:
                result[field] = _ordered(how, result[field], result[field], _list(patch, key))


def _merge_list(how: Strategy, target: Any, patch: list[Any], order: list[Any] | None, field: str) -> list[Any]:
    current: list[Any] = target if isinstance(target, list) else []
    if how.primitives:
        merged = [*current, *(item for item in patch if item not in current)]
    else:
        merged = _merge_objects(how, current, patch, field)
    return merged if order is None else _ordered(how, merged, current, order)


def _merge_objects(how: Strategy, current: list[Any], patch: list[Any], field: str) -> list[Any]:
    if any(isinstance(item, dict) and item.get(PATCH) == "replace" for item in patch):
        return [strip(item) for item in patch if not (isinstance(item, dict) and item.get(PATCH) == "replace")]
    merged = list(current)
    for item in patch:
        if not isinstance(item, dict) or item.get(how.key) is None:
            raise BadRequest(f"the strategic merge patch has an element of {field} without its merge key {how.key}")
        where = next((index for index, old in enumerate(merged) if _key(how, old) == item[how.key]), None)
        if item.get(PATCH) == "delete":
            merged = [old for old in merged if _key(how, old) != item[how.key]]
        elif where is None:
            merged.append(merge(how.struct, None, item))
        else:
            merged[where] = merge(how.struct, merged[where], item)
    return merged


def _key(how: Strategy, item: Any) -> Any:
    """What an element of a list is known by: the merge key of an object, a plain value itself."""
    return item.get(how.key) if isinstance(item, dict) else item


def _ordered(how: Strategy, merged: list[Any], server: list[Any], order: list[Any]) -> list[Any]:
    """Elements the patch orders, in that order, with those only the server has kept where they stood among them."""
    wanted = [_key(how, item) for item in order]
    standing = [_key(how, item) for item in server]
    ours = sorted((i for i in merged if _key(how, i) in wanted), key=lambda item: wanted.index(_key(how, item)))
    theirs = [item for item in merged if _key(how, item) not in wanted]
    result: list[Any] = []
    while ours and theirs:
        left, right = _key(how, theirs[0]), _key(how, ours[0])
        first = left in standing and right in standing and standing.index(left) < standing.index(right)
        result.append((theirs if first else ours).pop(0))
    return [*result, *ours, *theirs]
