"""The Docker runtime: short requests through the docker SDK in a bounded thread pool, long ones over the event loop.

The SDK blocks; so each of its calls runs in a pool of a few threads, with the SDK's own socket timeout bounding the
thread and a deadline bounding the caller. What may last (logs, events, exec, stop, pull) is in `docker_streams.py`.
Containers are never restarted in place: a restart is a new container. So what `inspect` said of a running container
stays true until its state changes, which keeps `list` at one request however many containers there are.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import docker
import docker.errors
import requests

from .docker_exec import DockerExec, FinishedExec
from .docker_streams import EngineStreams
from .plugins import (
    ContainerSpec,
    ContainerState,
    ContainerStatus,
    ExecResult,
    ExecStream,
    RuntimeFailure,
    RuntimeUnreachable,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

DEFAULT_SOCKET = "/var/run/docker.sock"
_CAP_SYS_RESOURCE = 24
# Starts are our own doing; what happens without us are ends.
_STATE_EVENTS = ("die", "destroy")


@dataclass(frozen=True, slots=True)
class DockerConfig:
    """How to reach dockerd and what all containers of a node share."""

    socket: str = DEFAULT_SOCKET
    threads: int = 8
    """Requests in flight at once; each holds a thread."""
    deadline: float = 60.0
    """Seconds for one short request."""
    pull_deadline: float = 900.0
    cgroup_parent: str = ""
    """As `/kernelet/default.node1/`, or a `.slice` with the systemd driver; "" is docker's default."""
    log_max_size: str = "10m"
    log_max_files: int = 3


