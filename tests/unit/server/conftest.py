"""A registry over a real sqlite store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kernelet.core.server.registry import Registry, RegistryConfig
from kernelet.core.store import Store, open_store

from .helpers import Api


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await open_store(f"sqlite://{tmp_path}/store.db")
    yield opened
    await opened.close()


@pytest.fixture
async def registry(store: Store) -> AsyncIterator[Registry]:
    async with Registry(store, RegistryConfig(advertise_host="10.9.0.1")) as running:
        yield running


@pytest.fixture
def api(registry: Registry) -> Api:
    return Api(registry)
