"""Waiting for what other processes bring about."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


async def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> float:
    """Seconds until the condition held. Raises AssertionError when it does not in time."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not so within {seconds} s"
        await asyncio.sleep(0.01)
    return time.monotonic() - started
