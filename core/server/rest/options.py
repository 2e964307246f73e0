"""Query parameters and DeleteOptions bodies as the registry's options."""

from __future__ import annotations

import random

from kernelet.core.api.errors import JSON, BadRequest

from ..requests import DeleteOptions, ListOptions, WatchOptions, WriteOptions
from .context import Call

_POLICIES = ("", "Background", "Foreground", "Orphan")
_VALIDATIONS = ("", "Strict", "Warn", "Ignore")


def list_options(call: Call) -> ListOptions:
    """Raises BadRequest for a limit that is no number."""
    return ListOptions(
        label_selector=call.query("labelSelector"),
        field_selector=call.query("fieldSelector"),
        limit=_number(call.query("limit"), "limit") or 0,
        continue_=call.query("continue"),
        resource_version=call.query("resourceVersion"),
        resource_version_match=call.query("resourceVersionMatch"),
    )


def watch_options(call: Call, name: str = "") -> WatchOptions:
    """`name` narrows the watch to one object. Without timeoutSeconds a watch ends after 30 to 60 minutes."""
    fields = [call.query("fieldSelector"), f"metadata.name={name}" if name else ""]
    seconds = _number(call.query("timeoutSeconds"), "timeoutSeconds")
    return WatchOptions(
        label_selector=call.query("labelSelector"),
        field_selector=",".join(filter(None, fields)),
        resource_version=call.query("resourceVersion"),
        bookmarks=call.flag("allowWatchBookmarks"),
        send_initial_events=call.flag("sendInitialEvents"),
        # Spread, so that clients that came together do not come back together.
        timeout_seconds=float(seconds) if seconds else random.uniform(1800, 3600),
    )


def write_options(call: Call) -> WriteOptions:
    """Without fieldManager the writer is named by the first word of its User-Agent, as Kubernetes does."""
    validation = call.query("fieldValidation")
    if validation not in _VALIDATIONS:
        raise BadRequest(f"fieldValidation {validation!r}: use Strict, Warn or Ignore")
    agent = call.http.headers.get("User-Agent", "").split("/")[0][:128]
    return WriteOptions(
        field_manager=call.query("fieldManager") or agent,
        dry_run=_dry_run(call.http.query.getall("dryRun", [])),
        field_validation=validation or "Warn",
    )


def delete_options(call: Call, body: JSON) -> DeleteOptions:
    """Query parameters over the body. Raises BadRequest naming the field."""
    preconditions = _mapping(body, "preconditions")
    grace = _number(call.query("gracePeriodSeconds") or body.get("gracePeriodSeconds"), "gracePeriodSeconds")
    policy = str(call.query("propagationPolicy") or body.get("propagationPolicy") or "")
    orphan = call.query("orphanDependents") or body.get("orphanDependents")
    if not policy and orphan is not None and orphan != "":
        policy = "Orphan" if str(orphan).lower() == "true" else "Background"
    if policy not in _POLICIES:
        raise BadRequest(f"propagationPolicy {policy!r}: use Background, Foreground or Orphan")
    dry_run = call.http.query.getall("dryRun", []) or body.get("dryRun") or []
    return DeleteOptions(
        grace_period_seconds=grace,
        propagation_policy=policy,
        uid=str(preconditions.get("uid") or ""),
        resource_version=str(preconditions.get("resourceVersion") or ""),
        dry_run=_dry_run(dry_run),
    )


def number(call: Call, key: str) -> int | None:
    """A whole number of the query, None when it is not there. Raises BadRequest."""
    return _number(call.query(key), key)


def _mapping(body: JSON, key: str) -> JSON:
    value = body.get(key) or {}
    if not isinstance(value, dict):
        raise BadRequest(f"DeleteOptions: {key} must be an object")
    return value


def _number(value: object, name: str) -> int | None:
    if value is None or value == "":
        return None
    try:
        found = int(str(value))
    except ValueError:
        raise BadRequest(f"{name} {value!r} is no whole number") from None
    if found < 0 or found > 2**62:
        raise BadRequest(f"{name} {value!r} must be zero or more")
    return found


def _dry_run(values: object) -> bool:
    if not isinstance(values, list) or any(value != "All" for value in values):
        raise BadRequest(f"dryRun {values!r}: only All is known")
    return bool(values)
