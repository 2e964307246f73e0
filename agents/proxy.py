"""The service proxy's agent: hands versions of the route table to an engine, keeps the kernel equal to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from kernelet.dataplane.proxy import create_engine
from kernelet.dataplane.proxy.engine import Engine, EngineConfig, EngineError
from kernelet.dataplane.routes import Delta, RouteTable

log = logging.getLogger(__name__)

T = TypeVar("T")


class ProxyAgent:
    """Owns one engine and the one thread that calls it."""

    def __init__(self, engine_name: str, config: EngineConfig) -> None:
        self._engine: Engine = create_engine(engine_name, config)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    async def start(self) -> None:
        """Makes the kernel ready, keeping the routes it holds. Raises EngineError."""
        await self._call(self._engine.start)

    async def apply(self, delta: Delta, table: RouteTable) -> None:
        """Raises EngineError when the kernel does not hold the delta's version."""
        await self._call(lambda: self._engine.apply(delta))

    async def watch(self) -> None:
        """Repairs what others change in the kernel, until cancelled."""
        changed = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._engine.watch_foreign_changes(changed.set))
            while True:
                await changed.wait()
                changed.clear()
                try:
                    count = await self._call(self._engine.repair)
                except EngineError as error:
                    log.warning("routes not repaired, next try with the next change: %s", error)
                    continue
                if count:
                    log.warning("repaired the routes elements=%d", count)

    async def close(self) -> None:
        """Releases the engine; the kernel keeps its routes."""
        await self._call(self._engine.close)
        self._thread.shutdown()

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
