"""A running `kernelet apiserver` on loopback, shared by the tests of a module."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

START_SECONDS = 20.0
COMMAND = [sys.executable, "-c", "from kernelet.core.server.main import command; command()"]


@dataclass
class Server:
    """A server process and how to reach it."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    seconds_to_ready: float

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "admin.kubeconfig"

    def tls(self, user: str = "admin", ca: Path | None = None) -> ssl.SSLContext:
        """A client's context; `user` "" shows no certificate."""
        pki = self.folder / "pki"
        context = ssl.create_default_context(cafile=str(ca or pki / "ca.crt"))
        if user:
            context.load_cert_chain(pki / f"{user}.crt", pki / f"{user}.key")
        return context


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def arguments(folder: Path, *extra: str) -> list[str]:
    flags = ["--data-dir", str(folder), "--bind", "127.0.0.1", "--port", "0", "--grpc-port", "0", "--token-port", "0"]
    return [*COMMAND, *flags, *extra]


def start(folder: Path, *extra: str) -> Server:
    """Starts a server and waits for its `ready` line."""
    log = folder.parent / f"{folder.name}.log"
    begun = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(arguments(folder, *extra), stderr=file)
    while time.monotonic() - begun < START_SECONDS and process.poll() is None:
        ready = [line for line in log.read_text().splitlines() if " ready https=" in line]
        if ready:
            port = int(ready[0].split(" https=")[1].split()[0].rpartition(":")[2])
            return Server(folder, port, process, log, time.monotonic() - begun)
        time.sleep(0.01)
    stop(process)
    raise AssertionError(f"the API server did not start:\n{log.read_text()}")


def stop(process: subprocess.Popen[bytes]) -> int:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(10)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def running(folder: Path, *extra: str) -> Iterator[Server]:
    """A server that ends with the block, whatever happens in it."""
    found = start(folder, *extra)
    try:
        yield found
    finally:
        stop(found.process)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("apiserver") / "state") as found:
        yield found


@pytest.fixture
async def http(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    """The administrator's HTTP session."""
    connector = aiohttp.TCPConnector(ssl=server.tls())
    async with aiohttp.ClientSession(server.url, connector=connector) as session:
        yield session
