"""Objects as the watch cache holds them: stored bytes, and what selectors need of them, read once."""

from __future__ import annotations

import msgspec

from ..api import codec
from ..api.errors import JSON
from ..api.kinds import Kind
from ..api.selectors import FieldSelector, LabelSelector
from ..store import KeyValue

_HEAD_FIELDS = ("metadata.name", "metadata.namespace", "spec.nodeName")


class _Metadata(msgspec.Struct):
    labels: dict[str, str] | None = None


class _Labelled(msgspec.Struct):
    metadata: _Metadata


class _PodSpec(msgspec.Struct):
    nodeName: str | None = None


class _PodHead(msgspec.Struct):
    spec: _PodSpec


_labels_of = msgspec.json.Decoder(_Labelled)
_pod_head = msgspec.json.Decoder(_PodHead)


class Entry:
    """One object at one revision. Shared between the cache and all its readers: never changed."""

    __slots__ = ("_labels", "_node", "_view", "key", "name", "namespace", "revision", "stored")

    def __init__(self, key: str, stored: bytes, revision: int) -> None:
        self.key = key
        self.stored = stored
        self.revision = revision
        _, _, _, rest = key.split("/", 3)
        namespace, slash, name = rest.partition("/")
        self.namespace = namespace if slash else ""
        self.name = name if slash else namespace
        self._labels: dict[str, str] | None = None
        self._node: str | None = None
        self._view: JSON | None = None

    @classmethod
    def of(cls, kv: KeyValue) -> Entry:
        return cls(kv.key, kv.value, kv.mod_revision)

    def wire(self, revision: int = 0) -> bytes:
        """The wire form, at the entry's own revision or another (that of its deletion)."""
        return codec.to_wire(self.stored, revision or self.revision)

    def decode(self) -> JSON:
        """A fresh copy of the object, with resourceVersion, for the caller to change."""
        return codec.decode(self.wire())

    @property
    def labels(self) -> dict[str, str]:
        if self._labels is None:
            self._labels = _labels_of.decode(self.stored).metadata.labels or {}
        return self._labels

    @property
    def node(self) -> str:
        """spec.nodeName; only pods have one."""
        if self._node is None:
            self._node = _pod_head.decode(self.stored).spec.nodeName or ""
        return self._node

    @property
    def view(self) -> JSON:
        """The parsed object, shared: read only."""
        if self._view is None:
            self._view = codec.decode(self.stored)
        return self._view


class Selection:
    """A label and a field selector compiled; the common field terms are told apart so that watchers can be indexed."""

    def __init__(self, kind: Kind, labels: str = "", fields: str = "") -> None:
        """Raises BadRequest for a selector that does not parse or a field the kind cannot be selected by."""
        self._kind = kind
        parsed = LabelSelector.parse(labels) if labels else None
        self._labels = None if parsed is None or parsed.empty else parsed
        selector = FieldSelector.parse(fields)
        selector.check(kind)
        heads = {path: selector.exact(path) or "" for path in _HEAD_FIELDS}
        self.name, self.namespace = heads["metadata.name"], heads["metadata.namespace"]
        self.node = heads["spec.nodeName"]
        rest = tuple(term for term in selector.terms if not (term[1] and term[2] and heads.get(term[0]) == term[2]))
        self._fields = FieldSelector(rest) if rest else None

    @property
    def everything(self) -> bool:
        return not (self.name or self.namespace or self.node or self._labels or self._fields)

    def matches(self, entry: Entry) -> bool:
        if self.name and entry.name != self.name:
            return False
        if self.namespace and entry.namespace != self.namespace:
            return False
        if self.node and entry.node != self.node:
            return False
        if self._labels is not None and not self._labels.matches(entry.labels):
            return False
        return self._fields is None or self._fields.matches(self._kind, entry.view)
