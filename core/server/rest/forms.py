"""Objects, lists and watch events in the form a client asked for, from wire bytes.

Plain objects and lists are joined from the bytes the registry gave, never decoded. A Table decodes each object once.
PartialObjectMetadata decodes `metadata` alone, as raw bytes.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from kernelet.core.api import codec
from kernelet.core.api.errors import JSON, BadRequest
from kernelet.core.api.kinds import Kind

from ..requests import Listing
from .negotiate import Form

META_VERSION = "meta.k8s.io/v1"
INCLUDE_OBJECT = ("", "Metadata", "Object", "None")


class _Head(msgspec.Struct):
    metadata: msgspec.Raw


_heads = msgspec.json.Decoder(_Head)


def render_object(kind: Kind, form: Form, wire: bytes, include_object: str = "") -> bytes:
    """One object. Raises BadRequest for a form that is of lists."""
    if form is Form.PLAIN:
        return wire
    if form is Form.TABLE:
        metadata = {"resourceVersion": codec.decode(_heads.decode(wire).metadata).get("resourceVersion", "")}
        return _table(kind, metadata, [wire], include_object, with_columns=True)
    if form is Form.PARTIAL:
        return _partial(wire)
    raise BadRequest(f"an object cannot be shown as {form.value}")


def render_list(kind: Kind, form: Form, listing: Listing, include_object: str = "") -> bytes:
    """A collection. Raises BadRequest for a form that is of single objects."""
    metadata: JSON = {"resourceVersion": str(listing.revision)}
    if listing.continue_:
        metadata["continue"] = listing.continue_
    if listing.remaining:
        metadata["remainingItemCount"] = listing.remaining
    if form is Form.PLAIN:
        return _list(f"{kind.kind}List", kind.api_version, metadata, listing.items)
    if form is Form.TABLE:
        return _table(kind, metadata, listing.items, include_object, with_columns=True)
    if form in (Form.PARTIAL_LIST, Form.PARTIAL):
        return _list("PartialObjectMetadataList", META_VERSION, metadata, [_partial(item) for item in listing.items])
    raise BadRequest(f"a list cannot be shown as {form.value}")


def render_event(
    kind: Kind, form: Form, event_type: str, wire: bytes, revision: int, include_object: str = "", first: bool = False
) -> bytes:
    """One line of a watch. Only the first Table names its columns, as kubectl expects. A Status is never changed."""
    if event_type == "ERROR" or form is Form.PLAIN:
        body = wire
    elif form is Form.TABLE:
        rows = [] if event_type == "BOOKMARK" else [wire]
        body = _table(kind, {"resourceVersion": str(revision)}, rows, include_object, with_columns=first)
    else:
        body = _partial(wire)
    return b'{"type":"%b","object":%b}\n' % (event_type.encode(), body)


def check_include_object(text: str) -> str:
    """Raises BadRequest for anything but None, Metadata and Object."""
    if text not in INCLUDE_OBJECT:
        raise BadRequest(f"includeObject {text!r}: use None, Metadata or Object")
    return text


def _list(kind: str, api_version: str, metadata: JSON, items: list[bytes]) -> bytes:
    head = codec.encode({"kind": kind, "apiVersion": api_version, "metadata": metadata})
    return b'%b,"items":[%b]}\n' % (head[:-1], b",".join(items))


def _partial(wire: bytes) -> bytes:
    metadata = bytes(_heads.decode(wire).metadata)
    return b'{"kind":"PartialObjectMetadata","apiVersion":"%b","metadata":%b}' % (META_VERSION.encode(), metadata)


def _table(kind: Kind, metadata: JSON, items: list[bytes], include_object: str, *, with_columns: bool) -> bytes:
    from kernelet.core.api import table

    now = datetime.now(UTC)
    columns = table.columns(kind) if with_columns else []
    rows = [
        {"cells": table.row(kind, codec.decode(item), now), "object": _row_object(item, include_object)}
        for item in items
    ]
    return codec.encode(
        {
            "kind": "Table",
            "apiVersion": META_VERSION,
            "metadata": metadata,
            "columnDefinitions": [column.to_json() for column in columns],
            "rows": rows,
        }
    )


def _row_object(item: bytes, include_object: str) -> Any:
    if include_object == "None":
        return None
    return msgspec.Raw(item if include_object == "Object" else _partial(item))
