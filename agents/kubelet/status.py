"""A pod's status from what its containers do: a pure function, so that every case can be tabled.

Source: Kubernetes' pod lifecycle (phase, conditions, container states) and core/v1 PodStatus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from lightkube.models.core_v1 import Container, Pod

from kernelet.core.api.times import format_seconds, parse

from . import pods
from .plugins import ContainerState, ContainerStatus

JSON = dict[str, Any]

POD_SCHEDULED = "PodScheduled"
READY_TO_START = "PodReadyToStartContainers"
INITIALIZED = "Initialized"
CONTAINERS_READY = "ContainersReady"
READY = "Ready"
OWN_CONDITIONS = (READY_TO_START, INITIALIZED, READY, CONTAINERS_READY, POD_SCHEDULED)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a container does not run."""

    reason: str
    message: str = ""


@dataclass(slots=True)
class ContainerView:
    """One container as the worker knows it."""

    container: Container
    current: ContainerStatus | None = None
    previous: ContainerStatus | None = None
    waiting: Waiting | None = None
    """Why it is not started (again); None while it may."""
    ready: bool = False
    started: bool = False
    """The startup probe has passed, or there is none."""
    restarts: int = 0
    message: str = ""
    """The last words of a terminated container."""

    @property
    def running(self) -> bool:
        return self.current is not None and self.current.state is ContainerState.RUNNING

    @property
    def exited(self) -> bool:
        return self.current is not None and self.current.state is ContainerState.EXITED

    @property
    def succeeded(self) -> bool:
        return self.exited and self.current is not None and self.current.exit_code == 0


@dataclass(slots=True)
class PodView:
    """One pod as the worker knows it."""

    inits: list[ContainerView]
    mains: list[ContainerView]
    addresses: tuple[str, ...] = ()
    sandbox_ready: bool = False
    ended: bool = False
    """Nothing of the pod will start any more: it is being deleted, or past its deadline."""
    failure: Waiting | None = None
    """Makes the phase Failed with this reason (DeadlineExceeded, Evicted)."""
    host_address: str = ""
    started_at: str = ""


def initialized(view: PodView) -> bool:
    """Whether all init containers are done; a sidecar is done once it has started.

    Once a container has started they were done, even if their remains were since removed from the node.
    """
    return any(one.current for one in view.mains) or all(init_done(one) for one in view.inits)


def init_done(view: ContainerView) -> bool:
    """Whether the next container may start after this init container."""
    if pods.is_sidecar(view.container):
        return view.running and view.started
    return view.succeeded


def phase(pod: Pod, view: PodView) -> str:
    """Pending, Running, Succeeded or Failed."""
    if view.failure:
        return "Failed"
    policy = pods.spec(pod).restartPolicy or "Always"
    if not initialized(view):
        failed = any(one.exited and not one.succeeded for one in view.inits if not pods.is_sidecar(one.container))
        return "Failed" if (failed and policy == "Never") or view.ended else "Pending"
    if any(one.running for one in view.mains):
        return "Running"
    if all(one.exited for one in view.mains):
        good = all(one.succeeded for one in view.mains)
        if view.ended or policy == "Never" or (policy == "OnFailure" and good):
            return "Succeeded" if good else "Failed"
        return "Running"
    if view.ended:
        return "Failed"
    # Some never ran; what ran before and waits for its restart keeps the pod running.
    return "Pending" if any(one.current is None and one.previous is None for one in view.mains) else "Running"


def pod_status(pod: Pod, view: PodView, now: str, last: JSON | None = None) -> JSON:
    """The whole status the kubelet owns, in the API's JSON form.

    `now` is an RFC 3339 time in seconds; `last` is what this function gave before, from which times of transition are
    kept (the API's copy in `pod` may be older).
    """
    current = phase(pod, view)
    status: JSON = {
        "phase": current,
        "conditions": _conditions(pod, view, current, now, last or {}),
        "hostIP": view.host_address,
        "hostIPs": [{"ip": view.host_address}],
        "startTime": view.started_at,
        "qosClass": pods.quality(pod),
        "containerStatuses": [container_status(one, view) for one in view.mains],
    }
    if pods.meta(pod).generation:
        status["observedGeneration"] = pods.meta(pod).generation
    if view.inits:
        status["initContainerStatuses"] = [container_status(one, view) for one in view.inits]
    if view.addresses:
        status |= {"podIP": view.addresses[0], "podIPs": [{"ip": address} for address in view.addresses]}
    if view.failure:
        status |= {"reason": view.failure.reason, "message": view.failure.message}
    return status


def container_status(one: ContainerView, view: PodView) -> JSON:
    found = one.current or one.previous
    status: JSON = {
        "name": one.container.name,
        "image": one.container.image or "",
        "imageID": found.image_id if found else "",
        "ready": _is_ready(one),
        "started": one.running and one.started,
        "restartCount": one.restarts,
        "state": _state(one, view),
        "lastState": {},
    }
    if found:
        status["containerID"] = f"docker://{found.id}"
    last = one.previous
    if one.exited and one.waiting:
        last = one.current
    if last is not None and last.state is ContainerState.EXITED:
        status["lastState"] = {"terminated": _terminated(last, "")}
    return status


