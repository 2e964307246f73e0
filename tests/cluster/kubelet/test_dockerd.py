"""Our own dockerd: started once, outliving its starter, stopped without a trace."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernelet.agents.kubelet.dockerd import answers, ensure_dockerd, mounts_below, stop_dockerd
from kernelet.agents.kubelet.plugins import RuntimeFailure


@pytest.fixture
def folder() -> Iterator[Path]:
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("needs root and the program dockerd; apt-get install docker.io")
    # dockerd's socket paths must be short (108 bytes, unix(7)).
    folder = Path(tempfile.mkdtemp(prefix="kl-test-dockerd-"))
    yield folder
    asyncio.run(stop_dockerd(folder))
    shutil.rmtree(folder, ignore_errors=True)


async def test_two_who_want_a_dockerd_at_once_get_the_same_and_one_stops_it(folder: Path) -> None:
    socket = str(folder / "docker.sock")
    first, second = await asyncio.gather(*(ensure_dockerd(folder, socket_path=socket) for _ in range(2)))
    assert first.socket == second.socket == socket
    assert sorted([first.started, second.started]) == [False, True]
    assert await answers(socket)
    assert await stop_dockerd(folder)
    assert not await answers(socket)
    assert mounts_below(folder) == []
    assert not await stop_dockerd(folder), "there is none left to stop"


async def test_a_dockerd_that_cannot_start_says_why(folder: Path) -> None:
    (folder / "data").write_text("in the way")
    with pytest.raises(RuntimeFailure, match=r"(?s)dockerd ended at its start.*dockerd\.log:\n.*points to a file"):
        await ensure_dockerd(folder, socket_path=str(folder / "docker.sock"))
