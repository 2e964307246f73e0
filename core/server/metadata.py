"""metadata as the server keeps it: what a client may set, what only the server sets, preconditions."""

from __future__ import annotations

import uuid

from ..api import names, times
from ..api.errors import JSON, BadRequest, Cause, conflict, invalid
from ..api.kinds import Kind
from .requests import DeleteOptions, Ref

_SERVER_SET = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink")
_NOT_SPEC = frozenset({"metadata", "status", "kind", "apiVersion"})


def check_identity(ref: Ref, body: JSON) -> JSON:
    """The body's metadata, after kind, apiVersion and namespace were found to agree with the request."""
    kind = ref.kind
    if body.get("kind") not in (None, "", kind.kind) or body.get("apiVersion") not in (None, "", kind.api_version):
        raise BadRequest(
            f"the object provided is a {body.get('apiVersion')} {body.get('kind')}, but the request is for "
            f"{kind.api_version} {kind.kind}"
        )
    metadata = body.get("metadata")
    if metadata is None:
        metadata = body["metadata"] = {}
    if not isinstance(metadata, dict):
        raise BadRequest(f"{kind.kind} cannot be read: metadata: expected an object")
    for field in ("name", "namespace", "generateName", "uid", "resourceVersion"):
        if not isinstance(metadata.get(field, ""), str | None):
            raise BadRequest(f"{kind.kind} cannot be read: metadata.{field}: expected a string")
    if not kind.namespaced:
        metadata.pop("namespace", None)
    elif metadata.get("namespace") and metadata["namespace"] != ref.namespace:
        raise BadRequest("the namespace of the provided object does not match the namespace sent on the request")
    else:
        metadata["namespace"] = ref.namespace
    return metadata


def prepare_new(ref: Ref, body: JSON) -> JSON:
    """Sets the server's fields of a new object; returns its metadata. The name is left for `generateName`."""
    metadata = check_identity(ref, body)
    if metadata.get("resourceVersion"):
        raise BadRequest("resourceVersion should not be set on objects to be created")
    if ref.name and metadata.get("name") not in (None, "", ref.name):
        raise BadRequest(_other_name(metadata["name"], ref.name))
    if ref.name:
        metadata["name"] = ref.name
    if not metadata.get("name") and not metadata.get("generateName"):
        cause = Cause("metadata.name", "Required value: name or generateName is required", "FieldValueRequired")
        raise invalid(ref.kind.kind, "", [cause], ref.kind.group)
    for field in (*_SERVER_SET, "resourceVersion"):
        metadata.pop(field, None)
    metadata["uid"] = str(uuid.uuid4())
    metadata["creationTimestamp"] = times.now_rfc3339()
    if ref.kind.has_generation:
        metadata["generation"] = 1
    return metadata


def prepare_update(ref: Ref, body: JSON, old: JSON) -> None:
    """Checks an update's identity and preconditions against the stored object, and restores the server's fields."""
    metadata, known = check_identity(ref, body), old["metadata"]
    kind = ref.kind
    if metadata.get("name") not in (None, "", ref.name):
        raise BadRequest(_other_name(metadata["name"], ref.name))
    revision = metadata.get("resourceVersion")
    if revision and revision != known["resourceVersion"]:
        raise conflict(kind.plural, ref.name, group=kind.group)
    if metadata.get("uid"):
        check_uid(kind, ref.name, metadata["uid"], known["uid"])
    metadata["name"] = ref.name
    metadata.pop("resourceVersion", None)
    for field in _SERVER_SET:
        if field in known:
            metadata[field] = known[field]
        else:
            metadata.pop(field, None)


def check_uid(kind: Kind, name: str, asked: str, found: str) -> None:
    """Raises Conflict where the object is another of the same name."""
    if asked and asked != found:
        why = f"Precondition failed: UID in precondition: {asked}, UID in object meta: {found}"
        raise conflict(kind.plural, name, why, kind.group)


def check_preconditions(kind: Kind, name: str, options: DeleteOptions, metadata: JSON) -> None:
    """Raises Conflict where a delete's preconditions do not hold."""
    check_uid(kind, name, options.uid, metadata["uid"])
    found = metadata["resourceVersion"]
    if options.resource_version and options.resource_version != found:
        why = (
            f"Precondition failed: ResourceVersion in precondition: {options.resource_version}, "
            f"ResourceVersion in object meta: {found}"
        )
        raise conflict(kind.plural, name, why, kind.group)


def count_generation(kind: Kind, new: JSON, old: JSON) -> None:
    """metadata.generation grows by one where anything but metadata and status changed."""
    if not kind.has_generation:
        return
    before = {key: value for key, value in old.items() if key not in _NOT_SPEC}
    after = {key: value for key, value in new.items() if key not in _NOT_SPEC}
    if before != after:
        new["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1


def check_finalizers(kind: Kind, new: JSON, old: JSON) -> None:
    """Raises Invalid where a finalizer is added to an object that is being deleted."""
    if not old["metadata"].get("deletionTimestamp"):
        return
    added = [f for f in new["metadata"].get("finalizers") or [] if f not in (old["metadata"].get("finalizers") or [])]
    if added:
        text = f"Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers {added}"
        cause = Cause("metadata.finalizers", text, "FieldValueForbidden")
        raise invalid(kind.kind, new["metadata"]["name"], [cause], kind.group)


def generated_name(metadata: JSON) -> str:
    return names.generate_name(metadata["generateName"])


def may_be_removed(kind: Kind, obj: JSON) -> bool:
    """Whether an object under deletion has nobody left to wait for."""
    metadata = obj["metadata"]
    if not metadata.get("deletionTimestamp") or metadata.get("finalizers"):
        return False
    if kind.plural == "namespaces" and (obj.get("spec") or {}).get("finalizers"):
        return False
    return not metadata.get("deletionGracePeriodSeconds")


def _other_name(given: str, asked: str) -> str:
    return f"the name of the object ({given}) does not match the name on the URL ({asked})"
