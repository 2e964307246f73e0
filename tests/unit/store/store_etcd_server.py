"""Debian's etcd as a child process of the tests."""

from __future__ import annotations

import itertools
import socket
import subprocess
import time
from pathlib import Path

_numbers = itertools.count(1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class EtcdServer:
    """Debian's etcd on loopback, with its data in `folder`; can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._peer = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        client, peer = (f"http://127.0.0.1:{port}" for port in (self.port, self._peer))
        arguments = ["--data-dir", str(self.folder), "--listen-client-urls", client, "--advertise-client-urls", client]
        arguments += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        arguments += ["--initial-cluster", f"default={peer}"]
        self._process = subprocess.Popen(["etcd", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 15
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 0.2).close()
                return
            except OSError:
                assert self._process.poll() is None, "etcd ended"
                assert time.monotonic() < deadline, "etcd does not answer"
                time.sleep(0.02)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def url(self) -> str:
        """A store of its own on this server."""
        return f"etcd://127.0.0.1:{self.port}?prefix=/test-{next(_numbers)}"
