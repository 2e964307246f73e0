"""HTTP answers: JSON or YAML bodies, Status errors, warnings, ETags, compression of large bodies."""

from __future__ import annotations

import asyncio
import hashlib
import zlib

from aiohttp import web

from kernelet.core.api import codec
from kernelet.core.api.errors import JSON, ApiError

from .negotiate import NotAcceptable, negotiate

GZIP_FROM = 128 * 1024
"""Bytes from which a body is compressed when the client takes gzip; the same as Kubernetes'."""
JSON_TYPE = "application/json"


async def answer(
    request: web.Request,
    body: bytes,
    status: int = 200,
    *,
    warnings: list[str] | None = None,
    headers: dict[str, str] | None = None,
    content_type: str = JSON_TYPE,
) -> web.Response:
    """A whole body, as YAML where Accept prefers that to JSON."""
    sent = {"Content-Type": content_type, "Cache-Control": "no-cache, private", **(headers or {})}
    if content_type == JSON_TYPE and _wants_yaml(request):
        body = await asyncio.to_thread(_to_yaml, body)
        sent["Content-Type"] = "application/yaml"
    if len(body) >= GZIP_FROM and "gzip" in request.headers.get("Accept-Encoding", ""):
        body = await asyncio.to_thread(_gzip, body)
        sent |= {"Content-Encoding": "gzip", "Vary": ", ".join(filter(None, (sent.get("Vary"), "Accept-Encoding")))}
    response = web.Response(body=body, status=status, headers=sent)
    for text in warnings or []:
        response.headers.add("Warning", f"299 - {quoted(text)}")
    return response


async def tagged(request: web.Request, body: bytes, content_type: str = JSON_TYPE) -> web.Response:
    """A document that seldom changes: with an ETag, and 304 when the client has it (RFC 9110, 13.1.2)."""
    etag = hashlib.sha256(body + content_type.encode()).hexdigest()[:32].upper()
    headers = {"ETag": f'"{etag}"', "Vary": "Accept", "Cache-Control": "public"}
    if etag in request.headers.get("If-None-Match", ""):
        return web.Response(status=304, headers=headers)
    return await answer(request, body, headers=headers, content_type=content_type)


def failure(error: ApiError) -> web.Response:
    """A Status, always JSON."""
    headers = {"Content-Type": JSON_TYPE, "Cache-Control": "no-cache, private"}
    if error.retry_after:
        headers["Retry-After"] = str(error.retry_after)
    return web.Response(body=codec.encode(error.to_status()), status=error.code, headers=headers)


def success(resource: str = "", group: str = "", name: str = "", uid: str = "") -> JSON:
    """The Status of something done that has no object to show."""
    details = {"name": name, "group": group, "kind": resource, "uid": uid}
    status: JSON = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
    return status | {"details": {key: value for key, value in details.items() if value}}


def quoted(text: str) -> str:
    """An HTTP quoted-string (RFC 9110, 5.6.4); what a header cannot carry becomes a space or `?`."""
    clean = "".join(char if char.isprintable() else " " for char in text).encode("latin-1", "replace").decode("latin-1")
    return '"' + clean.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _wants_yaml(request: web.Request) -> bool:
    accept = request.headers.get("Accept", "")
    if "yaml" not in accept:
        return False
    try:
        return negotiate(accept).yaml
    except NotAcceptable:
        return False


def _to_yaml(body: bytes) -> bytes:
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return yaml.dump(codec.decode(body), Dumper=dumper, sort_keys=True, allow_unicode=True, encoding="utf-8")


def _gzip(body: bytes) -> bytes:
    packer = zlib.compressobj(level=1, wbits=31)
    return packer.compress(body) + packer.flush()
