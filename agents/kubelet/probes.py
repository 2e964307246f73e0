"""The probes of one running container: startup first, then readiness and liveness, each a task of its own.

The first look is taken as soon as initialDelaySeconds allow, and until the first success looks follow each other
quickly, up to the period: a pod is Ready moments after it can be, not at the next beat of a ten second period. Such
early looks do not count as failures; only looks a period apart do, so thresholds mean what Kubernetes says they mean.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from lightkube.models.core_v1 import Probe

from .probing import Look, Prober, Target

log = logging.getLogger(__name__)

STARTUP, READINESS, LIVENESS = "Startup", "Readiness", "Liveness"
_EARLY_FIRST = 0.1
_EARLY_EXEC = 0.5
_DEFAULT_PERIOD = 10.0
_DEFAULT_FAILURES = 3
_TOLERANCE = 0.001


@dataclass(slots=True)
class Counter:
    """Turns single looks into a verdict by the probe's thresholds."""

    success_threshold: int
    failure_threshold: int
    verdict: bool | None = None
    """None before the first verdict."""
    _run: int = 0
    _last: bool | None = None

    def add(self, ok: bool) -> bool:
        """Notes a look; True when the verdict changed."""
        self._run = self._run + 1 if ok == self._last else 1
        self._last = ok
        needed = self.success_threshold if ok else self.failure_threshold
        if self._run < needed or self.verdict is ok:
            return False
        self.verdict = ok
        return True


@dataclass(slots=True)
class ProbeState:
    """What a container's probes say. Without a readiness probe a started container is ready."""

    started: bool
    ready: bool
    dead: str = ""
    """Why the container must be killed; "" while it need not."""


class ContainerProbes:
    """Runs a container's probes in `group` until `stop`; calls `changed` after each change of `state`."""

    def __init__(
        self,
        prober: Prober,
        target: Target,
        group: asyncio.TaskGroup,
        changed: Callable[[], None],
        unhealthy: Callable[[str, str], None],
        *,
        ready_before: bool = False,
        started_before: bool = False,
    ) -> None:
        """`ready_before` and `started_before`: what is known of an adopted container, so that it does not flap."""
        self._prober = prober
        self._target = target
        self._changed = changed
        self._unhealthy = unhealthy
        container = target.container
        started = container.startupProbe is None or started_before
        ready = ready_before if container.readinessProbe else started
        self.state = ProbeState(started, ready)
        self._tasks: list[asyncio.Task[None]] = []
        self._group = group
        if not started and container.startupProbe:
            self._spawn(STARTUP, container.startupProbe)
        else:
            self._spawn_rest()

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()

    def _spawn(self, kind: str, probe: Probe) -> None:
        name = f"{kind} probe of {self._target.container.name}"
        self._tasks.append(self._group.create_task(self._run(kind, probe), name=name))

    def _spawn_rest(self) -> None:
        container = self._target.container
        if container.readinessProbe:
            self._spawn(READINESS, container.readinessProbe)
        if container.livenessProbe:
            self._spawn(LIVENESS, container.livenessProbe)

    async def _run(self, kind: str, probe: Probe) -> None:
        period = float(probe.periodSeconds or _DEFAULT_PERIOD)
        counter = Counter(probe.successThreshold or 1, probe.failureThreshold or _DEFAULT_FAILURES)
        if kind == READINESS and self.state.ready:
            counter.verdict = True
        early = min(_EARLY_EXEC if probe.exec else _EARLY_FIRST, period)
        if kind == LIVENESS or counter.verdict:
            early = period
        await asyncio.sleep(float(probe.initialDelaySeconds or 0))
        since = period
        while True:
            look = await self._prober.look(probe, self._target)
            counts = look.ok or since >= period - _TOLERANCE
            if counts:
                since = 0.0
                if not look.ok:
                    self._unhealthy(kind, look.message)
                if counter.add(look.ok) and self._settle(kind, look):
                    return
            pause = period if look.ok or counter.verdict is not None else early
            early = min(early * 2, period)
            # Early looks stop where the next regular one is due, so that failures count at their own beat.
            pause = min(pause, period - since) if since < period else pause
            await asyncio.sleep(pause)
            since += pause

    def _settle(self, kind: str, look: Look) -> bool:
        """Takes over a verdict; True when this probe has done its work."""
        if kind == READINESS:
            self.state.ready = look.ok
        elif kind == LIVENESS:
            if look.ok:
                return False
            self.state.dead = f"failed liveness probe: {look.message}"
        elif look.ok:
            self.state.started = True
            if self._target.container.readinessProbe is None:
                self.state.ready = True
            self._spawn_rest()
        else:
            self.state.dead = f"failed startup probe: {look.message}"
        log.debug("%s probe of %s: %s", kind, self._target.container.name, "passed" if look.ok else "failed")
        self._changed()
        return kind == STARTUP or bool(self.state.dead)
