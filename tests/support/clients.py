"""Processes that play a pod, a node or an outsider: each in a network namespace, and in a cgroup where one is given."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .netns import Namespace


class Client:
    """`client.tcp(...)` calls the function of that name in client.py, in the process."""

    def __init__(self, namespace: Namespace, cgroup: Path | None) -> None:
        with namespace.entered():
            self._process = subprocess.Popen(
                [sys.executable, "-m", "support.client"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={"PYTHONPATH": str(Path(__file__).parents[1])},
            )
        if cgroup is not None:
            (cgroup / "cgroup.procs").write_text(str(self._process.pid))

    @property
    def pid(self) -> int:
        return self._process.pid

    def __getattr__(self, function: str) -> Callable[..., Any]:
        def call(*arguments: object) -> Any:
            assert self._process.stdin and self._process.stdout
            self._process.stdin.write(json.dumps([function, *arguments]) + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
            assert not isinstance(answer, dict) or "raised" not in answer, answer
            return answer

        return call

    def names(self, address: str, port: int = 80, times: int = 1) -> list[str]:
        """Who answered each of so many TCP connections, or the error's name."""
        return [answer.get("name", answer.get("error")) for answer in self.tcp(address, port, times)]

    def close(self) -> None:
        with self._process:
            self._process.kill()
