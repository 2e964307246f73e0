"""Building a description: aligned `Name: value` lines, indented sections, tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from kernelet.core.api import table, times
from kernelet.core.api.errors import JSON

from .output import align

_WIDTH = 18
_HIDDEN_ANNOTATIONS = ("kubectl.kubernetes.io/last-applied-configuration",)


class Text:
    """Lines, with an indentation that sections deepen."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._indent = ""

    def line(self, name: str, value: Any) -> None:
        """`Name:    value`; a value of several lines stays in its column."""
        first, *more = str(value).split("\n")
        label = f"{name}:"
        self._lines.append(f"{self._indent}{label:<{_WIDTH}} {first}".rstrip())
        self._lines += [f"{self._indent}{'':<{_WIDTH}} {item}".rstrip() for item in more]

    def mapping(self, name: str, values: Mapping[str, Any] | None, separator: str = "=") -> None:
        self.line(
            name, "\n".join(f"{key}{separator}{value}" for key, value in sorted((values or {}).items())) or "<none>"
        )

    @contextmanager
    def section(self, title: str) -> Iterator[None]:
        self._lines.append(f"{self._indent}{title}:")
        self._indent += "  "
        try:
            yield
        finally:
            self._indent = self._indent[:-2]

    def block(self, text: str) -> None:
        self._lines += [f"{self._indent}{line}".rstrip() for line in text.split("\n")]

    def table(self, title: str, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table with ruled headers; `<none>` where it has no rows."""
        if not rows:
            self.line(title, "<none>")
            return
        texts = [list(names), ["-" * len(name) for name in names], *([str(cell) for cell in row] for row in rows)]
        widths = [max(len(row[index]) for row in texts) for index in range(len(names))]
        with self.section(title):
            self.block("\n".join(align(row, widths) for row in texts))

    def render(self) -> str:
        return "\n".join(self._lines)


def header(text: Text, obj: JSON) -> None:
    """Name, namespace, labels, annotations."""
    metadata = obj["metadata"]
    text.line("Name", metadata["name"])
    if metadata.get("namespace"):
        text.line("Namespace", metadata["namespace"])
    text.mapping("Labels", metadata.get("labels"))
    annotations = metadata.get("annotations") or {}
    text.mapping("Annotations", {k: v for k, v in annotations.items() if k not in _HIDDEN_ANNOTATIONS}, ": ")
    for owner in metadata.get("ownerReferences") or []:
        if owner.get("controller"):
            text.line("Controlled By", f"{owner['kind']}/{owner['name']}")


def timestamp(text: Text, obj: JSON) -> None:
    created, deleted = obj["metadata"].get("creationTimestamp"), obj["metadata"].get("deletionTimestamp")
    text.line("Created", f"{created} ({table.since(created, times.now())} ago)" if created else "<unknown>")
    if deleted:
        text.line(
            "Deletion", f"due {deleted}; finalizers: {', '.join(obj['metadata'].get('finalizers') or []) or 'none'}"
        )
