"""The patch that takes a live object to what a manifest says now, by what it said when it was applied last.

Fields of the manifest are set, fields the last manifest had and this one has not are removed, everything else (what
controllers, defaults and other people set) is left alone. Source: kubectl apply; apimachinery
strategicpatch.CreateThreeWayMergePatch.
"""

from __future__ import annotations

from typing import Any

from .errors import JSON
from .mergekeys import Strategy, strategy
from .strategic import DELETE_FROM, PATCH, RETAIN_KEYS, SET_ORDER

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def three_way_patch(struct: str, last: JSON, wanted: JSON, current: JSON) -> JSON:
    """A strategic merge patch for `current`, empty where nothing is to change. `struct`: a kind's name at the root."""
    patch: JSON = {}
    for key, value in wanted.items():
        _set(patch, strategy(struct, key), key, value, last.get(key), current)
    for key in last:
        if key not in wanted and key in current:
            patch[key] = None
    return patch


def _set(patch: JSON, how: Strategy, key: str, value: Any, last: Any, current: JSON) -> None:
    """Adds to the patch what brings one field to its wanted value."""
    have = current.get(key)
    if value is None:
        if key in current:
            patch[key] = None
    elif isinstance(value, dict) and isinstance(have, dict):
        below = three_way_patch(how.struct, last if isinstance(last, dict) else {}, value, have)
        if below and how.retain_keys:
            below[RETAIN_KEYS] = sorted(value)
        if below:
            patch[key] = below
    elif isinstance(value, list) and isinstance(have, list) and how.key and _keyed(how, value, have):
        _set_objects(patch, how, key, value, last if isinstance(last, list) else [], have)
    elif isinstance(value, list) and isinstance(have, list) and how.primitives:
        _set_primitives(patch, key, value, last if isinstance(last, list) else [], have)
    elif value != have:
        patch[key] = value


def _keyed(how: Strategy, *lists: list[Any]) -> bool:
    """Whether every element has the merge key, once: only then are elements known by it."""
    for items in lists:
        keys = [item.get(how.key) if isinstance(item, dict) else None for item in items]
        if None in keys or any(keys.count(key) > 1 for key in keys):
            return False
    return True


def _set_objects(patch: JSON, how: Strategy, key: str, wanted: list[JSON], last: list[Any], have: list[JSON]) -> None:
    by_key = {item[how.key]: item for item in have}
    before = {item.get(how.key): item for item in last if isinstance(item, dict)}
    changes: list[JSON] = []
    for item in wanted:
        name = item[how.key]
        if name not in by_key:
            changes.append(item)
            continue
        below = three_way_patch(how.struct, before.get(name) or {}, item, by_key[name])
        if below and how.retain_keys:
            below[RETAIN_KEYS] = sorted(item)
        if below:
            changes.append({how.key: name, **below})
    names = [item[how.key] for item in wanted]
    changes += [{PATCH: "delete", how.key: name} for name in before if name not in names and name in by_key]
    ours = [item[how.key] for item in have if item[how.key] in names]
    if changes:
        patch[key] = changes
    if changes or ours != names:
        patch[SET_ORDER + key] = [{how.key: name} for name in names]


def _set_primitives(patch: JSON, key: str, wanted: list[Any], last: list[Any], have: list[Any]) -> None:
    added = [item for item in wanted if item not in have]
    gone = [item for item in last if item not in wanted and item in have]
    if added:
        patch[key] = added
    if gone:
        patch[DELETE_FROM + key] = gone
