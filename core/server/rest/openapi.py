"""OpenAPI v3 documents (KEP-2896), one a group and version, made from the lightkube models.

kubectl reads them for `explain`, to learn which lists merge by key, and to learn that the server validates fields:
it looks for an operation that carries the kind and takes the query parameter `fieldValidation`. A document is made on
first use, in a thread, and kept; the hash in the index needs no document, since models change with the version only.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import re
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from kernelet.core.api import codec
from kernelet.core.api.errors import JSON, NotFound
from kernelet.core.api.kinds import Kind, KindTable
from kernelet.core.api.mergekeys import STRUCTS

from .objects import PATCH_TYPES

_REF = "#/components/schemas/"
_PARAMETER = re.compile(r"^      \* \*\*(?P<name>[^*]+)\*\* ``.*?`` ?-? ?(?P<text>.*)$")
V2_PROTOBUF = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
"""As an answer; clients ask with `v2@v1.0`, which is no media type that can be parsed."""
_GVK = "x-kubernetes-group-version-kind"
_QUERY = {
    "list": ("labelSelector", "fieldSelector", "limit", "continue", "resourceVersion", "watch", "timeoutSeconds"),
    "write": ("dryRun", "fieldManager", "fieldValidation", "pretty"),
    "delete": ("dryRun", "gracePeriodSeconds", "propagationPolicy"),
    "get": ("pretty",),
}


class OpenApi:
    """The documents of a table of kinds."""

    def __init__(self, kinds: KindTable, server_version: str) -> None:
        self._kinds = kinds
        self._version = server_version
        self._documents: dict[str, asyncio.Task[bytes]] = {}

    def index(self) -> bytes:
        """`GET /openapi/v3`."""
        groups = dict.fromkeys(_path_of(kind) for kind in self._kinds)
        paths = {path: {"serverRelativeURL": f"/openapi/v3/{path}?hash={self._hash(path)}"} for path in groups}
        return codec.encode({"paths": paths})

    def v2(self, *, protobuf: bool) -> bytes:
        """`GET /openapi/v2`."""
        return build_v2(self._version, protobuf=protobuf)

    async def document(self, path: str) -> bytes:
        """`GET /openapi/v3/<path>`, path such as `api/v1` or `apis/apps/v1`. Raises NotFound."""
        kinds = [kind for kind in self._kinds if _path_of(kind) == path]
        if not kinds:
            raise NotFound(f"no OpenAPI document for {path!r}")
        task = self._documents.get(path)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            build = asyncio.to_thread(build_document, kinds, path, self._version)
            task = self._documents[path] = asyncio.create_task(build, name=f"openapi {path}")
        # Shielded: others may wait for the same document after this client has gone.
        return await asyncio.shield(task)

    def _hash(self, path: str) -> str:
        rows = [repr(kind) for kind in self._kinds if _path_of(kind) == path]
        seed = "\n".join([self._version, version("lightkube-models"), *rows])
        return hashlib.sha256(seed.encode()).hexdigest().upper()


def build_v2(server_version: str, *, protobuf: bool) -> bytes:
    """`GET /openapi/v2`: a document without definitions, as protobuf (gnostic's openapi_v2.Document) or as JSON.

    kubectl asks for it before it sends the items of a v1 List, which is no kind of the server's and so in no v3
    document; a kind that this one does not define it leaves to the server to check.
    """
    if not protobuf:
        info = {"title": "Kubernetes", "version": server_version}
        return codec.encode({"swagger": "2.0", "info": info, "paths": {}})
    info_fields = _field(1, b"Kubernetes") + _field(2, server_version.encode())
    return _field(1, b"2.0") + _field(2, info_fields) + _field(8, b"")


def _field(number: int, value: bytes) -> bytes:
    """A length-delimited protobuf field of less than 128 bytes."""
    return bytes([number << 3 | 2, len(value)]) + value


def build_document(kinds: list[Kind], path: str, server_version: str) -> bytes:
    """One document, as JSON. Takes some tens of milliseconds."""
    import msgspec

    models = [kind.model for kind in kinds]
    _, raw = msgspec.json.schema_components(models, ref_template=_REF + "{name}")
    documented = _docstrings(models)
    schemas = {name: _schema(name, schema, documented.get(name, "")) for name, schema in raw.items()}
    for kind in kinds:
        name = kind.model.__name__
        schemas[name][_GVK] = [_gvk(kind)]
        schemas[f"{name}List"] = _list_schema(kind, name)
    # resource.Quantity, meta.Time and the like are plain strings in the models, so they need no schema of their own.
    document = {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": server_version},
        "paths": {url: item for kind in kinds for url, item in _paths(kind, path)},
        "components": {"schemas": schemas},
    }
    return codec.encode(document)


def _path_of(kind: Kind) -> str:
    return f"apis/{kind.api_version}" if kind.group else f"api/{kind.version}"


def _gvk(kind: Kind) -> JSON:
    return {"group": kind.group, "version": kind.version, "kind": kind.kind}


def _docstrings(models: Iterable[type[Any]]) -> dict[str, str]:
    """Docstrings of every model that can be reached, by class name."""
    found: dict[str, str] = {}
    for module in {inspect.getmodule(model) for model in models} | _shared_modules():
        for name, value in vars(module).items():
            if inspect.isclass(value):
                found.setdefault(name, value.__doc__ or "")
    return found


def _shared_modules() -> set[Any]:
    from lightkube.models import core_v1, meta_v1

    return {core_v1, meta_v1}


def _schema(name: str, raw: JSON, docstring: str) -> JSON:
    summary, fields = parse_docstring(docstring)
    properties = {}
    for key, value in (raw.get("properties") or {}).items():
        schema = _property(value)
        if fields.get(key):
            schema["description"] = fields[key]
        strategy = STRUCTS.get(name, {}).get(key)
        if strategy is not None and strategy.patch_strategy:
            schema["x-kubernetes-patch-strategy"] = strategy.patch_strategy
        if strategy is not None and strategy.key:
            schema["x-kubernetes-patch-merge-key"] = strategy.key
        properties[key] = schema
    result: JSON = {"type": raw.get("type", "object")}
    if summary:
        result["description"] = summary
    if properties:
        result["properties"] = properties
    if raw.get("required"):
        result["required"] = raw["required"]
    return result


def _property(raw: Any) -> JSON:
    """A model's schema in the subset Kubernetes uses: no null type, references wrapped to carry a description."""
    if not isinstance(raw, dict):
        return {}
    options = [option for option in raw.get("anyOf", []) if option.get("type") != "null"]
    if len(options) == 1:
        return _property(options[0])
    if options:
        kinds = {option.get("type") for option in options}
        if kinds == {"integer", "string"}:
            return {"type": "string", "format": "int-or-string", "x-kubernetes-int-or-string": True}
        return {"oneOf": [_property(option) for option in options]}
    if "$ref" in raw:
        return {"allOf": [{"$ref": raw["$ref"]}]}
    result = {key: raw[key] for key in ("type", "format", "enum") if key in raw}
    if raw.get("type") == "array":
        result["items"] = _property(raw.get("items", {}))
    if raw.get("type") == "object":
        values = raw.get("additionalProperties")
        # `dict` without types: labels, annotations, selectors and data are all maps of strings in Kubernetes.
        result["additionalProperties"] = (
            _property(values) if isinstance(values, dict) and values else {"type": "string"}
        )
    return result


def parse_docstring(text: str) -> tuple[str, dict[str, str]]:
    """(summary, description of each field) of a lightkube model's docstring."""
    summary, _, rest = text.partition("**parameters**")
    fields: dict[str, str] = {}
    current = ""
    for line in rest.splitlines():
        match = _PARAMETER.match(line)
        if match:
            current = match["name"]
            fields[current] = match["text"].strip()
        elif current and line.strip():
            fields[current] = f"{fields[current]} {line.strip()}".strip()
    return " ".join(summary.split()), fields


def _list_schema(kind: Kind, name: str) -> JSON:
    string = {"type": "string"}
    return {
        "type": "object",
        "description": f"{kind.kind}List is a list of {kind.kind}.",
        "properties": {
            "apiVersion": string,
            "kind": string,
            "metadata": {"type": "object", "description": "Standard list metadata."},
            "items": {"type": "array", "items": {"allOf": [{"$ref": _REF + name}]}},
        },
        "required": ["items"],
        _GVK: [_gvk(kind) | {"kind": f"{kind.kind}List"}],
    }


def _paths(kind: Kind, path: str) -> Iterable[tuple[str, JSON]]:
    root = f"/{path}/namespaces/{{namespace}}/{kind.plural}" if kind.namespaced else f"/{path}/{kind.plural}"
    name = kind.model.__name__
    yield root, _path_item(kind, {
        "get": _operation(kind, "list", f"{name}List"),
        "post": _operation(kind, "write", name, body=["application/json", "application/yaml"]),
        "delete": _operation(kind, "delete", "", action="deletecollection"),
    }, named=False)  # fmt: skip
    yield f"{root}/{{name}}", _path_item(kind, {
        "get": _operation(kind, "get", name),
        "put": _operation(kind, "write", name, body=["application/json", "application/yaml"], action="put"),
        "patch": _operation(kind, "write", name, body=list(PATCH_TYPES), action="patch"),
        "delete": _operation(kind, "delete", ""),
    }, named=True)  # fmt: skip
    if kind.namespaced:
        everywhere = {"get": _operation(kind, "list", f"{name}List")}
        yield f"/{path}/{kind.plural}", {**everywhere, "parameters": []}


def _path_item(kind: Kind, operations: JSON, *, named: bool) -> JSON:
    names = ["name"] * named + ["namespace"] * kind.namespaced
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    return {**operations, "parameters": parameters}


def _operation(kind: Kind, what: str, answer: str, *, body: list[str] | None = None, action: str = "") -> JSON:
    schema: JSON = {"$ref": _REF + answer} if answer else {"type": "object"}
    content = {media: {"schema": schema} for media in ("application/json", "application/yaml")}
    operation: JSON = {
        "tags": [kind.group or "core"],
        "parameters": [{"name": key, "in": "query", "schema": {"type": "string"}} for key in _QUERY[what]],
        "responses": {"200": {"description": "OK", "content": content}, "401": {"description": "Unauthorized"}},
        "x-kubernetes-action": action or {"write": "post"}.get(what, what),
        _GVK: _gvk(kind),
    }
    if body:
        patch = {"type": "object"} if action == "patch" else {"$ref": _REF + kind.model.__name__}
        operation["requestBody"] = {"required": True, "content": {media: {"schema": patch} for media in body}}
    return operation
