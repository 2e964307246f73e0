"""Python's garbage collector, kept from looking at what is known not to be garbage."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """No cyclic garbage collection during the block.

    Making a large table allocates hundreds of thousands of tuples in a row, and the collector goes through all that
    live again and again meanwhile: a tenth of a cold start, for nothing.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
