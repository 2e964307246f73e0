"""/version, /livez, /readyz, /healthz, /metrics, /cacerts."""

from __future__ import annotations

import platform

from aiohttp import web

from kernelet.core.api import codec
from kernelet.core.api.errors import NotFound

from .answers import answer
from .context import SERVER_VERSION, Call, Face

OPEN_PATHS = frozenset({"/version", "/cacerts"})
"""Answered without credentials, besides the health paths: a joining host pins the CA before it has any."""
_HEALTH = ("livez", "readyz", "healthz")


def is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.split("/")[1] in _HEALTH


async def version(request: web.Request) -> web.StreamResponse:
    major, minor = SERVER_VERSION.removeprefix("v").split(".")[:2]
    body = {
        "major": major,
        "minor": minor,
        "gitVersion": SERVER_VERSION,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": platform.python_implementation(),
        "platform": f"{platform.system().lower()}/{_machine()}",
    }
    return await answer(request, codec.encode(body))


async def health(face: Face, request: web.Request) -> web.StreamResponse:
    """`ok`, or 500 and the list of checks; ?verbose shows the list always. Raises NotFound for an unknown check."""
    which, _, single = request.path.strip("/").partition("/")
    checks = {"ping": True}
    if which != "livez":
        checks["registry"] = face.registry.ready()
    if single:
        if single not in checks:
            raise NotFound(f"{which} has no check {single!r}; it has {', '.join(checks)}")
        checks = {single: checks[single]}
    good = all(checks.values())
    lines = [
        f"[+]{name} ok" if fine else f"[-]{name} failed: the watch cache does not follow the store yet"
        for name, fine in checks.items()
    ]
    lines.append(f"{which} check {'passed' if good else 'failed'}")
    text = "ok" if good and "verbose" not in request.query else "\n".join(lines) + "\n"
    return web.Response(text=text, status=200 if good else 500, headers={"X-Content-Type-Options": "nosniff"})


async def ca_certificate(face: Face, request: web.Request) -> web.StreamResponse:
    return web.Response(body=face.ca_pem, headers={"Content-Type": "application/x-pem-file"})


async def metrics(call: Call) -> web.StreamResponse:
    body = call.face.metrics.text()
    return await answer(call.http, body, content_type="text/plain; version=0.0.4; charset=utf-8")


def _machine() -> str:
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
