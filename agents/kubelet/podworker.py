"""The life of one pod on this node: one task, which compares what the pod wants with what runs and does the next thing.

    sandbox (pause) -> network -> volumes -> init containers one after the other -> containers in order
    -> probes, restarts
    -> [deleted] routes withdrawn -> preStop, SIGTERM, SIGKILL -> removed -> status -> object deleted

The worker wakes by events only: a change of the pod, of a container, of a probe's verdict or of a ConfigMap it mounts,
or the end of a back-off. What it knows is what the runtime said; a new worker after a restart adopts what it finds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from lightkube.models.core_v1 import Pod

from kernelet.core.api.times import format_seconds, now

from . import pods
from .backoff import Backoff
from .containers import LABEL_CONTAINER, is_sandbox, restart_of
from .kit import WARNING, Kit, wait_any
from .launcher import Ground, Launcher, last_words, target_of
from .payloads import PayloadContext
from .plugins import ContainerStatus, Mount, RuntimeUnreachable
from .probes import ContainerProbes
from .sandbox import Sandbox
from .slot import Slot, adopt, make_slots
from .status import JSON, PodView, Waiting, init_done, initialized, phase, pod_status
from .stopping import Stopper, remove_pod
from .volumes import VolumeError

log = logging.getLogger(__name__)

_UNREACHABLE_PAUSE = 2.0
_FLUSH_SECONDS = 10.0


class PodWorker:
    """Runs one pod. `update` and `removed` tell it what the API says, `container_changed` what the runtime says."""

    def __init__(self, kit: Kit, pod: Pod, found: Sequence[ContainerStatus] = ()) -> None:
        self._kit = kit
        self._pod = pod
        self.uid = pods.uid(pod)
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._forced = asyncio.Event()
        self._dirty: set[str] = set()
        self._inits, self._mains = make_slots(pod)
        self._sandbox = Sandbox(kit, pod, [one for one in found if is_sandbox(one)])
        self._useless = self._adopt([one for one in found if not is_sandbox(one)])
        self._objects = kit.objects.for_pod(self.uid, self._sources_changed)
        self._launcher = Launcher(kit, self._stopping)
        self._stopper = Stopper(kit, self._forced)
        self._volumes: dict[str, Path] | None = None
        self._files: tuple[Mount, ...] = ()
        self._stale = True
        self._retired = False
        self._over = pods.is_terminal(pod)
        self._trouble = Backoff(first_is_free=False, first=0.5, longest=30.0)
        self._last: JSON | None = None
        started = pods.status(pod).startTime
        self._view = PodView(
            [slot.view for slot in self._inits],
            [slot.view for slot in self._mains],
            host_address=kit.config.address,
            started_at=format_seconds(started or now()),
        )
        self.begun = time.monotonic()
        self._group: asyncio.TaskGroup | None = None
        if pods.deletion_time(pod):
            self._stopping.set()

    @property
    def pod(self) -> Pod:
        """The pod as last heard of."""
        return self._pod

    @property
    def status(self) -> JSON:
        """The status last computed."""
        return self._last or {}

    @property
    def _slots(self) -> list[Slot]:
        return [*self._inits, *self._mains]

    def container(self, name: str, *, previous: bool = False) -> ContainerStatus | None:
        """The latest attempt of a container, or the one before it."""
        for slot in self._slots:
            if slot.container.name == name:
                return slot.view.previous if previous else slot.view.current
        return None

    def owns(self, container_id: str) -> bool:
        known = {slot.view.current.id for slot in self._slots if slot.view.current}
        return container_id in known | {slot.starting for slot in self._slots} | {self._sandbox.id}

    def running(self) -> dict[str, bool]:
        """Ids of the containers the worker believes in, and whether they run."""
        known = {slot.view.current.id: slot.view.running for slot in self._slots if slot.view.current}
        return known | ({self._sandbox.id: True} if self._sandbox.id else {})

    def update(self, pod: Pod) -> None:
        """The pod changed in the API."""
        old, new = pods.meta(self._pod), pods.meta(pod)
        if (old.labels, old.annotations) != (new.labels, new.annotations):
            # downwardAPI volumes show them.
            self._stale = True
        self._pod = pod
        by_name = {one.name: one for one in [*(pods.spec(pod).initContainers or []), *pods.spec(pod).containers]}
        for slot in self._slots:
            slot.view.container = by_name.get(slot.container.name, slot.container)
        if pods.deletion_time(pod):
            self._stopping.set()
        self._wake.set()

    def removed(self) -> None:
        """The pod's object is gone: nothing is waited for any more."""
        self._forced.set()
        self._stopping.set()
        self._wake.set()

    def container_changed(self, container_id: str) -> None:
        self._dirty.add(container_id)
        self._wake.set()

    def _sources_changed(self) -> None:
        self._stale = True
        for slot in self._slots:
            slot.config.succeeded()
        self._wake.set()

    def _adopt(self, found: Sequence[ContainerStatus]) -> list[ContainerStatus]:
        useless = []
        for slot in self._slots:
            own = [one for one in found if one.labels.get(LABEL_CONTAINER) == slot.container.name]
            useless += adopt(slot, own)
            slot.next_attempt = max([slot.next_attempt, *(restart_of(one) + 1 for one in own if one not in useless)])
        return useless

    async def run(self) -> None:
        """Until the pod is gone, or until cancelled: then its containers run on."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                await self._live()
                await self._terminate()
                for slot in self._slots:
                    slot.stop_probes()
        finally:
            self._objects.release()
            self._kit.writer.forget(self.uid)

    async def _live(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            delay = await self._step()
            self._publish()
            if not self._stopping.is_set():
                await wait_any(self._wake, delay)

    async def _step(self) -> float | None:
        """One comparison; seconds until the next one is due without an event."""
        try:
            delay = await self._sync()
        except RuntimeUnreachable as error:
            log.warning("pod %s waits for the runtime: %s", pods.key(self._pod), error)
            return _UNREACHABLE_PAUSE
        except VolumeError as error:
            return self._troubled("FailedMount", str(error))
        except Exception as error:  # whatever is wrong with one pod must not stop the others
            log.exception("pod %s cannot be synced", pods.key(self._pod))
            return self._troubled("FailedSync", f"error syncing pod, it is tried again: {error}")
        self._trouble.succeeded()
        return delay

    def _troubled(self, reason: str, message: str) -> float:
        self._kit.metrics.errors.inc()
        self._kit.recorder.event(self._pod, WARNING, reason, message)
        return self._trouble.failed(time.monotonic())

    async def _sync(self) -> float | None:
        await self._refresh()
        deadline = await self._past_deadline()
        if self._over or phase(self._pod, self._view) in ("Succeeded", "Failed"):
            await self._retire()
            return None
        await self._set_up()
        delays = [deadline]
        begun = initialized(self._view)
        for slot in self._inits:
            if begun and not pods.is_sidecar(slot.container):
                continue
            delays.append(await self._tend(slot))
            if not begun and not init_done(slot.view):
                break
        if initialized(self._view):
            for slot in self._mains:
                delays.append(await self._tend(slot))
        if phase(self._pod, self._view) in ("Succeeded", "Failed"):
            self._wake.set()
        return min((delay for delay in delays if delay is not None), default=None)

    async def _refresh(self) -> None:
        """Looks at the containers of which the runtime said that something happened."""
        while self._useless:
            await self._kit.runtime.remove(self._useless.pop().id)
        while self._dirty:
            container_id = self._dirty.pop()
            try:
                found = await self._kit.runtime.inspect(container_id)
            except BaseException:
                self._dirty.add(container_id)
                raise
            if container_id == self._sandbox.id:
                self._sandbox.observe(found)
                continue
            for slot in self._slots:
                if slot.view.current and slot.view.current.id == container_id:
                    self._observe(slot, found)

    def _observe(self, slot: Slot, found: ContainerStatus | None) -> None:
        if found is None:
            slot.vanished()
        else:
            slot.view.current = found
        if slot.view.exited:
            slot.stop_probes()
            slot.take_verdict()
            words = self._kit.volumes.termination_log(self._pod, slot.container, slot.view.restarts)
            slot.view.message = last_words(words)

    async def _set_up(self) -> None:
        """Sandbox, network and volumes; does what is missing of them."""
        if not self._sandbox.ready:
            if self._sandbox.dead or (not self._sandbox.id and any(slot.view.running for slot in self._slots)):
                await self._lose_sandbox()
            await self._sandbox.set_up(self._pod)
            self._view.sandbox_ready = True
            self._view.addresses = self._sandbox.addresses
            self._files = tuple(await self._kit.volumes.pod_files(self._pod, self._sandbox.addresses))
            self._stale = True
        if self._stale:
            self._stale = False
            begun = time.monotonic()
            try:
                facts, addresses = self._kit.facts, self._sandbox.addresses
                token = self._kit.config.token_source
                context = PayloadContext(self._pod, facts, addresses, self._objects, token)
                self._volumes = await self._kit.volumes.prepare(context)
                self._kit.metrics.phases.labels("volumes").observe(time.monotonic() - begun)
            except BaseException:
                self._stale = True
                raise

    async def _lose_sandbox(self) -> None:
        """The pause container died: what shares its namespaces cannot go on."""
        self._kit.recorder.event(self._pod, "Normal", "SandboxChanged", "Pod sandbox changed, it will be re-created.")
        grace = pods.grace_seconds(self._pod)
        await self._stopper.stop_all(self._pod, self._slots, self._sandbox.addresses, grace, "")
        self._view.sandbox_ready = False
        await self._sandbox.tear_down()

    async def _tend(self, slot: Slot) -> float | None:
        """Does the next thing for one container; seconds until there is more to do without an event."""
        if slot.view.running:
            if slot.probes is None:
                self._start_probes(slot)
            dead = slot.probes.state.dead if slot.probes else ""
            if dead or slot.outdated:
                what = dead or "definition changed"
                why = f"Container {slot.container.name} {what}, will be restarted"
                grace = pods.grace_seconds(self._pod)
                await self._stopper.stop(self._pod, slot, self._sandbox.addresses, grace, why)
            else:
                slot.take_verdict()
                return None
        if slot.view.exited:
            if not slot.may_restart(pods.spec(self._pod).restartPolicy or "Always"):
                slot.view.waiting = None
                return None
            remaining = self._back_off(slot)
            if remaining > 0:
                return remaining
        if slot.config.remaining(time.monotonic()) > 0:
            return slot.config.remaining(time.monotonic())
        return await self._start(slot)

    def _back_off(self, slot: Slot) -> float:
        """Seconds an ended container must still wait; notes each end once."""
        clock = time.monotonic()
        current = slot.view.current
        if current is not None and slot.noted != current.id:
            slot.noted = current.id
            slot.restart.failed(clock, slot.ran_for())
        remaining = slot.restart.remaining(clock)
        if remaining > 0:
            message = (
                f"back-off {slot.restart.delay:.0f}s restarting failed container={slot.container.name} "
                f"pod={pods.name(self._pod)}_{pods.namespace(self._pod)}({self.uid})"
            )
            if slot.view.waiting is None:
                self._kit.recorder.event(self._pod, WARNING, "BackOff", message[0].upper() + message[1:])
            slot.view.waiting = Waiting("CrashLoopBackOff", message)
        return remaining

    async def _start(self, slot: Slot) -> float | None:
        if self._stopping.is_set():
            return None
        self._publish()
        ground = Ground(
            self._pod, self._sandbox.id, self._sandbox.addresses, self._volumes or {}, self._files, self._objects
        )
        delay = await self._launcher.start(slot, ground)
        if slot.view.running:
            self._start_probes(slot)
        elif slot.view.exited:
            self._observe(slot, slot.view.current)
            self._wake.set()
        return delay

    def _start_probes(self, slot: Slot) -> None:
        assert self._group is not None, "probes are started by the running worker"
        current = slot.view.current

        def unhealthy(kind: str, message: str) -> None:
            text = f"{kind} probe failed: {message}"
            self._kit.recorder.event(self._pod, WARNING, "Unhealthy", text)

        before = [
            *(pods.status(self._pod).containerStatuses or []),
            *(pods.status(self._pod).initContainerStatuses or []),
        ]
        known = next((one for one in before if current and one.containerID == f"docker://{current.id}"), None)
        slot.probes = ContainerProbes(
            self._kit.prober,
            target_of(self._kit, slot, self._sandbox.addresses),
            self._group,
            self._wake.set,
            unhealthy,
            ready_before=bool(known and known.ready),
            started_before=bool(known and known.started),
        )
        slot.take_verdict()

    async def _past_deadline(self) -> float | None:
        """Seconds until spec.activeDeadlineSeconds pass; ends the pod when they have."""
        limit = pods.spec(self._pod).activeDeadlineSeconds
        if limit is None or self._view.failure:
            return None
        started = pods.status(self._pod).startTime
        age = (now() - started).total_seconds() if started else time.monotonic() - self.begun
        if age < limit:
            return limit - age
        self._view.failure = Waiting(
            "DeadlineExceeded", "Pod was active on the node longer than the specified deadline"
        )
        self._view.ended = True
        return None

    async def _retire(self) -> None:
        """The pod has run to its end: its network is given back, its dead containers stay for their logs."""
        if self._retired:
            return
        grace = pods.grace_seconds(self._pod)
        await self._stopper.stop_all(self._pod, self._slots, self._sandbox.addresses, grace, "")
        await self._sandbox.tear_down()
        self._view.sandbox_ready = False
        self._retired = True

    async def _terminate(self) -> None:
        """Ends the pod for good. Tries until nothing of it is left on the node."""
        pod = self._pod
        while True:
            try:
                await self._refresh()
                if any(slot.view.running for slot in self._slots) and not self._forced.is_set():
                    await self._stopper.withdraw(pod)
                grace = 0.0 if self._forced.is_set() else pods.grace_seconds(self._pod)
                await self._stopper.stop_all(pod, self._slots, self._sandbox.addresses, grace, "")
                for slot in self._slots:
                    self._observe(slot, slot.view.current)
                await remove_pod(self._kit, self.uid)
                break
            except Exception as error:  # the pod's remains must go, whatever is in the way
                log.exception("pod %s cannot be stopped yet", pods.key(pod))
                self._kit.recorder.event(pod, WARNING, "FailedKillPod", f"error killing pod: {error}")
                await asyncio.sleep(_UNREACHABLE_PAUSE)
        if self._forced.is_set():
            return
        self._view.ended, self._view.sandbox_ready = True, False
        self._publish()
        try:
            async with asyncio.timeout(_FLUSH_SECONDS):
                await self._kit.writer.flush(self.uid)
        except TimeoutError:
            log.warning("final status of pod %s could not be written; deleting it all the same", pods.key(pod))
        await self._stopper.delete(pod)

    def _publish(self) -> None:
        """Computes the status and hands it to the writer, which compares and writes."""
        if self._over:
            return
        for slot in self._slots:
            slot.take_verdict()
        view = self._view
        status = pod_status(self._pod, view, format_seconds(now()), self._last)
        if self._last is None or status["phase"] != self._last["phase"]:
            age = time.monotonic() - self.begun
            log.info("pod %s phase=%s after=%.3fs", pods.key(self._pod), status["phase"], age)
            if self._last is not None and status["phase"] == "Running":
                self._kit.metrics.phases.labels("running").observe(age)
        self._last = status
        self._kit.writer.put(self._pod, status)
