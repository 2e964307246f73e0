"""The demo's application tier: counts visits in redis and says who answered. Standard library only."""

import json
import os
import signal
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REDIS = (os.environ["REDIS_SERVICE_HOST"], int(os.environ["REDIS_SERVICE_PORT"]))
"""Discovered by the environment variables of the service; the front finds this tier by its DNS name."""


def increment(key: str) -> int:
    """One INCR over a connection of its own (RESP, redis protocol)."""
    with socket.create_connection(REDIS, timeout=2) as connection:
        connection.sendall(f"*2\r\n$4\r\nINCR\r\n${len(key)}\r\n{key}\r\n".encode())
        answer = connection.makefile("rb").readline()
    if not answer.startswith(b":"):
        raise OSError(f"redis answered {answer!r}")
    return int(answer[1:])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        try:
            body: dict[str, object] = {
                "pod": socket.gethostname(),
                "node": os.environ["NODE_NAME"],
                "version": os.environ["VERSION"],
            }
            if self.path.startswith("/visits"):
                body["visits"] = increment("visits")
            self.answer(200, body)
        except OSError as error:
            self.answer(503, {"error": str(error)})

    def answer(self, code: int, body: dict[str, object]) -> None:
        data = json.dumps(body).encode() + b"\n"
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        print(f"{self.address_string()} {format % args}", flush=True)


def main() -> None:
    server = ThreadingHTTPServer(("", 8000), Handler)
    server.daemon_threads = False  # a request under way is finished before the process ends
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print("serving on 8000", flush=True)
    server.serve_forever()
    server.server_close()


if __name__ == "__main__":
    main()
