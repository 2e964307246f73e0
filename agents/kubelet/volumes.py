"""The volumes of pods on this node, as folders that are bind-mounted into containers.

Secrets and emptyDirs of medium Memory live in folders of a tmpfs that exists already, not in mounts of our own: a mount
made in the kubelet's mount namespace need not be seen by dockerd's, and mounts would have to be undone after a crash.
The price is that sizeLimit of such an emptyDir is not enforced by the kernel.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lightkube.models.core_v1 import Container, HostPathVolumeSource, Pod, Volume, VolumeMount

from . import pods
from .atomic import check_path, write_atomically
from .env import ConfigError, expand
from .fields import FieldError
from .payloads import PayloadContext, is_confidential, is_payload, payload_of
from .plugins import Mount
from .podfiles import DnsConfig, hosts_file, resolv_conf

log = logging.getLogger(__name__)

_TMPFS_MAGIC = "tmpfs"


class VolumeError(Exception):
    """A volume cannot be set up; the message names the volume, the cause and the fix."""


@dataclass(frozen=True, slots=True)
class VolumeRoots:
    """Where volumes live: `disk/pods/<uid>` and, for what must stay in memory, `memory/pods/<uid>`."""

    disk: Path
    memory: Path

    def pod(self, uid: str) -> Path:
        return self.disk / "pods" / uid

    def pod_memory(self, uid: str) -> Path:
        return self.memory / "pods" / uid


def memory_root(name: str) -> Path:
    """A folder for `name` on a tmpfs: below /run where that is one, else below /dev/shm."""
    types = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind = line.split()[:3]
        types[point] = kind
    base = next((folder for folder in ("/run", "/dev/shm") if types.get(folder) == _TMPFS_MAGIC), "")
    if not base:
        log.warning("no tmpfs at /run or /dev/shm: secrets are kept on disk; mount one at /run")
        base = "/run"
    return Path(base) / "kernelet" / name


class Volumes:
    """Prepares, refreshes and removes the volumes of pods. Every method is idempotent."""

    def __init__(self, roots: VolumeRoots, dns: DnsConfig) -> None:
        self._roots = roots
        self._dns = dns

    async def prepare(self, context: PayloadContext) -> dict[str, Path]:
        """Sets all volumes of a pod up; volume name -> folder or file. Raises VolumeError."""
        ready = {}
        for volume in pods.spec(context.pod).volumes or []:
            try:
                ready[volume.name] = await self._prepare_one(context, volume)
            except (ConfigError, FieldError, ValueError, OSError) as error:
                raise VolumeError(f"volume {volume.name!r} of pod {pods.key(context.pod)}: {error}") from error
        return ready

    async def _prepare_one(self, context: PayloadContext, volume: Volume) -> Path:
        uid = pods.uid(context.pod)
        context_group = pods.spec(context.pod).securityContext
        group = context_group.fsGroup if context_group else None
        if volume.hostPath:
            return await asyncio.to_thread(host_path, volume.hostPath)
        in_memory = is_confidential(volume) or (volume.emptyDir and volume.emptyDir.medium == "Memory")
        root = self._roots.pod_memory(uid) if in_memory else self._roots.pod(uid)
        folder = root / "volumes" / volume.name
        if volume.emptyDir:
            await asyncio.to_thread(_empty_dir, folder, group)
        elif is_payload(volume):
            files = await payload_of(context, volume)
            await asyncio.to_thread(write_atomically, folder, files, group)
        else:
            raise VolumeError("its kind is not supported; use emptyDir, hostPath, configMap, secret or projected")
        return folder

    async def pod_files(self, pod: Pod, addresses: tuple[str, ...]) -> list[Mount]:
        """Writes /etc/hosts and /etc/resolv.conf of a pod once; returns their mounts."""
        folder = self._roots.pod(pods.uid(pod))
        texts = {"hosts": hosts_file(pod, addresses, self._dns.domain), "resolv.conf": resolv_conf(pod, self._dns)}
        await asyncio.to_thread(_write_files, folder, texts)
        return [Mount(str(folder / name), f"/etc/{name}") for name in texts]

    def termination_log(self, pod: Pod, container: Container, attempt: int) -> Path:
        """The file a container's last words go to."""
        return self._roots.pod(pods.uid(pod)) / "containers" / container.name / f"{attempt}.message"

    async def remove(self, uid: str) -> None:
        """Removes all of a pod's files; hostPath volumes stay."""
        for folder in (self._roots.pod(uid), self._roots.pod_memory(uid)):
            await asyncio.to_thread(_remove_tree, folder)

    def known_pods(self) -> set[str]:
        """Uids of the pods that have files here."""
        folders = (self._roots.disk / "pods", self._roots.memory / "pods")
        return {path.name for folder in folders if folder.is_dir() for path in folder.iterdir()}


def mounts_of(
    container: Container, volumes: Mapping[str, Path], payload_names: set[str], env: Mapping[str, str]
) -> list[Mount]:
    """The mounts of a container's volumeMounts. Raises VolumeError for a volume that the pod does not have."""
    mounts = []
    for mount in container.volumeMounts or []:
        if mount.name not in volumes:
            raise VolumeError(f"container {container.name} mounts volume {mount.name!r}, which the pod does not have")
        source = _sub_path(volumes[mount.name], mount, env)
        read_only = bool(mount.readOnly) or mount.name in payload_names
        mounts.append(Mount(str(source), mount.mountPath, read_only))
    return mounts


def _sub_path(volume: Path, mount: VolumeMount, env: Mapping[str, str]) -> Path:
    relative = expand(mount.subPathExpr, env) if mount.subPathExpr else mount.subPath
    if not relative:
        return volume
    try:
        check_path(relative)
    except ValueError as error:
        raise VolumeError(f"subPath of volume {mount.name!r}: {error}") from error
    target = volume / relative
    if not target.exists():
        target.mkdir(parents=True, exist_ok=True)
    # A symlink inside the volume must not lead the mount out of it.
    if not target.resolve().is_relative_to(volume.resolve()):
        raise VolumeError(f"subPath {relative!r} of volume {mount.name!r} leads out of the volume")
    return target.resolve()


def host_path(source: HostPathVolumeSource) -> Path:
    """Checks a hostPath against its type. Raises VolumeError naming path and type."""
    path, kind = Path(source.path), source.type or ""
    if kind == "DirectoryOrCreate":
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    elif kind == "FileOrCreate":
        path.touch(mode=0o644, exist_ok=True)
    checks: dict[str, Callable[[int], bool]] = {
        "DirectoryOrCreate": stat.S_ISDIR,
        "Directory": stat.S_ISDIR,
        "FileOrCreate": stat.S_ISREG,
        "File": stat.S_ISREG,
        "Socket": stat.S_ISSOCK,
        "CharDevice": stat.S_ISCHR,
        "BlockDevice": stat.S_ISBLK,
    }
    if kind:
        if kind not in checks:
            raise VolumeError(f"hostPath type {kind!r} is unknown; use one of {', '.join(checks)}")
        if not path.exists() or not checks[kind](path.stat().st_mode):
            raise VolumeError(f"hostPath {source.path} is not a {kind} on this node; create it, or change its type")
    return path


def _empty_dir(folder: Path, group: int | None) -> None:
    if folder.is_dir():
        return
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    if group is not None:
        os.chown(folder, -1, group)
        folder.chmod(0o2777)


def _write_files(folder: Path, texts: Mapping[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        # Written in place: a bind mount follows the inode, not the name.
        if not (folder / name).exists():
            (folder / name).write_text(text)


def _remove_tree(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
