"""`exec` passes input on, writes output where it belongs, and ends with the command's status."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import termios
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import pytest

from kernelet.core.cli.execute import _exec
from kernelet.core.cli.failures import CliError
from kernelet.core.cli.pods import POD, choose_container
from kernelet.core.cli.settings import Settings
from kernelet.core.cli.targets import Target
from kernelet.core.cli.terminal import raw_mode, typed
from kernelet.core.client.raw import ExecOutput, TerminalSize

PODS: dict[str, Any] = {
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "init"}]},
}
SETTINGS = Settings(namespace_option="default")


class Echo:
    """Stands in for the client: a command that answers with what it is sent."""

    def __init__(self, ends: bool = True) -> None:
        self._ends = ends

    async def get(self, kind: object, name: str, namespace: str) -> dict[str, Any]:
        return PODS

    async def exec(
        self, namespace: str, name: str, command: Sequence[str], *, container: str, tty: bool,
        stdin: AsyncIterator[bytes | TerminalSize] | None,
    ) -> AsyncGenerator[ExecOutput, None]:  # fmt: skip
        yield ExecOutput(stderr=f"{container}: {' '.join(command)}\n".encode())
        if stdin is not None:
            async for piece in stdin:
                assert isinstance(piece, bytes)
                yield ExecOutput(stdout=piece)
        if self._ends:
            yield ExecOutput(exit_code=7)


class Stream(io.TextIOWrapper):
    """A text stream over bytes that can be read back."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())

    def written(self) -> bytes:
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue()


async def test_input_goes_in_output_comes_out_and_the_status_is_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    out, error = Stream(), Stream()
    reader, writer = os.pipe()
    os.write(writer, b"hello\n")
    os.close(writer)
    with os.fdopen(reader) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", error)
        client: Any = Echo()
        status = await _exec(client, SETTINGS, Target(POD, "web"), ("cat", "-"), True, False, "b")
    monkeypatch.undo()
    assert (status, out.written(), error.written()) == (7, b"hello\n", b"b: cat -\n")


async def test_a_connection_that_ends_before_the_command_is_an_error() -> None:
    client: Any = Echo(ends=False)
    with pytest.raises(CliError, match="connection ended before the command did"):
        await _exec(client, SETTINGS, Target(POD, "web"), ("true",), False, False, "")


def test_a_container_is_the_one_named_or_the_first() -> None:
    assert choose_container(PODS, "") == "a"
    assert choose_container(PODS, "init") == "init"
    with pytest.raises(CliError, match="has no container c; choose one of a, b, init with -c"):
        choose_container(PODS, "c")


async def test_the_size_of_the_terminal_is_sent_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "132")
    monkeypatch.setenv("LINES", "50")
    stream = typed(stdin=False, tty=True)
    try:
        assert await anext(stream) == TerminalSize(132, 50)
    finally:
        await stream.aclose()


def test_the_terminal_is_put_back_after_raw_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = pty.openpty()
    try:
        with os.fdopen(follower, "rb+", buffering=0) as terminal:
            monkeypatch.setattr(sys, "stdin", terminal)
            before = termios.tcgetattr(terminal)
            with pytest.raises(RuntimeError), raw_mode(True):
                assert not termios.tcgetattr(terminal)[3] & termios.ECHO
                raise RuntimeError
            assert termios.tcgetattr(terminal) == before
    finally:
        os.close(leader)


def test_a_reader_that_went_away_ends_it_quietly() -> None:
    script = "from kernelet.core.cli.main import main; main(['api-resources'])"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(timeout=20) == 1
        assert process.stderr.read() == b""
