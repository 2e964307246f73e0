"""Fixtures for all tests."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest
from lightkube.models.core_v1 import Namespace
from lightkube.models.meta_v1 import ObjectMeta
from support.apiserver import ApiServer

from kernelet.core.client.client import Client
from kernelet.core.client.config import ClientConfig

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def shared_api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """One API server for all tests that leave it running; work in `namespace`."""
    with ApiServer(tmp_path_factory.mktemp("apiserver")) as server:
        yield server


@pytest.fixture
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server for this test alone, which may kill and restart it."""
    with ApiServer(tmp_path_factory.mktemp("own-apiserver")) as server:
        yield server


@pytest.fixture
def client_config(shared_api_server: ApiServer) -> ClientConfig:
    return shared_api_server.config()


@pytest.fixture
async def client(client_config: ClientConfig) -> AsyncIterator[Client]:
    """The administrator, at the shared API server."""
    async with Client(client_config) as found:
        yield found


@pytest.fixture
async def namespace(client: Client) -> str:
    """A new namespace at the shared API server."""
    name = f"test-{next(_numbers)}"
    await client.create(Namespace(metadata=ObjectMeta(name=name)))
    return name
