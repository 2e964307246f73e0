"""Real traffic for the demo: single requests from anywhere, and a steady load from the client pod."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from kernelet.core.client.client import Client

NAMESPACE, CLIENT_POD = "shop", "client"
PYTHON = "/usr/bin/python3.11"
THREADS, PAUSE = 6, 0.02
"""Of the steady load: about 200 requests a second."""


class TrafficError(Exception):
    """A request could not even be made; the message holds what the sender printed."""


async def in_pod(client: Client, command: list[str]) -> tuple[int, str]:
    """Exit code and output of a command in the client pod."""
    output: list[bytes] = []
    code = -1
    async for frame in client.raw.exec(NAMESPACE, CLIENT_POD, command):
        output += [part for part in (frame.stdout, frame.stderr) if part]
        code = code if frame.exit_code is None else frame.exit_code
    return code, b"".join(output).decode()


async def get_from_pod(client: Client, url: str) -> dict[str, Any]:
    """One GET from the client pod; {"error": ...} where no answer came."""
    _, output = await in_pod(client, [PYTHON, "/srv/get.py", url])
    return _parse(output)


async def get_from_netns(netns: str, url: str) -> dict[str, Any]:
    """One GET from a process in a network namespace: a node, or a host beside the nodes."""
    with resources.as_file(resources.files("kernelet.agents.demo").joinpath("app", "get.py")) as script:
        process = await asyncio.create_subprocess_exec(
            "nsenter", f"--net={netns}", "--", sys.executable, str(script), url, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await asyncio.wait_for(process.communicate(), 30)
    return _parse(output.decode())


def _parse(output: str) -> dict[str, Any]:
    try:
        parsed: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError) as error:
        raise TrafficError(f"the sender printed no answer: {output!r}") from error
    return parsed


@dataclass(slots=True)
class Load:
    """The report of a finished load."""

    sent: int = 0
    failed: int = 0
    longest_gap: float = 0.0
    answers: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


@asynccontextmanager
async def steady_load(client: Client, host: str, port: int) -> AsyncIterator[Load]:
    """Keeps the client pod sending while the block runs; the yielded report is filled in at its end."""
    report = Load()
    stop = asyncio.Event()
    sending = asyncio.Event()
    task = asyncio.create_task(_run_load(client, host, port, stop, sending, report))
    waiting = asyncio.create_task(sending.wait())
    try:
        await asyncio.wait((task, waiting), timeout=30, return_when=asyncio.FIRST_COMPLETED)
        if not sending.is_set():
            await task
            raise TrafficError("the load did not start")
        yield report
        stop.set()
        await asyncio.wait_for(task, 30)
    finally:
        for unfinished in (task, waiting):
            unfinished.cancel()
        await asyncio.gather(task, waiting, return_exceptions=True)


async def _run_load(
    client: Client, host: str, port: int, stop: asyncio.Event, sending: asyncio.Event, report: Load
) -> None:
    async def until_stopped() -> AsyncIterator[bytes]:
        await stop.wait()
        return
        yield b""  # makes this a generator: the load only waits for the end of its input

    command = [PYTHON, "/srv/load.py", host, str(port), str(THREADS), str(PAUSE)]
    output = b""
    async for frame in client.raw.exec(NAMESPACE, CLIENT_POD, command, stdin=until_stopped()):
        output += (frame.stdout or b"") + (frame.stderr or b"")
        if b"sending\n" in output:
            sending.set()
    for name, value in _parse(output.decode()).items():
        setattr(report, name, value)
