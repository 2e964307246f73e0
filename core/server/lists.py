"""Lists: from the cache where it can answer, from the store's history where it cannot; pages of one snapshot."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from ..api.errors import BadRequest, Expired, Invalid
from ..store import Compacted, FutureRevision, Store
from .entries import Entry, Selection
from .requests import Listing, ListOptions, Ref
from .watchcache import Feed
from .watches import FRESHNESS_SECONDS, fresh, parse_revision

_STORE_PAGE = 1000
_EXPIRED = (
    "The provided continue parameter is too old to display a consistent list result. You must start a new list "
    "without the continue parameter."
)


class _Token(msgspec.Struct):
    """A continue token: the snapshot's revision and the key the next page starts at."""

    rv: int
    start: str


@dataclass(frozen=True)
class _Snapshot:
    revision: int
    entries: Sequence[Entry] | None
    """None: the store must be asked for that revision."""


async def list_objects(feed: Feed, store: Store, ref: Ref, options: ListOptions) -> Listing:
    """Raises Expired for a revision or token that is gone, Timeout for one not reached, BadRequest for a bad option."""
    _check(options)
    selection = Selection(ref.kind, options.label_selector, options.field_selector)
    if options.continue_:
        token = _decode(options.continue_, ref)
        snapshot, start = _at(feed, ref, token.rv), token.start
    else:
        snapshot, start = await _snapshot(feed, store, ref, options), ""
    if snapshot.entries is None:
        return await _from_store(store, ref, selection, options, snapshot.revision, start)
    return _from_cache(snapshot.entries, selection, options, snapshot.revision, start)


def _check(options: ListOptions) -> None:
    if options.limit < 0:
        raise BadRequest(f"limit {options.limit} is invalid: must be greater than or equal to 0")
    match = options.resource_version_match
    if match and not options.resource_version:
        raise Invalid(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"
        )
    if match not in ("", "Exact", "NotOlderThan"):
        raise Invalid(f'resourceVersionMatch: Unsupported value: "{match}": supported values: "Exact", "NotOlderThan"')
    if match == "Exact" and options.resource_version == "0":
        raise Invalid(
            'resourceVersionMatch: Forbidden: resourceVersionMatch "Exact" is forbidden for resourceVersion "0"'
        )
    if options.continue_ and options.resource_version not in ("", "0"):
        raise BadRequest("specifying resource version is not allowed when using continue")


async def _snapshot(feed: Feed, store: Store, ref: Ref, options: ListOptions) -> _Snapshot:
    asked = parse_revision(options.resource_version)
    exact = options.resource_version_match == "Exact" or (options.limit and not options.resource_version_match)
    if not options.resource_version:
        newest = await store.revision()
        if not await feed.wait_until(newest, FRESHNESS_SECONDS):
            return _Snapshot(newest, None)
    elif asked:
        await fresh(feed, store, asked)
        if exact:
            return _at(feed, ref, asked)
    return _Snapshot(feed.revision, list(feed.collection(ref.kind.storage_prefix).sorted(ref.namespace)))


def _at(feed: Feed, ref: Ref, revision: int) -> _Snapshot:
    collection = feed.collection(ref.kind.storage_prefix)
    if collection.last_change <= revision <= feed.revision:
        return _Snapshot(revision, list(collection.sorted(ref.namespace)))
    return _Snapshot(revision, None)


def _from_cache(
    entries: Sequence[Entry], selection: Selection, options: ListOptions, revision: int, start: str
) -> Listing:
    found: list[bytes] = []
    everything = selection.everything
    for index, entry in enumerate(entries):
        if entry.key < start or not (everything or selection.matches(entry)):
            continue
        if options.limit and len(found) == options.limit:
            remaining = len(entries) - index if everything else 0
            return Listing(found, revision, _encode(revision, entry.key), remaining)
        found.append(entry.wire())
    return Listing(found, revision)


async def _from_store(
    store: Store, ref: Ref, selection: Selection, options: ListOptions, revision: int, start: str
) -> Listing:
    prefix = f"{ref.kind.storage_prefix}{ref.namespace}/" if ref.namespace else ref.kind.storage_prefix
    found: list[bytes] = []
    while True:
        wanted = options.limit - len(found) if options.limit else _STORE_PAGE
        try:
            page = await store.list(prefix, revision=revision, limit=max(wanted, 1), start_key=start)
        except Compacted as error:
            raise Expired(_EXPIRED if options.continue_ else f"The resourceVersion {revision} is too old") from error
        except FutureRevision as error:
            raise Expired(f"the revision {revision} is not known to the store: {error}; list again") from error
        entries = [Entry.of(kv) for kv in page.items]
        found.extend(entry.wire() for entry in entries if selection.everything or selection.matches(entry))
        start = page.next_key
        if not start:
            return Listing(found, revision)
        if options.limit and len(found) >= options.limit:
            remaining = page.remaining if selection.everything else 0
            return Listing(found, revision, _encode(revision, start), remaining)


def _encode(revision: int, start: str) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(_Token(revision, start))).decode().rstrip("=")


def _decode(text: str, ref: Ref) -> _Token:
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        token = msgspec.json.decode(data, type=_Token)
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        raise BadRequest(f"continue key is not valid: {error}; list anew without it") from error
    if not token.start.startswith(ref.kind.storage_prefix) or token.rv <= 0:
        raise BadRequest("continue key is not valid: it belongs to another list; list anew without it")
    return token
