"""Keeping the kernel as it is wanted: one loop for everything that repairs what others change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Never

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0


async def keep_repaired(
    what: str, changed: asyncio.Event, repair: Callable[[], Awaitable[int]], failure: type[Exception]
) -> Never:
    """Calls `repair` whenever `changed` is set, until cancelled.

    `repair` returns how many things it mended. What raises `failure` is tried again with the next change, and after a
    growing pause without one; anything else ends the loop.
    """
    pause: float | None = None
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await changed.wait()
        # Cleared first: what happens during the repair is looked at again, a burst only once.
        changed.clear()
        try:
            count = await repair()
        except failure as error:
            log.warning("%s not repaired, it is tried again: %s", what, error)
            pause = FIRST_PAUSE if pause is None else min(pause * 2, LONGEST_PAUSE)
            continue
        pause = None
        if count:
            log.warning("repaired %s changes=%d", what, count)
