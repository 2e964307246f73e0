"""Starts one container of a pod: image, environment, mounts, create, start, postStart."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lightkube.models.core_v1 import Pod

from . import pods
from .containers import Surroundings, container_spec
from .env import ConfigError, EnvContext, Objects, container_env
from .fields import FieldError
from .kit import NORMAL, WARNING, Kit
from .payloads import is_payload
from .plugins import Mount, RuntimeFailure, RuntimeUnreachable
from .probing import Target
from .slot import Slot
from .status import Waiting
from .volumes import VolumeError, mounts_of

log = logging.getLogger(__name__)

_HOOK_SECONDS = 60.0
_SHOWN_SECONDS = 1.0
_MESSAGE_PATH = "/dev/termination-log"
_MESSAGE_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class Ground:
    """What a pod's containers stand on once the pod is set up."""

    pod: Pod
    sandbox: str
    addresses: tuple[str, ...]
    volumes: Mapping[str, Path]
    files: tuple[Mount, ...]
    objects: Objects


class Launcher:
    """Starts containers for pod workers. What goes wrong is told in the slot's `waiting` and as an Event."""

    def __init__(self, kit: Kit, stopping: asyncio.Event) -> None:
        """`stopping`, once set, ends waiting for a pull."""
        self._kit = kit
        self._stopping = stopping

    async def start(self, slot: Slot, ground: Ground) -> float | None:
        """Starts the next attempt. Returns the seconds until another try makes sense; None when it started."""
        begun = time.monotonic()
        if not await self._image(slot, ground.pod):
            remaining = slot.pull.remaining(time.monotonic())
            # ErrImagePull is shown for a moment, then it is ImagePullBackOff.
            fresh = slot.view.waiting is not None and slot.view.waiting.reason == "ErrImagePull"
            return min(remaining, _SHOWN_SECONDS) if fresh else remaining
        self._kit.metrics.phases.labels("image").observe(time.monotonic() - begun)
        try:
            spec_env = await self._env(slot, ground)
            mounts = self._mounts(slot, ground, spec_env)
        except (ConfigError, FieldError, VolumeError, OSError) as error:
            return self._misconfigured(slot, ground.pod, str(error))
        slot.config.succeeded()
        return await self._create_and_start(slot, ground, spec_env, mounts)

    async def _create_and_start(
        self, slot: Slot, ground: Ground, env: dict[str, str], mounts: list[Mount]
    ) -> float | None:
        kit, pod, name, begun = self._kit, ground.pod, slot.container.name, time.monotonic()
        around = Surroundings(kit.identity, ground.sandbox, slot.next_attempt, env, mounts, kit.facts.memory)
        try:
            container_id = await kit.runtime.create(container_spec(pod, slot.container, around))
        except RuntimeUnreachable:
            raise
        except RuntimeFailure as error:
            slot.view.waiting = Waiting("CreateContainerError", str(error))
            kit.recorder.event(pod, WARNING, "Failed", f"Error: {error}")
            return slot.config.failed(time.monotonic())
        kit.metrics.phases.labels("create").observe(time.monotonic() - begun)
        kit.recorder.event(pod, NORMAL, "Created", f"Created container {name}")
        await self._drop_previous(slot)
        slot.starting = container_id
        begun = time.monotonic()
        try:
            await kit.runtime.start(container_id)
        except RuntimeUnreachable:
            raise
        except RuntimeFailure as error:
            kit.recorder.event(pod, WARNING, "Failed", f"Error: failed to start container {name}: {error}")
        found = await kit.runtime.inspect(container_id)
        if found is None:
            raise RuntimeFailure(f"container {name} of pod {pods.key(pod)} vanished as it was started")
        slot.fill(found)
        kit.metrics.phases.labels("start").observe(time.monotonic() - begun)
        if slot.view.running:
            kit.metrics.starts.inc()
            kit.recorder.event(pod, NORMAL, "Started", f"Started container {name}")
            await self._post_start(slot, ground)
        return None

    async def _drop_previous(self, slot: Slot) -> None:
        """Only the last ended attempt is kept, for its logs and its state."""
        if slot.view.previous is not None:
            await self._kit.runtime.remove(slot.view.previous.id)
            slot.view.previous = None

    async def _post_start(self, slot: Slot, ground: Ground) -> None:
        lifecycle, current = slot.container.lifecycle, slot.view.current
        if lifecycle is None or lifecycle.postStart is None or current is None:
            return
        target = target_of(self._kit, slot, ground.addresses)
        look = await self._kit.prober.hook(lifecycle.postStart, target, _HOOK_SECONDS)
        if not look.ok:
            message = f"PostStartHook of container {slot.container.name} failed: {look.message}"
            self._kit.recorder.event(ground.pod, WARNING, "FailedPostStartHook", message)
            await self._kit.runtime.stop(current.id, pods.grace_seconds(ground.pod))

    async def _env(self, slot: Slot, ground: Ground) -> dict[str, str]:
        context = EnvContext(ground.pod, self._kit.facts, ground.addresses, ground.objects, self._kit.services())
        return await container_env(context, slot.container)

    def _mounts(self, slot: Slot, ground: Ground, env: Mapping[str, str]) -> list[Mount]:
        payload = {one.name for one in pods.spec(ground.pod).volumes or [] if is_payload(one)}
        mounts = mounts_of(slot.container, ground.volumes, payload, env)
        taken = {mount.target for mount in mounts}
        words = self._kit.volumes.termination_log(ground.pod, slot.container, slot.next_attempt)
        words.parent.mkdir(parents=True, exist_ok=True)
        words.touch()
        words.chmod(0o666)
        own = [*ground.files, Mount(str(words), slot.container.terminationMessagePath or _MESSAGE_PATH)]
        return mounts + [mount for mount in own if mount.target not in taken]

    def _misconfigured(self, slot: Slot, pod: Pod, message: str) -> float:
        slot.view.waiting = Waiting("CreateContainerConfigError", message)
        self._kit.recorder.event(pod, WARNING, "Failed", f"Error: {message}")
        return slot.config.failed(time.monotonic())

    async def _image(self, slot: Slot, pod: Pod) -> bool:
        """Makes the image present by imagePullPolicy; False when it is not, with the reason in `waiting`."""
        image = slot.container.image or ""
        policy = slot.container.imagePullPolicy or "IfNotPresent"
        present = await self._kit.runtime.has_image(image)
        if present and policy != "Always":
            self._kit.recorder.event(pod, NORMAL, "Pulled", f'Container image "{image}" already present on machine')
            return True
        if policy == "Never":
            message = f'Container image "{image}" is not present with pull policy of Never; load it with `docker load`'
            return self._unpulled(slot, pod, "ErrImageNeverPull", message)
        if slot.pull.remaining(time.monotonic()) > 0:
            message = f'Back-off pulling image "{image}"'
            if slot.view.waiting and slot.view.waiting.message:
                message = f"{message}: {slot.view.waiting.message.removeprefix(message + ': ')}"
            slot.view.waiting = Waiting("ImagePullBackOff", message)
            self._kit.recorder.event(pod, NORMAL, "BackOff", f'Back-off pulling image "{image}"')
            return False
        self._kit.recorder.event(pod, NORMAL, "Pulling", f'Pulling image "{image}"')
        begun = time.monotonic()
        try:
            if not await self._unless_stopping(image):
                return False
        except RuntimeFailure as error:
            return self._unpulled(slot, pod, "ErrImagePull", str(error))
        slot.pull.succeeded()
        took = time.monotonic() - begun
        self._kit.recorder.event(pod, NORMAL, "Pulled", f'Successfully pulled image "{image}" in {took:.3f}s')
        return True

    def _unpulled(self, slot: Slot, pod: Pod, reason: str, message: str) -> bool:
        slot.view.waiting = Waiting(reason, message)
        self._kit.recorder.event(pod, WARNING, "Failed", message)
        self._kit.recorder.event(pod, WARNING, "Failed", f"Error: {reason}")
        slot.pull.failed(time.monotonic())
        return False

    async def _unless_stopping(self, image: str) -> bool:
        """Pulls; False when the pod began to stop meanwhile."""
        pull = asyncio.ensure_future(self._kit.images.pull(image))
        stop = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({pull, stop}, return_when=asyncio.FIRST_COMPLETED)
            if pull.done():
                await pull
                return True
            return False
        finally:
            pull.cancel()
            stop.cancel()


def target_of(kit: Kit, slot: Slot, addresses: tuple[str, ...]) -> Target:
    """What probes and hooks of a running container look at."""
    current = slot.view.current
    address = addresses[0] if addresses else kit.config.address
    return Target(slot.container, current.id if current else "", address)


def last_words(path: Path) -> str:
    """The end of a container's termination message file; "" where it wrote none."""
    try:
        return path.read_bytes()[-_MESSAGE_LIMIT:].decode(errors="replace")
    except FileNotFoundError:
        return ""