class DockerRuntime:
    """plugins.Runtime over one dockerd. Close it to end its threads and connections."""

    def __init__(self, config: DockerConfig) -> None:
        self._config = config
        self._pool = ThreadPoolExecutor(config.threads, thread_name_prefix="docker")
        self._streams = EngineStreams(config.socket)
        self._client: docker.APIClient | None = None
        self._known: dict[str, ContainerStatus] = {}
        self._listed_at = time.time()
        self._min_oom_score = lowest_oom_score_adj()

    async def close(self) -> None:
        await self._streams.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            self._client.close()

    def _api(self) -> docker.APIClient:
        # Runs in a pool thread: negotiating the version is a request of its own.
        if self._client is None:
            self._client = docker.APIClient(
                base_url=f"unix://{self._config.socket}",
                version="auto",
                timeout=int(self._config.deadline),
                num_pools=self._config.threads,
            )
        return self._client

    async def _call(self, subject: str, request: Callable[[docker.APIClient], T]) -> T:
        """Runs one SDK request. Raises RuntimeFailure naming `subject`; RuntimeUnreachable when dockerd is away."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._config.deadline):
                return await loop.run_in_executor(self._pool, lambda: request(self._api()))
        except TimeoutError as error:
            raise RuntimeUnreachable(
                f"{subject}: dockerd at {self._config.socket} did not answer within {self._config.deadline:.0f} s"
            ) from error
        except docker.errors.APIError as error:
            raise RuntimeFailure(f"{subject}: {error.explanation or error}") from error
        except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
            raise self._streams.unreachable(error) from error

    async def version(self) -> str:
        found = await self._call("dockerd", lambda api: api.version())
        return str(found["Version"])

    async def cgroup_driver(self) -> str:
        """`cgroupfs` or `systemd`."""
        found = await self._call("dockerd", lambda api: api.info())
        return str(found.get("CgroupDriver", "cgroupfs"))

    async def list(self, labels: Mapping[str, str]) -> list[ContainerStatus]:
        filters = {"label": [f"{key}={value}" for key, value in labels.items()]}
        self._listed_at = time.time()
        rows = await self._call("containers", lambda api: api.containers(all=True, filters=filters))
        found: dict[str, ContainerStatus] = {}
        for row in rows:
            known = self._known.get(row["Id"])
            if known is None or known.state is not _state(row["State"]):
                known = await self.inspect(row["Id"])
            if known is not None:
                found[row["Id"]] = known
        return list(found.values())

    async def inspect(self, container_id: str) -> ContainerStatus | None:
        try:
            found = await self._call(f"container {container_id[:12]}", lambda api: _inspect(api, container_id))
        except _Gone:
            self._known.pop(container_id, None)
            return None
        status = _status(found)
        self._known[container_id] = status
        return status

    async def create(self, spec: ContainerSpec) -> str:
        subject = f"container {spec.name} of image {spec.image}"
        return await self._call(subject, lambda api: self._create(api, spec))

    def _create(self, api: docker.APIClient, spec: ContainerSpec) -> str:
        try:
            created = api.create_container(
                image=spec.image,
                name=spec.name,
                command=list(spec.args) or None,
                entrypoint=list(spec.command) or None,
                environment=dict(spec.env),
                labels=dict(spec.labels),
                working_dir=spec.working_dir or None,
                hostname=spec.hostname or None,
                user=spec.user or None,
                tty=spec.tty,
                stdin_open=spec.stdin,
                host_config=self._host_config(api, spec),
            )
            return str(created["Id"])
        except docker.errors.APIError as error:
            if error.status_code != 409:
                raise
            # An earlier create that was cut off by its deadline went through after all.
            return str(api.inspect_container(spec.name)["Id"])

    def _host_config(self, api: docker.APIClient, spec: ContainerSpec) -> dict[str, Any]:
        alone = "host" if spec.host_network else "none"
        options: dict[str, Any] = {
            "network_mode": f"container:{spec.sandbox}" if spec.sandbox else alone,
            "ipc_mode": f"container:{spec.sandbox}" if spec.sandbox else "shareable",
            "binds": [f"{m.source}:{m.target}:{'ro' if m.read_only else 'rw'}" for m in spec.mounts],
            "cpu_shares": spec.cpu_shares,
            "oom_score_adj": max(spec.oom_score_adj, self._min_oom_score),
            "privileged": spec.privileged,
            "read_only": spec.read_only_root,
            "cap_add": list(spec.add_capabilities),
            "cap_drop": list(spec.drop_capabilities),
            "group_add": [str(group) for group in spec.groups],
            "log_config": {
                "type": "json-file",
                "config": {"max-size": self._config.log_max_size, "max-file": str(self._config.log_max_files)},
            },
        }
        if self._config.cgroup_parent:
            options["cgroup_parent"] = self._config.cgroup_parent
        if spec.cpu_quota:
            options |= {"cpu_quota": spec.cpu_quota, "cpu_period": 100_000}
        if spec.memory_limit:
            # Equal limits: memory and swap together, so no swap.
            options |= {"mem_limit": spec.memory_limit, "memswap_limit": spec.memory_limit}
        if spec.no_new_privileges:
            options["security_opt"] = ["no-new-privileges"]
        if spec.host_pid:
            options["pid_mode"] = "host"
        elif spec.share_processes and spec.sandbox:
            options["pid_mode"] = f"container:{spec.sandbox}"
        made: dict[str, Any] = api.create_host_config(**options)
        return made

    async def start(self, container_id: str) -> None:
        await self._call(f"container {container_id[:12]}", lambda api: api.start(container_id))

    async def stop(self, container_id: str, grace_seconds: float) -> None:
        limit = grace_seconds + self._config.deadline
        try:
            async with asyncio.timeout(limit):
                await self._streams.stop(container_id, grace_seconds)
        except TimeoutError as error:
            raise RuntimeUnreachable(
                f"container {container_id[:12]} is not dead {limit:.0f} s after it was told to stop: "
                f"dockerd hangs, or the process is stuck in the kernel (state D)"
            ) from error

    async def remove(self, container_id: str) -> None:
        self._known.pop(container_id, None)
        await self._call(f"container {container_id[:12]}", lambda api: _remove(api, container_id))

    async def exec(self, container_id: str, command: Sequence[str], deadline: float) -> ExecResult:
        """Runs a command to its end. Raises TimeoutError after `deadline` seconds; the process may then live on."""
        output = bytearray()
        async with asyncio.timeout(deadline):
            stream = await self.exec_stream(container_id, command, stdin=False, tty=False)
            try:
                async with aclosing(stream.frames()) as frames:
                    async for _, data in frames:
                        output += data
                return ExecResult(await stream.wait(), bytes(output))
            finally:
                await stream.close()

    async def exec_stream(self, container_id: str, command: Sequence[str], *, stdin: bool, tty: bool) -> ExecStream:
        subject = f"exec in container {container_id[:12]}"
        created = await self._call(
            subject,
            lambda api: api.exec_create(container_id, list(command), stdin=stdin, stdout=True, stderr=not tty, tty=tty),
        )
        exec_id = str(created["Id"])
        try:
            link = await self._streams.hijack(f"/exec/{exec_id}/start", {"Detach": False, "Tty": tty}, subject)
        except RuntimeUnreachable:
            raise
        except RuntimeFailure as error:
            # dockerd refuses to start what is not there; shells answer such a command with 126 or 127.
            return FinishedExec(127 if "not found" in str(error) or "no such file" in str(error) else 126, str(error))

        async def resize(width: int, height: int) -> None:
            await self._call(subject, lambda api: api.exec_resize(exec_id, height=height, width=width))

        async def exit_code() -> int:
            found = await self._call(subject, lambda api: api.exec_inspect(exec_id))
            return int(found.get("ExitCode") or 0)

        return DockerExec(link, tty=tty, resize=resize, exit_code=exit_code)

    async def logs(
        self, container_id: str, *, follow: bool, timestamps: bool, tail_lines: int, since_seconds: int
    ) -> AsyncGenerator[bytes, None]:
        found = await self._call(f"container {container_id[:12]}", lambda api: api.inspect_container(container_id))
        params = {"follow": str(int(follow)), "timestamps": str(int(timestamps))}
        params["tail"] = "all" if tail_lines < 0 else str(tail_lines)
        if since_seconds > 0:
            params["since"] = str(int(time.time()) - since_seconds)
        async with aclosing(self._streams.logs(container_id, params, tty=found["Config"]["Tty"])) as chunks:
            async for chunk in chunks:
                yield chunk

    async def has_image(self, image: str) -> bool:
        return await self._call(f"image {image}", lambda api: _has_image(api, image))

    async def import_image(self, tar: Path, repository: str, tag: str, entrypoint: str) -> None:
        """Makes an image of one layer from a tar file, as `docker import` does."""
        changes = [f'ENTRYPOINT ["{entrypoint}"]']
        await self._call(
            f"image {repository}:{tag}",
            lambda api: api.import_image_from_file(str(tar), repository=repository, tag=tag, changes=changes),
        )

    async def pull(self, image: str) -> None:
        try:
            async with asyncio.timeout(self._config.pull_deadline):
                await self._streams.pull(image)
        except TimeoutError as error:
            limit = self._config.pull_deadline
            raise RuntimeFailure(f"image {image} was not pulled within {limit:.0f} s; check the registry") from error

    async def events(self, labels: Mapping[str, str]) -> AsyncGenerator[str, None]:
        filters = {
            "type": ["container"],
            "event": list(_STATE_EVENTS),
            "label": [f"{key}={value}" for key, value in labels.items()],
        }
        # From the last list on, so that nothing is missed between that and this.
        async with aclosing(self._streams.events(filters, since=self._listed_at)) as events:
            async for event in events:
                container_id = str(event.get("id") or event["Actor"]["ID"])
                self._known.pop(container_id, None)
                yield container_id


class _Gone(RuntimeFailure):
    """The container does not exist (any more)."""


def _inspect(api: docker.APIClient, container_id: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = api.inspect_container(container_id)
    except docker.errors.NotFound as error:
        raise _Gone(f"container {container_id[:12]} does not exist") from error
    return found


def _remove(api: docker.APIClient, container_id: str) -> None:
    try:
        api.remove_container(container_id, force=True, v=True)
    except docker.errors.NotFound:
        return
    except docker.errors.APIError as error:
        # Two removals of one container at once: the other one does it.
        if error.status_code != 409:
            raise


def _has_image(api: docker.APIClient, image: str) -> bool:
    try:
        api.inspect_image(image)  # type: ignore[no-untyped-call]  # the SDK's stubs leave it out
    except docker.errors.ImageNotFound:
        return False
    return True


def _state(text: str) -> ContainerState:
    if text in ("running", "paused", "restarting"):
        return ContainerState.RUNNING
    return ContainerState.CREATED if text == "created" else ContainerState.EXITED


def _status(found: Mapping[str, Any]) -> ContainerStatus:
    state = found["State"]
    told = _state(state["Status"])
    started, finished = state["StartedAt"], state["FinishedAt"]
    if told is ContainerState.CREATED and state["ExitCode"]:
        # Its start failed (no such program, for instance): it ran for no time and ended.
        told, started, finished = ContainerState.EXITED, found["Created"], found["Created"]
    return ContainerStatus(
        id=found["Id"],
        name=str(found["Name"]).lstrip("/"),
        labels=found["Config"]["Labels"] or {},
        state=told,
        pid=int(state["Pid"]),
        image=found["Config"]["Image"],
        image_id=found["Image"],
        created_at=found["Created"],
        started_at=started,
        finished_at=finished,
        exit_code=int(state["ExitCode"]),
        oom_killed=bool(state["OOMKilled"]),
        error=str(state.get("Error") or ""),
    )


def lowest_oom_score_adj() -> int:
    """What oom_score_adj may be lowered to: -1000 with CAP_SYS_RESOURCE, else this process's own (proc(5))."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:") and int(line.split()[1], 16) >> _CAP_SYS_RESOURCE & 1:
            return -1000
    return int(Path("/proc/self/oom_score_adj").read_text())
