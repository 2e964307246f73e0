"""What both faces ask of the registry, and what it answers: plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..api.kinds import Kind
from ..security.users import User

__all__ = [
    "DeleteOptions",
    "ListOptions",
    "Listing",
    "Ref",
    "User",
    "WatchEvent",
    "WatchOptions",
    "WriteOptions",
    "Written",
]


@dataclass(frozen=True)
class Ref:
    """A collection (`name` empty), an object or one of its subresources. `namespace` "" means all namespaces."""

    kind: Kind
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    @property
    def key(self) -> str:
        """The object's key in the store."""
        return self.kind.storage_key(self.namespace, self.name)


@dataclass(frozen=True)
class ListOptions:
    """Selectors in Kubernetes' string form; `limit` 0 means all; see KEP-2340 for `resource_version_match`."""

    label_selector: str = ""
    field_selector: str = ""
    limit: int = 0
    continue_: str = ""
    resource_version: str = ""
    resource_version_match: str = ""


@dataclass(frozen=True)
class WriteOptions:
    """`field_validation` is Strict, Warn or Ignore."""

    field_manager: str = ""
    dry_run: bool = False
    field_validation: str = "Warn"


@dataclass(frozen=True)
class DeleteOptions:
    """`propagation_policy` is "", Background, Foreground or Orphan; `uid` and `resource_version` are preconditions."""

    grace_period_seconds: int | None = None
    propagation_policy: str = ""
    uid: str = ""
    resource_version: str = ""
    dry_run: bool = False


@dataclass(frozen=True)
class WatchOptions:
    """`timeout_seconds` 0 means no end; `resource_version` "" or "0" begins with ADDED for everything that stands."""

    label_selector: str = ""
    field_selector: str = ""
    resource_version: str = ""
    bookmarks: bool = False
    send_initial_events: bool = False
    timeout_seconds: float = 0.0


@dataclass
class Written:
    """The outcome of a write: the object in wire form, the revision it has, and warnings for the client."""

    json: bytes
    revision: int
    warnings: list[str] = field(default_factory=list)
    created: bool = False


@dataclass
class Listing:
    """Objects in wire form, ordered by namespace and name; `remaining` is 0 where it is not known."""

    items: list[bytes]
    revision: int
    continue_: str = ""
    remaining: int = 0


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """`type` is ADDED, MODIFIED, DELETED, BOOKMARK or ERROR (then `json` is a Status)."""

    type: str
    json: bytes
    revision: int
