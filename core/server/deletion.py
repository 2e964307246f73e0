"""Deletion: at once, or marked and waited for (graceful pods, finalizers, dependents, namespaces)."""

from __future__ import annotations

from datetime import timedelta

from ..api import codec, times
from ..api.errors import JSON, BadRequest, Cause, conflict, invalid, not_found
from ..api.kinds import Kind
from ..store import KeyMissing, RevisionMismatch, Store
from . import metadata
from .entries import Entry
from .requests import DeleteOptions, Ref
from .writes import CONFLICT_ATTEMPTS, Writer

ORPHAN, FOREGROUND = "orphan", "foregroundDeletion"
_POLICIES = ("", "Background", "Foreground", "Orphan")
_RETURN_OBJECT = {"pods", "services", "serviceaccounts", "namespaces"}
_DEFAULT_GRACE = 30


class Deleter:
    """The delete path over the write path."""

    def __init__(self, store: Store, writer: Writer) -> None:
        self._store = store
        self._writer = writer

    async def delete(self, ref: Ref, options: DeleteOptions) -> bytes:
        """The object as it stands after the call, or a Status. Raises NotFound, Conflict (a precondition), Invalid."""
        _check(ref, options)
        entry = await self._writer.current(ref)
        for _ in range(CONFLICT_ATTEMPTS):
            old, new = entry.decode(), entry.decode()
            metadata.check_preconditions(ref.kind, ref.name, options, old["metadata"])
            done = _mark(ref.kind, new, options)
            try:
                if options.dry_run or (not done and new == old):
                    return codec.encode(new) if options.dry_run else entry.wire()
                if done:
                    wire, _ = await self._writer.remove(ref, entry, new)
                    return wire if ref.kind.plural in _RETURN_OBJECT else _success(ref, old)
                stored = codec.to_stored(new)
                kv = await self._store.update(ref.key, stored, entry.revision)
                return codec.to_wire(stored, kv.mod_revision)
            except RevisionMismatch as error:
                entry = Entry.of(error.current)
            except KeyMissing as error:
                raise not_found(ref.kind.plural, ref.name, ref.kind.group) from error
        raise conflict(ref.kind.plural, ref.name, group=ref.kind.group)


def _check(ref: Ref, options: DeleteOptions) -> None:
    if not ref.name:
        raise BadRequest(f"delete of {ref.kind.plural}: a name is required")
    if options.propagation_policy not in _POLICIES:
        supported = ", ".join(f'"{policy}"' for policy in _POLICIES[1:])
        text = f'Unsupported value: "{options.propagation_policy}": supported values: {supported}'
        raise invalid("DeleteOptions", "", [Cause("propagationPolicy", text, "FieldValueNotSupported")])


def _mark(kind: Kind, obj: JSON, options: DeleteOptions) -> bool:
    """Writes the deletion into the object; whether it can be removed from the store right away."""
    meta = obj["metadata"]
    finalizers = _finalizers(meta, options.propagation_policy)
    if finalizers:
        meta["finalizers"] = finalizers
    else:
        meta.pop("finalizers", None)
    grace = _grace(kind, obj, options)
    if grace > 0 or finalizers or _has_content(kind, obj):
        _set_deletion(meta, grace)
        if kind.plural == "namespaces":
            obj.setdefault("status", {})["phase"] = "Terminating"
        return False
    return True


def _finalizers(meta: JSON, policy: str) -> list[str]:
    """The finalizers with those of the wanted propagation; no policy leaves what was asked before."""
    finalizers = list(meta.get("finalizers") or [])
    if not policy:
        return finalizers
    kept = [name for name in finalizers if name not in (ORPHAN, FOREGROUND)]
    added = {"Orphan": [ORPHAN], "Foreground": [FOREGROUND]}.get(policy, [])
    return kept + added


def _grace(kind: Kind, obj: JSON, options: DeleteOptions) -> int:
    """Seconds the object's owner gets; 0 for what nobody runs (an unscheduled or finished pod, every other kind)."""
    if not kind.graceful:
        return 0
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    if not spec.get("nodeName") or status.get("phase") in ("Succeeded", "Failed"):
        return 0
    asked = options.grace_period_seconds
    if asked is None:
        asked = spec.get("terminationGracePeriodSeconds", _DEFAULT_GRACE)
    return asked if asked >= 0 else 1


def _has_content(kind: Kind, obj: JSON) -> bool:
    return kind.plural == "namespaces" and bool((obj.get("spec") or {}).get("finalizers"))


def _set_deletion(meta: JSON, grace: int) -> None:
    """Sets the time of deletion; a later call can only bring it forward."""
    if meta.get("deletionTimestamp"):
        before = meta.get("deletionGracePeriodSeconds") or 0
        if grace >= before:
            return
        asked_at = times.parse(meta["deletionTimestamp"]) - timedelta(seconds=before)
    else:
        asked_at = times.now()
        if meta.get("generation"):
            meta["generation"] += 1
    meta["deletionTimestamp"] = times.format_seconds(asked_at + timedelta(seconds=grace))
    meta["deletionGracePeriodSeconds"] = grace


def _success(ref: Ref, obj: JSON) -> bytes:
    details = {"name": ref.name, "kind": ref.kind.plural, "uid": obj["metadata"]["uid"]}
    if ref.kind.group:
        details["group"] = ref.kind.group
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
    return codec.encode(status)
