"""The terminal of `exec`: raw mode, its size, and what is typed, as an asynchronous stream."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kernelet.core.client.raw import TerminalSize

_PIECE = 32 * 1024


@contextmanager
def raw_mode(enabled: bool) -> Iterator[None]:
    """Every key goes to the command, Ctrl-C too; the terminal is put back whatever happens."""
    if not enabled:
        yield
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


async def typed(*, stdin: bool, tty: bool) -> AsyncGenerator[bytes | TerminalSize, None]:
    """Bytes of stdin until its end (`stdin`) and the terminal's sizes, the present one first (`tty`)."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=16)
    sizes = asyncio.Event()
    if tty:
        loop.add_signal_handler(signal.SIGWINCH, sizes.set)
        sizes.set()
    if stdin:
        # A thread, since stdin may be a file, which no selector can wait for; a daemon, since a read cannot be ended.
        threading.Thread(target=_read, args=(loop, pieces), name="stdin", daemon=True).start()
    try:
        async for item in _merged(pieces, sizes, stdin=stdin, tty=tty):
            yield item
    finally:
        if tty:
            loop.remove_signal_handler(signal.SIGWINCH)


async def _merged(
    pieces: asyncio.Queue[bytes | None], sizes: asyncio.Event, *, stdin: bool, tty: bool
) -> AsyncGenerator[bytes | TerminalSize, None]:
    from kernelet.core.client.raw import TerminalSize

    waits: dict[str, asyncio.Task[object]] = {}
    try:
        while stdin or tty:
            if stdin and "piece" not in waits:
                waits["piece"] = asyncio.create_task(pieces.get())
            if tty and "size" not in waits:
                waits["size"] = asyncio.create_task(sizes.wait())
            await asyncio.wait(waits.values(), return_when=asyncio.FIRST_COMPLETED)
            if "size" in waits and waits["size"].done():
                del waits["size"]
                sizes.clear()
                size = shutil.get_terminal_size()
                yield TerminalSize(size.columns, size.lines)
            if "piece" in waits and waits["piece"].done():
                piece = waits.pop("piece").result()
                if not isinstance(piece, bytes):
                    return
                yield piece
    finally:
        for task in waits.values():
            task.cancel()


def _read(loop: asyncio.AbstractEventLoop, pieces: asyncio.Queue[bytes | None]) -> None:
    """Hands stdin over, as fast as it is taken; ends with it, or with the loop."""
    while True:
        try:
            piece = os.read(sys.stdin.fileno(), _PIECE)
        except OSError:
            piece = b""
        try:
            asyncio.run_coroutine_threadsafe(pieces.put(piece or None), loop).result()
        except (RuntimeError, asyncio.CancelledError):
            return
        if not piece:
            return
