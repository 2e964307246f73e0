"""The verbs on collections and objects: HTTP in, registry calls, HTTP out."""

from __future__ import annotations

from aiohttp import web

from kernelet.core.api import codec
from kernelet.core.api.errors import JSON, BadRequest, UnsupportedMediaType

from ..requests import Ref, Written
from .answers import answer
from .bodies import check_shape, media_type, parse_object, read_bytes, read_object, read_optional_object
from .context import Call
from .forms import check_include_object, render_list, render_object
from .negotiate import Form
from .options import delete_options, list_options, write_options

PATCH_TYPES = (
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
)


async def get(call: Call, ref: Ref) -> web.StreamResponse:
    form = call.negotiate(Form.TABLE, Form.PARTIAL)
    include = check_include_object(call.query("includeObject"))
    wire = await call.face.registry.get(call.user, ref)
    return await answer(call.http, render_object(ref.kind, form, wire, include))


async def list_(call: Call, ref: Ref) -> web.StreamResponse:
    form = call.negotiate(Form.TABLE, Form.PARTIAL_LIST)
    include = check_include_object(call.query("includeObject"))
    listing = await call.face.registry.list(call.user, ref, list_options(call))
    return await answer(call.http, render_list(ref.kind, form, listing, include))


async def create(call: Call, ref: Ref) -> web.StreamResponse:
    form = call.negotiate(Form.TABLE, Form.PARTIAL)
    body = await read_object(call.http)
    options = write_options(call)
    return await _written(call, ref, form, await call.face.registry.create(call.user, ref, body, options), 201)


async def update(call: Call, ref: Ref) -> web.StreamResponse:
    form = call.negotiate(Form.TABLE, Form.PARTIAL)
    body = await read_object(call.http)
    options = write_options(call)
    return await _written(call, ref, form, await call.face.registry.update(call.user, ref, body, options), 200)


async def patch(call: Call, ref: Ref) -> web.StreamResponse:
    form = call.negotiate(Form.TABLE, Form.PARTIAL)
    kind = media_type(call.http)
    if kind not in PATCH_TYPES:
        what = (
            "server-side apply is not supported yet"
            if "apply-patch" in kind
            else f"{kind or 'no media type'} is no patch"
        )
        raise UnsupportedMediaType(
            f"the body of the request was in an unknown format: {what} - "
            f"accepted media types include: {', '.join(PATCH_TYPES)}"
        )
    data = await read_bytes(call.http)
    if data.count(b"{") + data.count(b"[") > 100:
        check_shape(codec.decode(b'{"patch":%b}' % data))
    options = write_options(call)
    written = await call.face.registry.patch(call.user, ref, kind, data, options)
    return await _written(call, ref, form, written, 200)


async def delete(call: Call, ref: Ref) -> web.StreamResponse:
    form = call.negotiate(Form.TABLE, Form.PARTIAL)
    options = delete_options(call, await _delete_body(call))
    wire = await call.face.registry.delete(call.user, ref, options)
    plain = form is Form.PLAIN or b'"kind":"Status"' in wire
    return await answer(call.http, wire if plain else render_object(ref.kind, form, wire))


async def delete_collection(call: Call, ref: Ref) -> web.StreamResponse:
    form = call.negotiate(Form.TABLE, Form.PARTIAL_LIST)
    options = delete_options(call, await _delete_body(call))
    listing = await call.face.registry.delete_collection(call.user, ref, list_options(call), options)
    return await answer(call.http, render_list(ref.kind, form, listing))


async def subresource_object(call: Call) -> JSON:
    """The body of a subresource such as Binding, Eviction or Scale. Raises BadRequest."""
    data = await read_bytes(call.http)
    if not data:
        raise BadRequest("the request has no body; an object is expected")
    return await parse_object(data, media_type(call.http))


async def _delete_body(call: Call) -> JSON:
    body = await read_optional_object(call.http)
    if body.get("kind", "DeleteOptions") != "DeleteOptions":
        raise BadRequest(f"the body of a DELETE must be DeleteOptions, not {body.get('kind')}")
    return body


async def _written(call: Call, ref: Ref, form: Form, written: Written, status: int) -> web.StreamResponse:
    body = render_object(ref.kind, form, written.json)
    return await answer(call.http, body, 201 if written.created else status, warnings=written.warnings)