def _is_ready(one: ContainerView) -> bool:
    if one.container.restartPolicy == "Always" or one.running:
        return one.running and one.ready
    return False


def _state(one: ContainerView, view: PodView) -> JSON:
    if one.running and one.current:
        return {"running": {"startedAt": _seconds(one.current.started_at)}}
    if one.exited and one.current and one.waiting is None:
        return {"terminated": _terminated(one.current, one.message)}
    waiting = one.waiting or Waiting("ContainerCreating" if initialized_before(one, view) else "PodInitializing")
    return {"waiting": {"reason": waiting.reason} | ({"message": waiting.message} if waiting.message else {})}


def initialized_before(one: ContainerView, view: PodView) -> bool:
    """Whether everything that must be done before this container may start is done."""
    before = view.inits
    if any(other is one for other in view.inits):
        before = view.inits[: next(index for index, other in enumerate(view.inits) if other is one)]
    return all(init_done(other) for other in before)


def _terminated(found: ContainerStatus, message: str) -> JSON:
    reason = "Completed" if found.exit_code == 0 else "Error"
    if found.oom_killed:
        reason = "OOMKilled"
    elif found.error:
        reason, message = "StartError", found.error
    state: JSON = {
        "exitCode": found.exit_code,
        "reason": reason,
        "startedAt": _seconds(found.started_at),
        "finishedAt": _seconds(found.finished_at),
        "containerID": f"docker://{found.id}",
    }
    if found.exit_code > 128:
        state["signal"] = found.exit_code - 128
    if message:
        state["message"] = message
    return state


def _seconds(text: str) -> str:
    return format_seconds(parse(text))


def _conditions(pod: Pod, view: PodView, current: str, now: str, last: JSON) -> list[JSON]:
    over = current in ("Succeeded", "Failed")
    done = "PodCompleted" if current == "Succeeded" else ("PodFailed" if current == "Failed" else "")
    incomplete = [] if initialized(view) else [one.container.name for one in view.inits if not init_done(one)]
    ready_inits = [one for one in view.inits if pods.is_sidecar(one.container)]
    unready = [one.container.name for one in [*ready_inits, *view.mains] if not _is_ready(one)]
    unready_text = f"containers with unready status: [{' '.join(unready)}]"
    wanted = [
        _condition(READY_TO_START, view.sandbox_ready),
        _condition(
            INITIALIZED,
            not incomplete or current == "Succeeded",
            "ContainersNotInitialized",
            f"containers with incomplete status: [{' '.join(incomplete)}]",
        ),
    ]
    contained = not unready and not over
    why = (done, "") if over else ("ContainersNotReady", unready_text)
    gates = _closed_gates(pod)
    if contained and gates:
        wanted.append(_condition(READY, False, "ReadinessGatesNotReady", f"gates not true: {' '.join(gates)}"))
    else:
        wanted.append(_condition(READY, contained, *why))
    wanted.append(_condition(CONTAINERS_READY, contained, *why))
    wanted.append(_condition(POD_SCHEDULED, True))
    before = {one["type"]: one for one in msgspec.to_builtins(pods.status(pod).conditions or [])}
    foreign = [_plain(one) for kind, one in before.items() if kind not in OWN_CONDITIONS]
    before |= {one["type"]: one for one in last.get("conditions", [])}
    return [_with_transition(one, before.get(one["type"]), now) for one in wanted] + foreign


def _condition(kind: str, holds: bool, reason: str = "", message: str = "") -> JSON:
    condition: JSON = {"type": kind, "status": "True" if holds else "False"}
    if not holds and reason:
        condition["reason"] = reason
    if not holds and message:
        condition["message"] = message
    return condition


def _closed_gates(pod: Pod) -> list[str]:
    held = {one.type: one.status for one in pods.status(pod).conditions or []}
    return [
        gate.conditionType for gate in pods.spec(pod).readinessGates or [] if held.get(gate.conditionType) != "True"
    ]


def _with_transition(condition: JSON, before: JSON | None, now: str) -> JSON:
    """lastTransitionTime stays as long as the status does."""
    kept = before.get("lastTransitionTime") if before and before["status"] == condition["status"] else None
    return condition | {"lastTransitionTime": _text(kept) if kept else now}


def _plain(condition: JSON) -> JSON:
    return {key: _text(value) for key, value in condition.items() if value is not None}


def _text(value: Any) -> Any:
    """Times as the API writes them; to_builtins leaves some precision forms alone."""
    if isinstance(value, str) and value.endswith("+00:00"):
        return format_seconds(parse(value))
    return value


def merge(before: Sequence[JSON], now: JSON) -> JSON:
    """A JSON merge patch (RFC 7386) that turns any of the statuses written before into `now`."""
    gone = {key: None for old in before for key in old if key not in now}
    return gone | now
