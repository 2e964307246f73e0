"""Discovery: which groups, versions and resources there are, in the legacy and in the aggregated form (KEP-3352)."""

from __future__ import annotations

from aiohttp import web

from kernelet.core.api import codec, discovery
from kernelet.core.api.errors import NotFound

from .answers import tagged
from .context import Call
from .negotiate import DISCOVERY_GROUP, Form


async def groups(call: Call, path: str) -> web.StreamResponse:
    """/api, /apis and /apis/{group}. Raises NotFound for an unknown group."""
    if path not in ("/api", "/apis"):
        return await _group(call, path.removeprefix("/apis/"))
    core = path == "/api"
    form = call.negotiate(Form.DISCOVERY_V2, Form.DISCOVERY_V2BETA1)
    if form is Form.PLAIN:
        document = discovery.api_versions(call.http.host) if core else discovery.api_group_list(call.face.kinds)
        return await tagged(call.http, codec.encode(document))
    document = discovery.aggregated(call.face.kinds, core=core, version=form.value)
    media = f"application/json;g={DISCOVERY_GROUP};v={form.value};as=APIGroupDiscoveryList"
    return await tagged(call.http, codec.encode(document), media)


async def resources(call: Call, group: str, version: str) -> web.StreamResponse:
    """/api/v1 and /apis/{group}/{version}. Raises NotFound."""
    document = discovery.api_resource_list(call.face.kinds, group, version)
    if not document.get("resources"):
        raise NotFound("the server could not find the requested resource", group=group)
    return await tagged(call.http, codec.encode(document))


async def _group(call: Call, group: str) -> web.StreamResponse:
    versions = discovery.groups(call.face.kinds).get(group) if group else None
    if not versions:
        raise NotFound("the server could not find the requested resource", group=group)
    return await tagged(call.http, codec.encode(discovery.api_group(group, versions)))
