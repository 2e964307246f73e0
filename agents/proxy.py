"""The service proxy's agent: hands versions of the route table to an engine, keeps the kernel equal to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from kernelet.dataplane.proxy import create_engine, make_way
from kernelet.dataplane.proxy.engine import Engine, EngineConfig, EngineError
from kernelet.dataplane.repair import keep_repaired
from kernelet.dataplane.routes import Delta, RouteTable

log = logging.getLogger(__name__)

T = TypeVar("T")


class ProxyAgent:
    """Owns one engine and the one thread that calls it."""

    def __init__(self, engine_name: str, config: EngineConfig) -> None:
        self._engine: Engine = create_engine(engine_name, config)
        self._config = config
        self._alone = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._applied = asyncio.Event()

    async def start(self) -> None:
        """Makes the kernel ready, keeping the routes it holds. Raises EngineError."""
        await self._call(self._engine.start)

    async def apply(self, delta: Delta, table: RouteTable) -> None:
        """Raises EngineError when the kernel does not hold the delta's version."""
        await self._call(lambda: self._engine.apply(delta))
        if not self._alone:
            await self._call(lambda: make_way(self._engine.name, self._config))
            self._alone = True
        self._applied.set()

    async def watch(self) -> None:
        """Repairs what others change in the kernel, until cancelled.

        What cannot be repaired is tried again with the next change, and after a growing pause without one.
        """
        changed = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._engine.watch_foreign_changes(changed.set), name="foreign changes")
            tasks.create_task(self._keep_tidy(), name="tidy")
            await keep_repaired("the routes", changed, lambda: self._call(self._engine.repair), EngineError)

    async def _keep_tidy(self) -> None:
        """After the acknowledgement, and once for all versions that came meanwhile."""
        while True:
            await self._applied.wait()
            self._applied.clear()
            await self._call(self._engine.tidy)

    async def close(self) -> None:
        """Releases the engine; the kernel keeps its routes."""
        try:
            await self._call(self._engine.close)
        finally:
            self._thread.shutdown(wait=False)

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
