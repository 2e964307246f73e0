"""Creating and changing objects: prepare, default, admit, validate, then one compare-and-swap."""

from __future__ import annotations

from collections.abc import Callable

from ..api import codec, defaulting, validation
from ..api.errors import JSON, AlreadyExists, BadRequest, Cause, Forbidden, InternalError, conflict, invalid, not_found
from ..api.kinds import KINDS, Kind
from ..store import KeyExists, KeyMissing, RevisionMismatch, Store
from . import admission, metadata
from .allocators import Claims
from .entries import Entry
from .requests import Ref, WriteOptions, Written
from .services import Services, carry_over
from .watchcache import Feed

NAME_ATTEMPTS = 8
CONFLICT_ATTEMPTS = 64

Change = Callable[[JSON], JSON]
"""From the stored object (its own copy) to the wanted one; raises ApiError to refuse."""


def is_service(kind: Kind) -> bool:
    return kind.group == "" and kind.plural == "services"


class Writer:
    """The write path. `toleration_seconds` is what admission gives pods."""

    def __init__(self, store: Store, feed: Feed, services: Services, toleration_seconds: int) -> None:
        self._store = store
        self._feed = feed
        self._services = services
        self._toleration_seconds = toleration_seconds

    async def current(self, ref: Ref) -> Entry:
        """The newest state of an object: from the cache if it has caught up, else from the store. Raises NotFound."""
        newest = await self._store.revision()
        if self._feed.revision >= newest:
            entry = self._feed.collection(ref.kind.storage_prefix).get(ref.key)
        else:
            kv = await self._store.get(ref.key)
            entry = Entry.of(kv) if kv is not None else None
        if entry is None:
            raise not_found(ref.kind.plural, ref.name, ref.kind.group)
        return entry

    async def create(self, ref: Ref, body: JSON, options: WriteOptions) -> Written:
        """Raises AlreadyExists, Invalid, NotFound or Forbidden (namespace missing or terminating)."""
        kind = ref.kind
        warnings = check_fields(kind, body, options)
        meta = metadata.prepare_new(ref, body)
        if kind.namespaced:
            await self._check_namespace(ref, meta)
        generated = not meta.get("name")
        for attempt in range(NAME_ATTEMPTS):
            if generated:
                meta["name"] = metadata.generated_name(meta)
            if attempt == 0:
                admission.prepare_new(kind, body, self._toleration_seconds)
                defaulting.apply_defaults(kind, body)
                check_valid(kind, body, None)
            try:
                return await self._insert(Ref(kind, ref.namespace, meta["name"]), body, options, warnings)
            except KeyExists as error:
                if not generated or attempt == NAME_ATTEMPTS - 1:
                    raise _already_exists(kind, meta["name"]) from error
        raise AssertionError("the last attempt returns or raises")

    async def _insert(self, ref: Ref, body: JSON, options: WriteOptions, warnings: list[str]) -> Written:
        claims = None
        if is_service(ref.kind):
            if await self._store.get(ref.key) is not None:
                raise KeyExists(ref.key)
            claims = await self._services.reserve(body, None, dry_run=options.dry_run)
        if options.dry_run:
            if await self._store.get(ref.key) is not None:
                raise KeyExists(ref.key)
            return Written(codec.encode(body), 0, warnings, created=True)
        stored = codec.to_stored(body)
        try:
            kv = await self._store.create(ref.key, stored)
        except KeyExists:
            if claims is not None:
                await self._services.give_back(claims)
            raise
        await self._confirm(ref, claims, kv.mod_revision)
        return Written(codec.to_wire(stored, kv.mod_revision), kv.mod_revision, warnings, created=True)

    async def _confirm(self, ref: Ref, claims: Claims | None, revision: int) -> None:
        if claims is None or await self._services.stands(claims):
            return
        await self._store.delete(ref.key, revision)
        raise InternalError(f'services "{ref.name}": the write took too long and its address was given away; try again')

    async def change(
        self, ref: Ref, change: Change, options: WriteOptions, *, status: bool = False, check: bool = True
    ) -> Written:
        """Replaces the stored object by `change` of it, again from the newest state when another write came between.

        `status`: only .status differs. `check` False skips defaulting, validation and field warnings, for changes the
        server makes itself. Raises NotFound, Conflict (as `change` finds it), Invalid.
        """
        entry = await self.current(ref)
        for _ in range(CONFLICT_ATTEMPTS):
            old, new = entry.decode(), change(entry.decode())
            warnings = check_fields(ref.kind, new, options) if check else []
            metadata.prepare_update(ref, new, old)
            try:
                return await self._replace(ref, entry, old, new, options, warnings, status=status, check=check)
            except RevisionMismatch as error:
                entry = Entry.of(error.current)
            except KeyMissing as error:
                raise not_found(ref.kind.plural, ref.name, ref.kind.group) from error
        raise conflict(ref.kind.plural, ref.name, group=ref.kind.group)

    async def _replace(
        self, ref: Ref, entry: Entry, old: JSON, new: JSON, options: WriteOptions, warnings: list[str], *,
        status: bool, check: bool,
    ) -> Written:  # fmt: skip
        kind = ref.kind
        if check:
            new = _isolate(kind, new, old, status=status)
            if is_service(kind):
                carry_over(new, old)
            defaulting.apply_defaults(kind, new)
            metadata.check_finalizers(kind, new, old)
            check_valid(kind, new, old)
            metadata.count_generation(kind, new, old)
        if metadata.may_be_removed(kind, new) and not options.dry_run:
            return Written(*await self.remove(ref, entry, new), warnings)
        claims = None
        if is_service(kind) and not status:
            claims = await self._services.reserve(new, old, dry_run=options.dry_run)
        if new == _without_revision(old):
            return Written(entry.wire(), entry.revision, warnings)
        if options.dry_run:
            return Written(codec.to_wire(codec.to_stored(new), entry.revision), entry.revision, warnings)
        stored = codec.to_stored(new)
        try:
            kv = await self._store.update(ref.key, stored, entry.revision)
        except (RevisionMismatch, KeyMissing):
            if claims is not None:
                await self._services.give_back(claims)
            raise
        if is_service(kind) and not status:
            await self._services.release(old, new)
        return Written(codec.to_wire(stored, kv.mod_revision), kv.mod_revision, warnings)

    async def remove(self, ref: Ref, entry: Entry, obj: JSON) -> tuple[bytes, int]:
        """Takes an object out of the store: its last wire form and revision. Raises RevisionMismatch, KeyMissing."""
        event = await self._store.delete(ref.key, entry.revision)
        if is_service(ref.kind):
            await self._services.release(obj, None)
        return codec.to_wire(codec.to_stored(obj), event.kv.mod_revision), event.kv.mod_revision

    async def _check_namespace(self, ref: Ref, meta: JSON) -> None:
        if not ref.namespace:
            raise BadRequest(f"an empty namespace may not be set during creation of {ref.kind.plural}")
        space = Ref(KINDS.by_kind("v1", "Namespace"), "", ref.namespace)
        found = (await self.current(space)).view
        if found["metadata"].get("deletionTimestamp") or (found.get("status") or {}).get("phase") == "Terminating":
            name = meta.get("name") or meta.get("generateName", "")
            raise Forbidden(
                f'{ref.kind.resource_name} "{name}" is forbidden: unable to create new content in namespace '
                f"{ref.namespace} because it is being terminated",
                resource=ref.kind.plural,
                group=ref.kind.group,
                name=name,
                causes=[
                    Cause(
                        "metadata.namespace", f"namespace {ref.namespace} is being terminated", "NamespaceTerminating"
                    )
                ],
            )


