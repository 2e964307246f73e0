"""Key rules both implementations share."""

from __future__ import annotations

from .contract import FutureRevision

_LAST = "\U0010ffff"


def check_key(key: str) -> None:
    """Raises ValueError unless the key starts with `/`, has no NUL and can be written as UTF-8."""
    if not key.startswith("/") or "\0" in key:
        raise ValueError(f"store key {key!r}: a key starts with '/' and holds no NUL character")
    if not key.isascii():
        key.encode()


def key_range(prefix: str) -> tuple[str, str]:
    """The half-open range [first, end) which holds every key that starts with `prefix` ("" or "/...").

    Keys are ordered by code point, which for UTF-8 is the order of the bytes too (RFC 3629, section 1), so that the
    range is the same in SQLite and in etcd.
    """
    prefix = prefix or "/"
    check_key(prefix)
    stem = prefix.rstrip(_LAST)
    following = ord(stem[-1]) + 1
    if 0xD800 <= following <= 0xDFFF:
        following = 0xE000
    return prefix, stem[:-1] + chr(following)


def future(revision: int, newest: int) -> FutureRevision:
    return FutureRevision(f"revision {revision} has not been reached; the store is at {newest}")
