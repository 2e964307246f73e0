"""A pod's sandbox: the pause container that holds its namespaces, and the pod's network."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from lightkube.models.core_v1 import Pod

from . import pods
from .containers import restart_of, sandbox_spec
from .kit import WARNING, Kit
from .plugins import ContainerState, ContainerStatus, RuntimeFailure, RuntimeUnreachable

log = logging.getLogger(__name__)


class Sandbox:
    """The sandbox of one pod; made, adopted or made anew."""

    def __init__(self, kit: Kit, pod: Pod, found: Sequence[ContainerStatus]) -> None:
        self._kit = kit
        self._uid = pods.uid(pod)
        self._host_network = bool(pods.spec(pod).hostNetwork)
        attempts = sorted(found, key=restart_of)
        self._found: ContainerStatus | None = attempts[-1] if attempts else None
        self._old = attempts[:-1]
        self._attempt = restart_of(self._found) + 1 if self._found else 0
        self.addresses: tuple[str, ...] = ()
        self.ready = False
        """Runs and is on the network."""

    @property
    def id(self) -> str:
        """Of the pause container; "" where there is none."""
        return self._found.id if self._found else ""

    @property
    def dead(self) -> bool:
        """Whether there is a pause container, and it has ended."""
        return self._found is not None and self._found.state is not ContainerState.RUNNING

    def observe(self, found: ContainerStatus | None) -> None:
        """What the runtime says of the pause container; None: it was removed."""
        if found is None:
            self._found = None
            self.ready = False
            return
        self._found = found
        self.ready = self.ready and found.state is ContainerState.RUNNING

    async def set_up(self, pod: Pod) -> None:
        """Makes it ready; may be called again. Raises RuntimeFailure or what the network raises, after an Event."""
        try:
            await self._set_up(pod)
        except RuntimeUnreachable:
            raise
        except Exception as error:
            message = f"Failed to create pod sandbox: {error}"
            self._kit.recorder.event(pod, WARNING, "FailedCreatePodSandBox", message)
            raise

    async def _set_up(self, pod: Pod) -> None:
        kit, begun = self._kit, time.monotonic()
        while self._old:
            await kit.runtime.remove(self._old.pop().id)
        if self._found is None:
            self._found = await self._create(pod)
            kit.metrics.phases.labels("sandbox").observe(time.monotonic() - begun)
        if self._host_network:
            self.addresses = (kit.config.address,)
        else:
            begun = time.monotonic()
            attached = await kit.network.attach(self._uid, self._found.pid)
            self.addresses = tuple(attached.addresses)
            kit.metrics.phases.labels("network").observe(time.monotonic() - begun)
        self.ready = True

    async def _create(self, pod: Pod) -> ContainerStatus:
        kit = self._kit
        image = await kit.ensure_pause()
        container_id = await kit.runtime.create(sandbox_spec(kit.identity, pod, image, self._attempt))
        self._attempt += 1
        await kit.runtime.start(container_id)
        found = await kit.runtime.inspect(container_id)
        if found is None or found.state is not ContainerState.RUNNING:
            await kit.runtime.remove(container_id)
            raise RuntimeFailure(f"the pause container of pod {pods.key(pod)} ended as it was started")
        return found

    async def tear_down(self) -> None:
        """Takes the pod off the network and removes the pause container. No error when that is done already."""
        self.ready = False
        if not self._host_network:
            await self._kit.network.detach(self._uid)
        if self._found is not None:
            await self._kit.runtime.remove(self._found.id)
            self._found = None
