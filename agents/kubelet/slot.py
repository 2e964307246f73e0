"""One container of one pod: its place in the pod, which successive attempts fill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lightkube.models.core_v1 import Container, Pod

from kernelet.core.api.times import format_seconds, now, parse

from . import pods
from .backoff import Backoff
from .containers import LABEL_HASH, restart_of
from .plugins import ContainerState, ContainerStatus
from .probes import ContainerProbes
from .status import ContainerView

_KILLED = 137


@dataclass(slots=True)
class Slot:
    """A container's place, the attempt in it and what decides about the next one."""

    view: ContainerView
    init: bool
    next_attempt: int = 0
    restart: Backoff = field(default_factory=Backoff)
    pull: Backoff = field(default_factory=lambda: Backoff(first_is_free=False))
    config: Backoff = field(default_factory=lambda: Backoff(first_is_free=False, first=1.0, longest=60.0))
    """Of a ConfigMap, Secret or field that is missing."""
    probes: ContainerProbes | None = None
    starting: str = ""
    """Id of the container being started: its end may be told before its start is."""
    noted: str = ""
    """Id of the ended container for which the back-off was advanced."""

    @property
    def container(self) -> Container:
        return self.view.container

    def fill(self, found: ContainerStatus) -> None:
        """A new attempt takes the place."""
        self.starting = ""
        self.view.previous = self.view.current
        self.view.current = found
        self.view.waiting = None
        self.view.message = ""
        self.view.restarts = restart_of(found)
        self.next_attempt = self.view.restarts + 1

    def vanished(self) -> None:
        """The runtime no longer knows the container, for instance after `docker rm -f`."""
        if self.view.current is None:
            return
        ended = format_seconds(now())
        if self.view.exited:
            return
        self.view.current = replace(
            self.view.current, state=ContainerState.EXITED, pid=0, exit_code=_KILLED, finished_at=ended
        )

    def stop_probes(self) -> None:
        if self.probes is not None:
            self.probes.stop()
            self.probes = None

    def take_verdict(self) -> None:
        """Copies what the probes say into the view."""
        state = self.probes.state if self.probes and self.view.running else None
        self.view.ready = bool(state and state.ready)
        self.view.started = bool(state and state.started)

    @property
    def outdated(self) -> bool:
        """Whether the running container is of another image than the pod now states."""
        current = self.view.current
        return current is not None and current.labels.get(LABEL_HASH) not in (None, pods.spec_hash(self.container))

    def ran_for(self) -> float:
        """Seconds the ended attempt ran."""
        current = self.view.current
        if current is None or not self.view.exited:
            return 0.0
        return max(0.0, (parse(current.finished_at) - parse(current.started_at)).total_seconds())

    def may_restart(self, policy: str) -> bool:
        """Whether an ended container is to be started again (restartPolicy; init containers until they succeed)."""
        if pods.is_sidecar(self.container):
            return True
        if self.init:
            return policy != "Never" and not self.view.succeeded
        return policy == "Always" or (policy == "OnFailure" and not self.view.succeeded)


def make_slots(pod: Pod) -> tuple[list[Slot], list[Slot]]:
    """Places for the init containers and the containers of a pod."""
    spec = pods.spec(pod)
    return (
        [Slot(ContainerView(one), init=True) for one in spec.initContainers or []],
        [Slot(ContainerView(one), init=False) for one in spec.containers],
    )


def adopt(slot: Slot, found: Sequence[ContainerStatus]) -> list[ContainerStatus]:
    """Puts containers that exist already into their place; returns those that are of no use any more."""
    attempts = sorted(found, key=restart_of)
    never_started = [one for one in attempts if one.state is ContainerState.CREATED]
    usable = [one for one in attempts if one.state is not ContainerState.CREATED]
    for one in usable[-2:]:
        slot.fill(one)
    return never_started + usable[:-2]
