"""A cluster of three nodes for the tests of a module, on a dockerd that has the tests' image."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support.cluster import Cluster, Space, new_cluster, new_space, require_machine
from support.images import MissingProgram, ensure_tools_image, remove_tools_image

from kernelet.agents.cluster.paths import DOCKER_DATA, existing_clusters
from kernelet.agents.kubelet.dockerd import ensure_dockerd, stop_dockerd


@pytest.fixture(scope="session")
def cluster_dockerd() -> Iterator[str]:
    """The socket of the dockerd that clusters of this machine use, with the tests' image in it."""
    require_machine()
    with one_run_at_a_time():
        yield from _dockerd()


@contextlib.contextmanager
def one_run_at_a_time() -> Iterator[None]:
    """Two runs on one machine would stop each other's dockerd and remove each other's images: the second one waits."""
    with Path("/run/kernelet-tests.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _dockerd() -> Iterator[str]:
    # A run that is told to end removes its clusters first.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    found = asyncio.run(ensure_dockerd(DOCKER_DATA))
    try:
        try:
            asyncio.run(ensure_tools_image(found.socket))
        except MissingProgram as error:
            pytest.skip(str(error))
        yield found.socket
    finally:
        if not os.environ.get("KERNELET_TEST_KEEP"):
            # The last cluster that was deleted has stopped it.
            again = asyncio.run(ensure_dockerd(DOCKER_DATA))
            remove_tools_image(again.socket)
            if (found.started or again.started) and not existing_clusters():
                asyncio.run(stop_dockerd(DOCKER_DATA))


@pytest.fixture(scope="module")
def cluster(cluster_dockerd: str) -> Iterator[Cluster]:
    """A cluster of three nodes."""
    with new_cluster(3, toleration_seconds=5) as made:
        yield made


@pytest.fixture
async def space(cluster: Cluster) -> AsyncIterator[Space]:
    """A namespace of this test in the module's cluster."""
    async with new_space(cluster) as made:
        yield made
