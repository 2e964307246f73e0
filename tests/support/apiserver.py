"""The real API server in a process of its own, for tests: started, killed and restarted at will, on its own data."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kernelet.core.client.client import Client
from kernelet.core.client.config import ClientConfig
from kernelet.core.security.kubeconfig import load_kubeconfig

START_SECONDS = 20.0
STOP_SECONDS = 10.0

_PROGRAM = "from kernelet.core.server.main import command; command()"


class ApiServer:
    """Keeps data, ports and certificates over restarts. Use as a context manager, which starts it."""

    def __init__(self, folder: Path, *flags: str, store: str = "") -> None:
        self.folder = folder
        self.data = folder / "data"
        self.log = folder / "apiserver.log"
        self.port, self.grpc_port, self.token_port = free_ports(3)
        self.socket = folder / "registry.sock"
        self._flags = [*flags, *(["--store", store] if store else [])]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._process is not None, "the API server is not running"
        return self._process.pid

    def start(self) -> None:
        """Returns once it accepts connections. Raises RuntimeError with the end of its log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", _PROGRAM, "--data-dir", str(self.data), "--bind", "127.0.0.1"]
        command += ["--port", str(self.port), "--grpc-port", str(self.grpc_port), "--token-port", str(self.token_port)]
        command += ["--unix-socket", str(self.socket), *self._flags]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while not (self._accepts(self.grpc_port) and (self.data / "admin.kubeconfig").exists()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the API server did not start:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, as a user would; killed where that does not end it."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """kill -9 and start."""
        self.kill()
        self.start()

    def config(self, **changes: Any) -> ClientConfig:
        """The administrator's access to this server over TCP."""
        found = load_kubeconfig(self.data / "admin.kubeconfig")
        fields = {"address": f"127.0.0.1:{self.grpc_port}", "ca_pem": found.ca_pem, "cert_pem": found.cert_pem}
        return ClientConfig(**(fields | {"key_pem": found.key_pem} | changes))

    def client(self, **changes: Any) -> Client:
        """To be made inside an event loop, and closed."""
        return Client(self.config(**changes))

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @staticmethod
    def _accepts(port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on at this moment."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
