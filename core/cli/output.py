"""Objects as text: tables, names, YAML, JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click
import msgspec

from kernelet.core.api import table, times
from kernelet.core.api.errors import JSON
from kernelet.core.api.kinds import Kind

from . import yamlio
from .targets import reference

F = TypeVar("F", bound=Callable[..., Any])
_GAP = 3
FORMATS = ("yaml", "json", "wide", "name")


def output_option(*formats: str) -> Callable[[F], F]:
    """-o, one of the formats."""
    return click.option(
        "-o", "--output", "output", type=click.Choice(formats or FORMATS), default=None, help="How to print."
    )


def to_json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=4).decode()


def ordered(obj: JSON) -> JSON:
    """An object as a person expects it: apiVersion, kind, metadata with name and namespace, then the rest."""
    found = _first(obj, ("apiVersion", "kind", "metadata"))
    if isinstance(found.get("metadata"), dict):
        found["metadata"] = _first(found["metadata"], ("name", "namespace", "labels", "annotations"))
    return found


def _first(obj: JSON, keys: Sequence[str]) -> JSON:
    """The same members, those named first."""
    return {key: obj[key] for key in keys if key in obj} | obj


def print_objects(objects: Sequence[JSON], output: str, *, single: bool) -> None:
    """YAML or JSON: one object as itself (`single`), else a List."""
    listed = [ordered(obj) for obj in objects]
    document: JSON = (
        listed[0]
        if single and len(listed) == 1
        else {"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": listed}
    )
    click.echo(to_json(document) if output == "json" else yamlio.dump(document), nl=output == "json")


@dataclass
class TableView:
    """How objects of one kind become lines; column widths only grow, so that a watch stays aligned."""

    kind: Kind
    wide: bool = False
    with_namespace: bool = False
    with_kind: bool = False
    show_labels: bool = False
    label_columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._columns = table.columns(self.kind)
        self._shown = [index for index, column in enumerate(self._columns) if self.wide or not column.priority]
        self._widths: list[int] = []

    def header(self) -> list[str]:
        names = [self._columns[index].name.upper() for index in self._shown]
        labels = [key.rpartition("/")[2].upper() for key in self.label_columns]
        space = ["NAMESPACE"] if self.with_namespace else []
        return [*space, *names, *labels, *(["LABELS"] if self.show_labels else [])]

    def cells(self, obj: JSON) -> list[str]:
        row = table.row(self.kind, obj, times.now())
        metadata = obj.get("metadata") or {}
        labels = metadata.get("labels") or {}
        texts = []
        for index in self._shown:
            text = str(row[index])
            if self.with_kind and self._columns[index].name == "Name":
                text = reference(self.kind, text)
            texts.append(text)
        space = [str(metadata.get("namespace", ""))] if self.with_namespace else []
        chosen = [str(labels.get(key, "")) for key in self.label_columns]
        every = [table.format_labels(labels)] if self.show_labels else []
        return [*space, *texts, *chosen, *every]

    def lines(self, rows: Sequence[Sequence[str]]) -> list[str]:
        """Rows of texts, aligned with each other and with all before."""
        for row in rows:
            self._widths += [0] * (len(row) - len(self._widths))
            self._widths = [max(width, len(text)) for width, text in zip(self._widths, row, strict=True)]
        return [align(row, self._widths) for row in rows]

    def render(self, objects: Sequence[JSON], *, header: bool = True) -> str:
        rows = [self.header()] if header else []
        return "\n".join(self.lines([*rows, *(self.cells(obj) for obj in objects)]))


def align(row: Sequence[str], widths: Sequence[int]) -> str:
    """One line of a table; control characters of a cell cannot break it."""
    padded = (" ".join(text.split()).ljust(width + _GAP) for text, width in zip(row, widths, strict=True))
    return "".join(padded).rstrip()


def columns_of_text(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table of any cells under a header."""
    texts = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[index]) for row in texts) for index in range(len(header))]
    return "\n".join(align(row, widths) for row in texts)
