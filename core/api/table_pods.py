"""The row of a pod: its status in one word, as printers.go derives it, and ages as a person reads them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from .errors import JSON
from .jsontools import child, children
from .times import parse_or_none

NONE = "<none>"
_MINUTE, _HOUR, _DAY, _YEAR = 60, 3600, 86400, 86400 * 365


def human_age(seconds: float) -> str:
    """At most two units and about three digits: `45s`, `3m20s`, `5h`, `2d3h`, `400d`, `3y40d`."""
    whole = int(seconds)
    if whole < -1:
        return "<invalid>"
    whole = max(whole, 0)
    if whole < 2 * _MINUTE:
        return f"{whole}s"
    if whole < 10 * _MINUTE:
        return _two(whole, _MINUTE, "m", 1, "s")
    if whole < 3 * _HOUR:
        return f"{whole // _MINUTE}m"
    if whole < 8 * _HOUR:
        return _two(whole, _HOUR, "h", _MINUTE, "m")
    if whole < 2 * _DAY:
        return f"{whole // _HOUR}h"
    if whole < 8 * _DAY:
        return _two(whole, _DAY, "d", _HOUR, "h")
    if whole < 2 * _YEAR:
        return f"{whole // _DAY}d"
    if whole < 8 * _YEAR:
        return _two(whole, _YEAR, "y", _DAY, "d")
    return f"{whole // _YEAR}y"


def _two(seconds: int, large: int, large_name: str, small: int, small_name: str) -> str:
    rest = seconds % large // small
    return f"{seconds // large}{large_name}" + (f"{rest}{small_name}" if rest else "")


def since(time: Any, now: datetime) -> str:
    """The age of an RFC 3339 text; `<unknown>` where there is none."""
    moment = parse_or_none(time)
    return "<unknown>" if moment is None else human_age((now - moment).total_seconds())


def pod_cells(obj: JSON, now: datetime) -> list[Any]:
    metadata, spec, status = child(obj, "metadata"), child(obj, "spec"), child(obj, "status")
    summary = _Summary(obj)
    restarts = str(summary.restarts)
    last = max(summary.restarted, default=None)
    if summary.restarts and last is not None:
        restarts += f" ({human_age((now - last).total_seconds())} ago)"
    total = len(children(spec, "containers")) + len(summary.sidecars)
    return [
        str(metadata.get("name", "")),
        f"{summary.ready}/{total}",
        summary.reason,
        restarts,
        since(metadata.get("creationTimestamp"), now),
        status.get("podIP") or NONE,
        spec.get("nodeName") or NONE,
        status.get("nominatedNodeName") or NONE,
        _readiness_gates(spec, status),
    ]


def pod_status(obj: JSON) -> str:
    """What kubectl shows as STATUS: `Running`, `Terminating`, `CrashLoopBackOff`, `Init:0/1`, ..."""
    return _Summary(obj).reason


def _readiness_gates(spec: JSON, status: JSON) -> str:
    gates = children(spec, "readinessGates")
    if not gates:
        return NONE
    true = {item.get("type") for item in children(status, "conditions") if item.get("status") == "True"}
    return f"{sum(gate.get('conditionType') in true for gate in gates)}/{len(gates)}"


class _Summary:
    """Reason, ready containers and restarts of a pod, gathered over its containers' states."""

    def __init__(self, obj: JSON) -> None:
        self.spec, self.status = child(obj, "spec"), child(obj, "status")
        self.ready = 0
        self.restarts = 0
        self.restarted: list[datetime] = []
        self.sidecars = {
            item.get("name") for item in children(self.spec, "initContainers") if item.get("restartPolicy") == "Always"
        }
        phase = str(self.status.get("phase", ""))
        self.reason = str(self.status.get("reason") or phase)
        if self._condition("PodScheduled").get("reason") == "SchedulingGated":
            self.reason = "SchedulingGated"
        if not self._initializing() or self._condition("Initialized").get("status") == "True":
            self._containers()
        if child(obj, "metadata").get("deletionTimestamp"):
            if self.status.get("reason") == "NodeLost":
                self.reason = "Unknown"
            elif phase not in ("Succeeded", "Failed"):
                self.reason = "Terminating"

    def _condition(self, kind: str) -> JSON:
        return next((item for item in children(self.status, "conditions") if item.get("type") == kind), {})

    def _count_restarts(self, container: JSON) -> None:
        self.restarts += int(container.get("restartCount") or 0)
        finished = parse_or_none(child(child(container, "lastState"), "terminated").get("finishedAt"))
        if finished is not None:
            self.restarted.append(finished)

    def _initializing(self) -> bool:
        """Whether an init container has yet to finish, which then is the pod's reason."""
        for index, container in enumerate(children(self.status, "initContainerStatuses")):
            self._count_restarts(container)
            state = child(container, "state")
            ended, waiting = state.get("terminated"), child(state, "waiting").get("reason")
            if isinstance(ended, dict) and ended.get("exitCode") == 0:
                continue
            if container.get("name") in self.sidecars and container.get("started"):
                self.ready += bool(container.get("ready"))
                continue
            if isinstance(ended, dict):
                self.reason = f"Init:{_ended(ended)}"
            elif waiting and waiting != "PodInitializing":
                self.reason = f"Init:{waiting}"
            else:
                self.reason = f"Init:{index}/{len(children(self.spec, 'initContainers'))}"
            return True
        return False

    def _containers(self) -> None:
        self.restarts = sum(
            int(item.get("restartCount") or 0)
            for item in children(self.status, "initContainerStatuses")
            if item.get("name") in self.sidecars
        )
        running = False
        for container in reversed(children(self.status, "containerStatuses")):
            self._count_restarts(container)
            state = child(container, "state")
            waiting, ended = child(state, "waiting").get("reason"), state.get("terminated")
            if waiting:
                self.reason = str(waiting)
            elif isinstance(ended, dict):
                self.reason = _ended(ended)
            elif container.get("ready") and "running" in state:
                running = True
                self.ready += 1
        if self.reason == "Completed" and running:
            self.reason = "Running" if self._condition("Ready").get("status") == "True" else "NotReady"


def _ended(terminated: JSON) -> str:
    """Why a container ended: the reason given, else its signal, else its exit code."""
    if terminated.get("reason"):
        return str(terminated["reason"])
    if terminated.get("signal"):
        return f"Signal:{terminated['signal']}"
    return f"ExitCode:{terminated.get('exitCode', 0)}"