def check_fields(kind: Kind, body: JSON, options: WriteOptions) -> list[str]:
    """Warnings for fields the kind does not have; with Strict a BadRequest (KEP-2885)."""
    mode = options.field_validation or "Warn"
    if mode not in ("Strict", "Warn", "Ignore"):
        raise BadRequest(f'invalid fieldValidation "{mode}": use Strict, Warn or Ignore')
    if mode == "Ignore":
        return []
    unknown = [f'unknown field "{path}"' for path in validation.unknown_fields(kind, body)]
    if unknown and mode == "Strict":
        raise BadRequest(
            f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: strict decoding error: '
            + ", ".join(unknown)
        )
    return unknown


def check_valid(kind: Kind, new: JSON, old: JSON | None) -> None:
    """Raises Invalid with every cause."""
    causes = validation.validate(kind, new, old)
    if causes:
        raise invalid(kind.kind, str(new["metadata"].get("name", "")), causes, kind.group)


def _isolate(kind: Kind, new: JSON, old: JSON, *, status: bool) -> JSON:
    """A status write changes only .status, any other write everything else."""
    if status:
        kept = _without_revision(old)
        return kept | {"status": new["status"]} if "status" in new else {k: v for k, v in kept.items() if k != "status"}
    if kind.has("status"):
        new.pop("status", None)
        if "status" in old:
            new["status"] = old["status"]
    return new


def _without_revision(obj: JSON) -> JSON:
    return obj | {"metadata": {key: value for key, value in obj["metadata"].items() if key != "resourceVersion"}}


def _already_exists(kind: Kind, name: str) -> AlreadyExists:
    return AlreadyExists(
        f'{kind.resource_name} "{name}" already exists', resource=kind.plural, group=kind.group, name=name
    )
