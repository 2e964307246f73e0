"""Request bodies: size, depth and media type are checked before anything else looks at them."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from kernelet.core.api import codec
from kernelet.core.api.errors import JSON, BadRequest, RequestTooLarge, UnsupportedMediaType

from . import protobuf

MAX_BODY = 3 * 1024 * 1024
"""Bytes of a body, after decompression; the same as Kubernetes'."""
MAX_DEPTH = 200
MAX_NODES = 500_000
"""Values in one document, aliases of YAML counted as often as they are used."""
MAX_SECONDS = 60.0
"""How long a client may take to send its body."""

_JSON_TYPES = ("application/json", "")
_YAML_TYPES = ("application/yaml", "application/x-yaml", "text/yaml")


async def read_bytes(request: web.Request) -> bytes:
    """The body. Raises RequestTooLarge, or BadRequest when it does not arrive in time or whole."""
    too_large = f"Request entity too large: limit is {MAX_BODY} bytes"
    if request.content_length is not None and request.content_length > MAX_BODY:
        raise RequestTooLarge(too_large)
    try:
        async with asyncio.timeout(MAX_SECONDS):
            return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise RequestTooLarge(too_large) from error
    except TimeoutError as error:
        raise BadRequest(f"the request body did not arrive within {MAX_SECONDS:.0f} seconds") from error


async def read_object(request: web.Request) -> JSON:
    """A JSON or YAML object. Raises BadRequest, RequestTooLarge, UnsupportedMediaType."""
    data = await read_bytes(request)
    if not data:
        raise BadRequest("the request has no body; an object is expected")
    return await parse_object(data, media_type(request))


async def read_optional_object(request: web.Request) -> JSON:
    """As read_object, but {} when there is no body: DELETE may do without."""
    data = await read_bytes(request)
    return await parse_object(data, media_type(request)) if data else {}


async def parse_object(data: bytes, media: str) -> JSON:
    """Raises BadRequest for what is no object or too deep, UnsupportedMediaType for another media type."""
    if media in _JSON_TYPES:
        value = codec.decode(data)
        # Deep nesting needs many brackets, so ordinary bodies skip the walk.
        if data.count(b"{") + data.count(b"[") > MAX_DEPTH:
            check_shape(value)
        return value
    if media in _YAML_TYPES:
        return await asyncio.to_thread(_parse_yaml, data)
    if media == protobuf.MEDIA_TYPE:
        return protobuf.decode(data)
    raise UnsupportedMediaType(
        f"the body of the request was in an unknown format - accepted media types include: "
        f"application/json, application/yaml, {protobuf.MEDIA_TYPE}; got {media}"
    )


def media_type(request: web.Request) -> str:
    """The Content-Type without parameters, lower case; "" when there is none."""
    return request.headers.get("Content-Type", "").partition(";")[0].strip().lower()


def check_shape(value: object) -> None:
    """Raises BadRequest where a document is nested too deeply or holds too many values."""
    level: list[Any] = [value]
    nodes = depth = 0
    while level:
        nodes += len(level)
        depth += 1
        if depth > MAX_DEPTH:
            raise BadRequest(f"the object is nested deeper than {MAX_DEPTH} levels")
        if nodes > MAX_NODES:
            raise BadRequest(f"the object holds more than {MAX_NODES} values")
        following: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                following.extend(item.values())
            elif isinstance(item, list):
                following.extend(item)
            if len(following) > MAX_NODES:
                raise BadRequest(f"the object holds more than {MAX_NODES} values")
        level = following


def _parse_yaml(data: bytes) -> JSON:
    import yaml

    try:
        value = yaml.load(data, Loader=_yaml_loader())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadRequest(f"the object provided is unrecognized: {error}") from error
    check_shape(value)
    try:
        return codec.decode(codec.encode(value))
    except TypeError as error:
        raise BadRequest(f"the object provided is unrecognized: {error}") from error


def _yaml_loader() -> Any:
    """PyYAML's C loader, which leaves dates as the text they are."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # base chosen at run time
        pass

    timestamp = "tag:yaml.org,2002:timestamp"
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != timestamp]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return Loader
