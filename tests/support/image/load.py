"""The client of the cluster tests: a steady load on one address, one new connection a request, and one kept open.

    load.py HOST PORT WORKERS PAUSE

`GET /` on port 8081 tells what was sent and what failed since the last `GET /reset`.
"""

import asyncio
import collections
import json
import sys
import time

TIMEOUT = 5.0


class Stats:
    def __init__(self) -> None:
        self.since = time.monotonic()
        self.sent = self.kept_sent = self.reconnects = 0
        self.failures: list[str] = []
        self.kept_failures: list[str] = []
        self.answers: collections.Counter[str] = collections.Counter()
        self.slowest = 0.0

    def told(self) -> dict[str, object]:
        return {
            "sent": self.sent,
            "failed": len(self.failures),
            "failures": self.failures[:10],
            "kept_sent": self.kept_sent,
            "kept_failed": len(self.kept_failures),
            "kept_failures": self.kept_failures[:10],
            "reconnects": self.reconnects,
            "answers": dict(self.answers),
            "slowest": round(self.slowest, 3),
            "seconds": round(time.monotonic() - self.since, 2),
        }


stats = Stats()


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, close: bool) -> str:
    connection = "close" if close else "keep-alive"
    writer.write(f"GET / HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n")[0]:
        raise OSError(head.split(b"\r\n")[0].decode())
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    return str(json.loads(await reader.readexactly(length))["pod"])


async def once(host: str, port: int) -> str:
    async with asyncio.timeout(TIMEOUT):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            return await exchange(reader, writer, close=True)
        finally:
            writer.close()


async def fresh(host: str, port: int, pause: float) -> None:
    while True:
        current, began = stats, time.monotonic()
        try:
            current.answers[await once(host, port)] += 1
        except (OSError, EOFError, TimeoutError) as error:
            current.failures.append(f"{began - current.since:.2f} s: {error!r}")
        current.sent += 1
        current.slowest = max(current.slowest, time.monotonic() - began)
        await asyncio.sleep(pause)


async def kept(host: str, port: int, pause: float) -> None:
    while True:
        try:
            async with asyncio.timeout(TIMEOUT):
                reader, writer = await asyncio.open_connection(host, port)
            stats.reconnects += 1
            while True:
                async with asyncio.timeout(TIMEOUT):
                    await exchange(reader, writer, close=False)
                stats.kept_sent += 1
                await asyncio.sleep(pause)
        except (OSError, EOFError, TimeoutError) as error:
            stats.kept_failures.append(f"{time.monotonic() - stats.since:.2f} s: {error!r}")
            await asyncio.sleep(pause)


async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    global stats
    line = await reader.readline()
    while (await reader.readline()) not in (b"\r\n", b""):
        pass
    told = json.dumps(stats.told()).encode()
    if b"/reset" in line:
        reconnects, stats = stats.reconnects, Stats()
        stats.reconnects = min(reconnects, 1)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(told) + told)
    await writer.drain()
    writer.close()


async def main() -> None:
    host, port, workers, pause = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    await asyncio.start_server(tell, "0.0.0.0", 8081)
    print("sending", flush=True)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(kept(host, port, 0.05))
        for _ in range(workers):
            tasks.create_task(fresh(host, port, pause))


asyncio.run(main())
