"""Kubernetes' URL grammar: from a path and a method to a verb on a Ref."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

from kernelet.core.api.errors import MethodNotAllowed, NotFound
from kernelet.core.api.kinds import Kind, KindTable

from ..requests import Ref

COLLECTION_VERBS = {"GET": "list", "HEAD": "list", "POST": "create", "DELETE": "deletecollection"}
OBJECT_VERBS = {"GET": "get", "HEAD": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete", "POST": "create"}
_NAMESPACE_SUBRESOURCES = ("status", "finalize")


@dataclass(frozen=True, slots=True)
class Target:
    """What a request is about. `rest` is the path behind a proxy subresource; `watch` is the old /watch/ prefix."""

    ref: Ref
    watch: bool = False
    rest: str = ""


@dataclass(frozen=True, slots=True)
class GroupPath:
    """A path under /api or /apis: parts behind the version are still to be read."""

    group: str
    version: str
    parts: tuple[str, ...]


def split(path: str) -> GroupPath | None:
    """Group, version and the rest of a raw path; None for /api, /apis and /apis/{group}, which are discovery."""
    parts = [unquote(part) for part in path.strip("/").split("/")]
    if parts[0] == "api" and len(parts) >= 2:
        return GroupPath("", parts[1], tuple(parts[2:]))
    if parts[0] == "apis" and len(parts) >= 3:
        return GroupPath(parts[1], parts[2], tuple(parts[3:]))
    return None


def resolve(path: GroupPath, kinds: KindTable) -> Target:
    """The collection, object or subresource a path names. Raises NotFound."""
    parts = list(path.parts)
    watch = bool(parts) and parts[0] == "watch"
    if watch:
        parts = parts[1:]
    namespace = ""
    about_namespace = len(parts) == 3 and parts[2] in _NAMESPACE_SUBRESOURCES and not path.group
    if len(parts) >= 3 and parts[0] == "namespaces" and not about_namespace:
        namespace, parts = parts[1], parts[2:]
        parts = parts if namespace else []
    if not parts or not all(parts[:2]):
        raise NotFound("the server could not find the requested resource")
    plural, name, subresource = (*parts[:3], "", "")[:3]
    kind = kinds.by_plural(path.group, path.version, plural)
    if bool(namespace) != kind.namespaced and (namespace or name):
        raise NotFound(f"the server could not find the requested resource: {_scope(kind)}", resource=plural)
    if subresource and not kind.has(subresource):
        raise NotFound(
            f"the server could not find the requested resource: {plural} have no {subresource}", resource=plural
        )
    rest = "/".join(parts[3:])
    if rest and subresource != "proxy":
        raise NotFound("the server could not find the requested resource", resource=plural)
    return Target(Ref(kind, namespace, name, subresource), watch, rest)


def verb_of(method: str, target: Target, watching: bool) -> str:
    """get, list, watch, create, update, patch, delete or deletecollection. Raises MethodNotAllowed."""
    verbs = OBJECT_VERBS if target.ref.name else COLLECTION_VERBS
    verb = verbs.get(method)
    if verb is None or (verb == "create" and target.ref.name and not target.ref.subresource):
        raise MethodNotAllowed(
            f"the server does not allow {method} on the requested resource", resource=target.ref.kind.plural
        )
    return "watch" if watching and verb in ("get", "list") else verb


def _scope(kind: Kind) -> str:
    return f"{kind.plural} {'live in a namespace' if kind.namespaced else 'are not namespaced'}"
