"""Ends containers and pods: routes withdrawn, preStop, SIGTERM, SIGKILL, and everything removed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from lightkube.models.core_v1 import Pod

from kernelet.core.api.errors import ApiError, Conflict, NotFound

from . import pods
from .containers import LABEL_POD_UID, is_sandbox
from .kit import NORMAL, WARNING, Kit, wait_any
from .launcher import target_of
from .slot import Slot

log = logging.getLogger(__name__)
T = TypeVar("T")

_LEAST_GRACE = 2.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0


class Stopper:
    """Stops the containers of one pod. `forced`, once set, ends all waiting: what runs is killed at once."""

    def __init__(self, kit: Kit, forced: asyncio.Event) -> None:
        self._kit = kit
        self._forced = forced

    async def withdraw(self, pod: Pod) -> None:
        """Waits until no node sends new connections to the pod; bounded, and a missed deadline is an Event."""
        limit = self._kit.config.route_deadline
        begun = time.monotonic()
        try:
            async with asyncio.timeout(limit + 1):
                await self._unless_forced(self._kit.routes.wait_withdrawn(pod, limit))
        except TimeoutError:
            self._kit.metrics.missed.inc()
            message = f"not all nodes withdrew their routes to the pod within {limit:.0f}s; stopping it all the same"
            self._kit.recorder.event(pod, WARNING, "RoutesNotWithdrawn", message)
        self._kit.metrics.withdrawn.observe(time.monotonic() - begun)

    async def stop(self, pod: Pod, slot: Slot, addresses: tuple[str, ...], grace: float, why: str) -> None:
        """Ends one container: preStop within the grace period, then the stop signal, then SIGKILL."""
        current = slot.view.current
        slot.stop_probes()
        if current is None or not slot.view.running:
            return
        self._kit.recorder.event(pod, NORMAL, "Killing", why)
        deadline = time.monotonic() + grace
        lifecycle = slot.container.lifecycle
        if lifecycle and lifecycle.preStop and grace > 0:
            hook = self._kit.prober.hook(lifecycle.preStop, target_of(self._kit, slot, addresses), grace)
            look = await self._unless_forced(hook)
            if look is not None and not look.ok:
                message = f"PreStopHook of container {slot.container.name} failed: {look.message}"
                self._kit.recorder.event(pod, WARNING, "FailedPreStopHook", message)
        # As Kubernetes: a preStop hook that used the grace up still leaves the process two seconds.
        left = max(deadline - time.monotonic(), min(_LEAST_GRACE, grace))
        if not self._forced.is_set():
            await self._unless_forced(self._kit.runtime.stop(current.id, left))
        if self._forced.is_set():
            await self._kit.runtime.stop(current.id, 0)
        found = await self._kit.runtime.inspect(current.id)
        if found is None:
            slot.vanished()
        else:
            slot.view.current = found

    async def stop_all(
        self, pod: Pod, slots: Iterable[Slot], addresses: tuple[str, ...], grace: float, why: str
    ) -> None:
        """Ends containers side by side, sidecars after the others (KEP-753). Raises RuntimeFailure."""
        begun = time.monotonic()
        running = [slot for slot in slots if slot.view.running]
        mains = [slot for slot in running if not pods.is_sidecar(slot.container)]
        for batch in (mains, [slot for slot in reversed(running) if pods.is_sidecar(slot.container)]):
            left = max(0.0, grace - (time.monotonic() - begun))
            text = [why or f"Stopping container {slot.container.name}" for slot in batch]
            stops = [self.stop(pod, slot, addresses, left, word) for slot, word in zip(batch, text, strict=True)]
            results = await asyncio.gather(*stops, return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    raise result

    async def delete(self, pod: Pod) -> None:
        """Removes the pod's object, which waits for us; tries until the API server has answered."""
        pause = _FIRST_PAUSE
        while not self._forced.is_set():
            try:
                await self._kit.client.delete(
                    Pod, pods.name(pod), pods.namespace(pod), grace_period=0, uid=pods.uid(pod)
                )
                return
            except (NotFound, Conflict):
                return
            except ApiError as error:
                log.info("pod %s will be deleted again: %s", pods.key(pod), error)
            await wait_any(self._forced, pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _unless_forced(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The result of `work`; None when the pod is forced away meanwhile, which ends the work."""
        task = asyncio.ensure_future(work)
        forced = asyncio.ensure_future(self._forced.wait())
        try:
            await asyncio.wait({task, forced}, return_when=asyncio.FIRST_COMPLETED)
            return await task if task.done() else None
        finally:
            task.cancel()
            forced.cancel()


async def remove_pod(kit: Kit, uid: str) -> None:
    """Removes every container of a pod, its network and its files; containers that run are killed.

    The pause container goes last: the network namespace must be there until its link is taken out.
    Raises RuntimeFailure; may be called again.
    """
    labels = kit.identity.labels() | {LABEL_POD_UID: uid}
    found = await kit.runtime.list(labels)
    sandboxes = [one for one in found if is_sandbox(one)]
    await asyncio.gather(*(kit.runtime.remove(one.id) for one in found if not is_sandbox(one)))
    await kit.network.detach(uid)
    await asyncio.gather(*(kit.runtime.remove(one.id) for one in sandboxes))
    await kit.volumes.remove(uid)
