"""Virtual resources that can only be created: who am I, and what may I do (authentication and authorization groups)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from kernelet.core.api import codec
from kernelet.core.api.errors import JSON, BadRequest, Forbidden, MethodNotAllowed

from .answers import answer
from .bodies import read_object
from .context import Call
from .paths import GroupPath

_AUTHENTICATED = "system:authenticated"
_OPEN_PATHS = ("/version", "/livez", "/readyz", "/healthz", "/api", "/apis", "/openapi")


async def self_subject_review(call: Call) -> JSON:
    """`kubectl auth whoami`."""
    groups = sorted({*call.user.groups, _AUTHENTICATED})
    return {"status": {"userInfo": {"username": call.user.name, "groups": groups}}}


async def self_subject_access_review(call: Call) -> JSON:
    """`kubectl auth can-i`. Raises BadRequest for a body that asks nothing."""
    spec = (await read_object(call.http)).get("spec")
    attributes = spec.get("resourceAttributes") if isinstance(spec, dict) else None
    path = spec.get("nonResourceAttributes") if isinstance(spec, dict) else None
    if isinstance(attributes, dict):
        status = _resource_status(call, attributes)
    elif isinstance(path, dict):
        status = _path_status(call, path)
    else:
        raise BadRequest("SelfSubjectAccessReview: spec.resourceAttributes or spec.nonResourceAttributes is required")
    return {"spec": spec, "status": status}


REVIEWS: dict[tuple[str, str], tuple[str, Callable[[Call], Awaitable[JSON]]]] = {
    ("authentication.k8s.io", "selfsubjectreviews"): ("SelfSubjectReview", self_subject_review),
    ("authorization.k8s.io", "selfsubjectaccessreviews"): ("SelfSubjectAccessReview", self_subject_access_review),
}


def is_review(path: GroupPath) -> bool:
    return path.version == "v1" and len(path.parts) == 1 and (path.group, path.parts[0]) in REVIEWS


async def review(call: Call, path: GroupPath) -> web.StreamResponse:
    """Raises MethodNotAllowed for anything but POST."""
    kind, respond = REVIEWS[path.group, path.parts[0]]
    if call.http.method != "POST":
        raise MethodNotAllowed(
            f"the server does not allow {call.http.method} on {path.parts[0]}: it can only be created"
        )
    body = {"kind": kind, "apiVersion": f"{path.group}/{path.version}", "metadata": {}} | await respond(call)
    return await answer(call.http, codec.encode(body), 201)


def _resource_status(call: Call, attributes: JSON) -> JSON:
    texts = {
        key: str(attributes.get(key) or "") for key in ("verb", "group", "resource", "namespace", "name", "subresource")
    }
    try:
        call.face.authorizer.check(
            call.user, texts["verb"], texts["group"], texts["resource"], texts["namespace"], texts["name"],
            texts["subresource"],
        )  # fmt: skip
    except Forbidden:
        # No reason: `kubectl auth can-i` would print it behind its "no", which scripts compare.
        return {"allowed": False}
    return {"allowed": True}


def _path_status(call: Call, attributes: JSON) -> JSON:
    path, verb = str(attributes.get("path") or ""), str(attributes.get("verb") or "")
    reads = verb.lower() in ("get", "head")
    known = any(path == known or path.startswith(f"{known}/") for known in (*_OPEN_PATHS, "/metrics"))
    return {"allowed": "system:masters" in call.user.groups or (reads and known)}
