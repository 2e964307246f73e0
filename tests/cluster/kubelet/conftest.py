"""A dockerd of the tests' own, images made locally, and a kubelet beside a real API server."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from kubelet_world import World, world_of
from support.apiserver import ApiServer

from kernelet.agents.cluster.machine import remove_cgroups
from kernelet.agents.kubelet.docker import DockerConfig, DockerRuntime
from kernelet.agents.kubelet.dockerd import ensure_dockerd, stop_dockerd
from kernelet.agents.kubelet.images import ensure_pause_image, tar_of

BUSYBOX = "kernelet-test/busybox:1"
PROGRAMS = "busybox sh sleep cat echo true touch test rm httpd nc"


@pytest.fixture(scope="session")
def dockerd() -> Iterator[str]:
    """The socket of a dockerd: $KERNELET_TEST_DOCKER's, or one of our own which is stopped at the end."""
    given = os.environ.get("KERNELET_TEST_DOCKER")
    if given:
        yield given
        return
    if os.geteuid() != 0:
        pytest.skip("needs root to run dockerd")
    if shutil.which("dockerd") is None:
        pytest.skip("needs the program dockerd; apt-get install docker.io")
    folder = Path(tempfile.mkdtemp(prefix="kl-test-docker-"))
    try:
        yield asyncio.run(ensure_dockerd(folder, socket_path=str(folder / "docker.sock"))).socket
    finally:
        asyncio.run(stop_dockerd(folder))
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def images(dockerd: str) -> str:
    """Makes the pause image and a busybox image; the busybox image's name."""
    program = shutil.which("busybox")
    if program is None:
        pytest.skip("needs a static busybox; apt-get install busybox-static")
    content = Path(program).read_bytes()

    async def make() -> None:
        runtime = DockerRuntime(DockerConfig(dockerd))
        try:
            await ensure_pause_image(runtime)
            if not await runtime.has_image(BUSYBOX):
                with tempfile.TemporaryDirectory() as folder:
                    tar = Path(folder) / "busybox.tar"
                    tar.write_bytes(tar_of({f"bin/{name}": content for name in PROGRAMS.split()}))
                    await runtime.import_image(tar, *BUSYBOX.split(":"), "/bin/busybox")
        finally:
            await runtime.close()

    asyncio.run(make())
    return BUSYBOX


@pytest.fixture
def node_name() -> str:
    return f"node-{uuid.uuid4().hex[:8]}"


@pytest_asyncio.fixture
async def runtime(dockerd: str, images: str, node_name: str) -> AsyncIterator[DockerRuntime]:
    """A runtime whose containers are removed after the test."""
    runtime = DockerRuntime(DockerConfig(dockerd, cgroup_parent=f"/kernelet/test.{node_name}/"))
    try:
        yield runtime
    finally:
        for one in await runtime.list({"io.kernelet.node": node_name}):
            await runtime.remove(one.id)
        await runtime.close()
        remove_cgroups(f"test.{node_name}")


@pytest_asyncio.fixture
async def world(
    shared_api_server: ApiServer, runtime: DockerRuntime, images: str, node_name: str, tmp_path: Path
) -> AsyncIterator[World]:
    """A node whose kubelet runs."""
    async with world_of(shared_api_server, runtime, images, tmp_path, node_name) as found:
        await found.start()
        yield found
