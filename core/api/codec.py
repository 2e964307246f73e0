"""JSON bytes of objects: fast encode and decode, and the two forms of stored bytes.

Stored form: `metadata` comes first and holds no resourceVersion, since the revision is known only once the store has
committed. Wire form: the same bytes with resourceVersion spliced in, so that what is stored is sent to clients and
watchers without being encoded again.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .errors import JSON, BadRequest

_PREFIX = b'{"metadata":{'
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder()


def encode(value: Any) -> bytes:
    return _encoder.encode(value)


def decode(data: bytes) -> JSON:
    """Raises BadRequest where the bytes are no JSON object."""
    try:
        value = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the object provided is unrecognized: {error}") from error
    if not isinstance(value, dict):
        raise BadRequest(f"the object provided is unrecognized: expected a JSON object, got {type(value).__name__}")
    return value


def to_stored(obj: JSON) -> bytes:
    """The stored form of an object, whose metadata must not be empty."""
    metadata = {key: value for key, value in obj["metadata"].items() if key != "resourceVersion"}
    return _encoder.encode({"metadata": metadata} | {key: value for key, value in obj.items() if key != "metadata"})


def to_wire(stored: bytes, revision: int) -> bytes:
    """The wire form of stored bytes at a revision; no parsing."""
    return b'{"metadata":{"resourceVersion":"%d",%b' % (revision, stored[len(_PREFIX) :])
