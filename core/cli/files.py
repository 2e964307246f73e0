"""Objects from files: YAML with several documents, JSON, Lists, folders, stdin."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from kernelet.core.api.errors import JSON, NotFound
from kernelet.core.api.kinds import KINDS, Kind

from . import yamlio
from .failures import CliError
from .settings import Settings

F = TypeVar("F", bound=Callable[..., Any])
_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class Manifest:
    """One object of a file, and where it stands there."""

    kind: Kind
    obj: JSON
    source: str
    """`web.yaml`, or `web.yaml: document 2` where the file has several."""

    @property
    def name(self) -> str:
        return str((self.obj.get("metadata") or {}).get("name") or "")

    @property
    def namespace(self) -> str:
        return str((self.obj.get("metadata") or {}).get("namespace") or "")


def file_options(*, required: bool = False) -> Callable[[F], F]:
    """-f FILE|FOLDER|- (several) and -R."""

    def decorate(function: F) -> F:
        recursive = click.option("-R", "--recursive", is_flag=True, help="Folders within folders too.")
        files = click.option(
            "-f", "--filename", "files", multiple=True, required=required, metavar="FILE|FOLDER|-",
            type=click.Path(allow_dash=True), help="YAML or JSON; may be given several times.",
        )  # fmt: skip
        return files(recursive(function))

    return decorate


def load(files: Sequence[str], *, recursive: bool = False) -> list[Manifest]:
    """All objects of the files, in order. Raises CliError naming file, line and cause."""
    found = [manifest for file in files for manifest in _load_path(file, recursive)]
    if not found:
        raise CliError(f"{', '.join(files)}: no objects found; a file holds YAML or JSON with apiVersion and kind")
    return found


def in_namespace(manifest: Manifest, settings: Settings) -> str:
    """The namespace an object goes to. Raises CliError where the file and -n disagree."""
    if not manifest.kind.namespaced:
        return ""
    if manifest.namespace and settings.namespace_option not in ("", manifest.namespace):
        raise CliError(
            f"{manifest.source}: {manifest.kind.singular} {manifest.name} is of namespace {manifest.namespace}, but "
            f"-n says {settings.namespace_option}; leave out one of the two"
        )
    return manifest.namespace or settings.namespace


def _load_path(file: str, recursive: bool) -> Iterator[Manifest]:
    if file == "-":
        yield from parse(sys.stdin.buffer.read(), "stdin")
        return
    path = Path(file)
    try:
        if path.is_dir():
            pattern = "**/*" if recursive else "*"
            for inner in sorted(item for item in path.glob(pattern) if item.suffix in _SUFFIXES and item.is_file()):
                yield from parse(inner.read_bytes(), str(inner))
        else:
            yield from parse(path.read_bytes(), file)
    except OSError as error:
        raise CliError(f"{error.filename or file}: {error.strerror}; name an existing file, a folder or -") from error


def parse(data: bytes, source: str) -> Iterator[Manifest]:
    """The objects of one file's bytes. Raises CliError naming line and cause."""
    documents = [document for document in _documents(data, source) if document is not None]
    for number, document in enumerate(documents, 1):
        where = f"{source}: document {number}" if len(documents) > 1 else source
        if isinstance(document, list):
            raise CliError(f"{where}: a list is no object; separate documents by `---`, or use kind: List")
        yield from _objects(document, where)


def _documents(data: bytes, source: str) -> list[Any]:
    if data.lstrip()[:1] == b"{":
        import msgspec

        try:
            return [msgspec.json.decode(data)]
        except (msgspec.DecodeError, UnicodeDecodeError):
            # Braces are YAML too, and its parser tells the line.
            pass
    import yaml

    try:
        return yamlio.load_documents(data)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        raise CliError(f"{source}:{where} {error.problem or error.context}; correct the YAML there") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CliError(f"{source}: is not YAML: {error}") from error
    except RecursionError as error:
        raise CliError(f"{source}: is nested too deeply") from error


def _objects(document: Any, where: str) -> Iterator[Manifest]:
    if not isinstance(document, dict):
        raise CliError(f"{where}: expected an object with apiVersion and kind, got {type(document).__name__}")
    for key in ("apiVersion", "kind"):
        if not isinstance(document.get(key), str) or not document[key]:
            raise CliError(f"{where}: {key} not set; every object names its apiVersion and kind")
    if document["kind"].endswith("List") and isinstance(document.get("items"), list):
        for index, item in enumerate(document["items"]):
            yield from _objects(item, f"{where}: items[{index}]")
        return
    try:
        kind = KINDS.of(document)
    except NotFound as error:
        raise CliError(f"{where}: {error.message}; `kernelet api-resources` lists what there is") from error
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or not (metadata.get("name") or metadata.get("generateName")):
        raise CliError(f"{where}: metadata.name not set; name the {kind.singular}")
    if not isinstance(metadata.get("name") or "", str):
        raise CliError(f"{where}: metadata.name must be text; quote it")
    yield Manifest(kind, _plain(document), where)


def _plain(value: Any) -> Any:
    """JSON of what YAML gives: keys as texts."""
    if isinstance(value, dict):
        return {_key(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _key(key: Any) -> str:
    if isinstance(key, bool):
        return "true" if key else "false"
    return str(key)
