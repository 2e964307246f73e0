"""A process that uses a store and tells on stdout what was acknowledged; its tests kill it.

`write PATH`: writes for ever, a few tasks at once; prints `key revision` after each acknowledgement.
`full PATH BYTES`: no file may grow beyond BYTES (setrlimit(2), RLIMIT_FSIZE) until writes fail; then it may again.
`open PATH`: opens the store and prints the error.
"""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import sys
from itertools import count

from kernelet.core.store import Store, StoreUnavailable, open_store


async def write(path: str) -> None:
    store = await open_store(f"sqlite://{path}")

    async def writer(number: int) -> None:
        started = await store.revision()
        for step in count():
            item = await store.create(f"/{number}/{started}/{step}", b"x" * 300)
            print(item.key, item.mod_revision, flush=True)
            if step % 100 == 99 and number == 0:
                await store.compact(item.mod_revision)

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(writer(number))


async def fill(store: Store) -> tuple[list[str], list[str]]:
    """Writes until that fails; the keys that were acknowledged, and the errors of the last round."""
    done: list[str] = []
    for step in count():
        keys = [f"/big/{step}/{number}" for number in range(4)]
        results = await asyncio.gather(*(store.create(key, b"x" * 20_000) for key in keys), return_exceptions=True)
        done += [key for key, result in zip(keys, results, strict=True) if not isinstance(result, BaseException)]
        if len(done) < 4 * (step + 1):
            assert all(isinstance(result, StoreUnavailable) for result in results if isinstance(result, BaseException))
            return done, [str(result) for result in results if isinstance(result, BaseException)]
    raise AssertionError("unreachable")


async def full(path: str, limit: str) -> None:
    # Without this the kernel ends the process instead of failing the write.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store = await open_store(f"sqlite://{path}")
    watcher = store.watch("/", 1)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), hard))
    done, errors = await fill(store)
    listed = [item.key for item in (await store.list("/")).items]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    last = await store.create("/after", b"x" * 20_000)
    watched: list[str] = []
    while "/after" not in watched:
        watched += [event.kv.key for event in (await anext(watcher)).events]
    await store.close()
    print(json.dumps({"done": done, "errors": errors, "listed": listed, "watched": watched, "last": last.mod_revision}))


async def only_open(path: str) -> None:
    try:
        await open_store(f"sqlite://{path}")
    except StoreUnavailable as error:
        print(error)


if __name__ == "__main__":
    asyncio.run({"write": write, "full": full, "open": only_open}[sys.argv[1]](*sys.argv[2:]))
