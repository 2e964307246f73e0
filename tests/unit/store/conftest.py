"""Both stores, each empty: SQLite in the test's folder, etcd under the test's prefix on one server per session."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from store_etcd_server import EtcdServer

from kernelet.core.store import Store, open_store


@pytest.fixture(scope="session")
def start_etcd() -> Iterator[Callable[[], EtcdServer]]:
    """Starts servers; all are gone after the session."""
    servers: list[EtcdServer] = []

    def start() -> EtcdServer:
        if shutil.which("etcd") is None:
            pytest.skip("etcd is missing: apt-get install etcd-server")
        server = EtcdServer(Path(tempfile.mkdtemp(prefix="kl-test-etcd-")))
        servers.append(server)
        server.start()
        return server

    try:
        yield start
    finally:
        for server in servers:
            server.kill()
            shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def etcd(start_etcd: Callable[[], EtcdServer]) -> EtcdServer:
    return start_etcd()


@pytest.fixture(params=["sqlite", "etcd"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store."""
    if request.param == "sqlite":
        return f"sqlite://{tmp_path}/store.db"
    server: EtcdServer = request.getfixturevalue("etcd")
    return server.url()


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    opened = await open_store(url)
    try:
        yield opened
    finally:
        await opened.close()
