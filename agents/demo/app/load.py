"""The demo's client: one new connection a request, at a steady rate, until told to stop by its standard input.

Prints one line of JSON at the end: requests sent and failed, the longest time without a success, who answered.
"""

import collections
import http.client
import json
import sys
import threading
import time

TIMEOUT = 2.0


class Load:
    """Sends from several threads; a request counts as failed when it brings no 200 in time."""

    def __init__(self, host: str, port: int, threads: int, pause: float) -> None:
        self.host, self.port, self.pause = host, port, pause
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.sent = 0
        self.failures: list[str] = []
        self.answers: collections.Counter[str] = collections.Counter()
        self.last_success = time.monotonic()
        self.longest_gap = 0.0
        self.threads = [threading.Thread(target=self.run) for _ in range(threads)]

    def run(self) -> None:
        while not self.stop.is_set():
            began = time.monotonic()
            try:
                who = self.request()
                self.note(who, "")
            except (OSError, http.client.HTTPException) as error:
                self.note("", f"{began - START:.2f}s {error!r}")
            self.stop.wait(self.pause)

    def request(self) -> str:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT)
        try:
            connection.request("GET", "/", headers={"Connection": "close"})
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise http.client.HTTPException(f"status {response.status}")
            return response.getheader("X-Pod") or json.loads(body)["pod"]
        finally:
            connection.close()

    def note(self, who: str, failure: str) -> None:
        now = time.monotonic()
        with self.lock:
            self.sent += 1
            if failure:
                self.failures.append(failure)
                return
            self.answers[who] += 1
            self.longest_gap = max(self.longest_gap, now - self.last_success)
            self.last_success = now

    def report(self) -> dict[str, object]:
        return {
            "sent": self.sent,
            "failed": len(self.failures),
            "longest_gap": round(self.longest_gap, 3),
            "answers": dict(self.answers),
            "failures": self.failures[:20],
            "seconds": round(time.monotonic() - START, 2),
        }


START = time.monotonic()


def main() -> None:
    host, port, threads, pause = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    load = Load(host, port, threads, pause)
    for thread in load.threads:
        thread.start()
    print("sending", flush=True)
    sys.stdin.read()  # until the other side closes
    load.stop.set()
    for thread in load.threads:
        thread.join()
    print(json.dumps(load.report()), flush=True)


if __name__ == "__main__":
    main()
