"""All containers of a cluster or node, whoever made them: ended and removed without an agent."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docker
import docker.errors
import requests

from kernelet.agents.kubelet.docker import DEFAULT_SOCKET

from .paths import DOCKER_DATA

log = logging.getLogger(__name__)

CLUSTER_LABEL, NODE_LABEL = "io.kernelet.cluster", "io.kernelet.node"


def sockets() -> list[str]:
    """Of the dockerds that Kernelet's containers may be in: the host's own, and the one that Kernelet starts."""
    return [path for path in (DEFAULT_SOCKET, str(DOCKER_DATA / "docker.sock")) if Path(path).exists()]


def kill_node(socket: str, cluster: str, node: str) -> int:
    """SIGKILL for every container of a node, as losing its power would; they stay on disk. Returns how many ran."""
    return _each(socket, [f"{CLUSTER_LABEL}={cluster}", f"{NODE_LABEL}={node}"], remove=False)


def remove_cluster(socket: str, cluster: str) -> int:
    """Kills and removes every container of a cluster; returns how many there were."""
    return _each(socket, [f"{CLUSTER_LABEL}={cluster}"], remove=True)


def remove_all(socket: str) -> int:
    """Kills and removes every container that Kernelet made; returns how many there were."""
    return _each(socket, [CLUSTER_LABEL], remove=True)


def count(socket: str, cluster: str) -> int:
    """How many containers of a cluster there are, running or not."""
    client = docker.APIClient(base_url=f"unix://{socket}", timeout=60)
    try:
        return len(client.containers(all=True, filters={"label": f"{CLUSTER_LABEL}={cluster}"}))
    finally:
        client.close()


def _each(socket: str, labels: Iterable[str], *, remove: bool) -> int:
    client = docker.APIClient(base_url=f"unix://{socket}", timeout=60)
    try:
        found = client.containers(all=remove, filters={"label": list(labels)})

        def end(container: str) -> None:
            try:
                if remove:
                    client.remove_container(container, force=True, v=True)
                else:
                    client.kill(container)
            except docker.errors.APIError as error:
                log.info("container was gone already: %s", error.explanation)

        with ThreadPoolExecutor(max_workers=8) as pool:
            list(pool.map(end, [entry["Id"] for entry in found]))
        return len(found)
    except (docker.errors.DockerException, requests.exceptions.ConnectionError) as error:
        log.warning("dockerd at %s does not answer, its containers are left: %s", socket, error)
        return 0
    finally:
        client.close()
