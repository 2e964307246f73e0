"""A real API server for the commands to talk to, without nodes or controllers."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kernelet.core.cli.main import cli
from kernelet.core.cli.settings import Settings

START = "from kernelet.core.server.main import command; command()"


@dataclass(frozen=True)
class Cluster:
    """Runs commands in this process against the server."""

    kubeconfig: str

    @property
    def settings(self) -> Settings:
        return Settings(kubeconfig=self.kubeconfig)

    def try_run(self, *arguments: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(cli, ["--kubeconfig", self.kubeconfig, *arguments], input=stdin, prog_name="kernelet")

    def run(self, *arguments: str, stdin: str | bytes | None = None) -> str:
        """Standard output of a command that must succeed."""
        result = self.try_run(*arguments, stdin=stdin)
        assert result.exit_code == 0, result.output
        return result.stdout

    def fail(self, *arguments: str, stdin: str | bytes | None = None) -> str:
        """The error of a command that must fail."""
        result = self.try_run(*arguments, stdin=stdin)
        assert result.exit_code == 1, result.output
        return result.stderr


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    data = tmp_path_factory.mktemp("apiserver")
    options = ["--data-dir", str(data), "--bind", "127.0.0.1", "--port", "0", "--grpc-port", "0", "--token-port", "0"]
    with subprocess.Popen([sys.executable, "-c", START, *options], stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            for line in server.stderr:
                if " ready " in line:
                    break
            else:
                pytest.fail(f"the API server ended with status {server.wait()}")
            # Whatever else it says must not fill the pipe.
            drain = threading.Thread(target=server.stderr.read, daemon=True)
            drain.start()
            yield Cluster(str(data / "admin.kubeconfig"))
        finally:
            server.terminate()
            server.wait(timeout=20)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], str]:
    def write(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write
