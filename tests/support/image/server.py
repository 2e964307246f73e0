"""The server of the cluster tests: HTTP/1.1 and UDP on one port, says who and where it is, and stops gracefully.

GET /           {"pod", "node", "version", "peer"}
GET /env        its environment
GET /healthz    200, or 500 once /set?healthy=0 was asked for
GET /readyz     200, or 500 once /set?ready=0 was asked for
GET /slow?s=N   answers after N seconds
GET /get?url=U  what a GET from in here brings: {"status", "body"} or {"error"}
GET /lookup?name=N  addresses by the container's resolver: {"addresses"} or {"error"}
"""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import sys
from urllib.parse import parse_qs, urlsplit

VERSION = os.environ.get("VERSION", "")
FLAGS = {"healthy": True, "ready": os.environ.get("READY", "1") == "1"}
STARTED = os.times().elapsed


def get(url: str) -> dict[str, object]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=5)
    try:
        connection.request("GET", parts.path or "/", headers={"Connection": "close"})
        answer = connection.getresponse()
        return {"status": answer.status, "body": answer.read().decode()}
    except OSError as error:
        return {"error": repr(error)}
    finally:
        connection.close()


def lookup(name: str) -> dict[str, object]:
    try:
        found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        return {"error": str(error)}
    return {"addresses": sorted({str(entry[4][0]) for entry in found})}


class Server:
    def __init__(self) -> None:
        self.connections: set[asyncio.StreamWriter] = set()
        self.busy: set[asyncio.StreamWriter] = set()
        self.stopping = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(writer)
        try:
            while line := await reader.readline():
                self.busy.add(writer)
                headers = {}
                while (header := await reader.readline()) not in (b"\r\n", b""):
                    name, _, value = header.decode().partition(":")
                    headers[name.lower()] = value.strip()
                code, body = await self.answer(line.decode().split()[1], writer.get_extra_info("peername"))
                close = headers.get("connection") == "close" or self.stopping.is_set()
                data = json.dumps(body).encode() + b"\n"
                kept = "close" if close else "keep-alive"
                head = f"HTTP/1.1 {code} X\r\nContent-Length: {len(data)}\r\nConnection: {kept}\r\n\r\n"
                writer.write(head.encode() + data)
                await writer.drain()
                self.busy.discard(writer)
                if close:
                    break
        except ConnectionError:
            pass
        finally:
            self.busy.discard(writer)
            self.connections.discard(writer)
            writer.close()

    async def idle(self) -> None:
        """Returns once no request is under way."""
        while True:
            if not self.busy:
                return
            await asyncio.sleep(0.01)

    async def answer(self, target: str, peer: tuple[str, int]) -> tuple[int, object]:
        parts = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        match parts.path:
            case "/env":
                return 200, dict(os.environ)
            case "/healthz":
                return (200 if FLAGS["healthy"] else 500), FLAGS
            case "/readyz":
                return (200 if FLAGS["ready"] else 500), FLAGS
            case "/set":
                FLAGS.update({key: value == "1" for key, value in query.items()})
                print("set", FLAGS, flush=True)
                return 200, FLAGS
            case "/slow":
                await asyncio.sleep(float(query["s"]))
            case "/get":
                return 200, await asyncio.to_thread(get, query["url"])
            case "/lookup":
                return 200, await asyncio.to_thread(lookup, query["name"])
        return 200, who(peer)


def who(peer: tuple[str, int]) -> dict[str, object]:
    return {
        "pod": socket.gethostname(),
        "node": os.environ.get("NODE_NAME", ""),
        "version": VERSION,
        "peer": peer[0],
    }


class Datagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(json.dumps(who(addr)).encode(), addr)


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = Server()
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    listener = await asyncio.start_server(server.serve, "0.0.0.0", port, backlog=512)
    await loop.create_datagram_endpoint(Datagrams, local_addr=("0.0.0.0", port))
    loop.add_signal_handler(signal.SIGTERM, server.stopping.set)
    print(f"serving on {port} version={VERSION}", flush=True)
    await server.stopping.wait()
    print("stopping", flush=True)
    await asyncio.sleep(0.05)  # what was accepted by the kernel before SIGTERM is taken first
    listener.close()
    for writer in server.connections - server.busy:
        writer.close()
    await server.idle()
    print("stopped", flush=True)


with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main())
