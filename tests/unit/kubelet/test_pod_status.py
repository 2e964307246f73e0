"""Status from container states, case by case."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from lightkube.models.core_v1 import Pod

from kernelet.agents.kubelet.backoff import Backoff
from kernelet.agents.kubelet.plugins import ContainerState, ContainerStatus
from kernelet.agents.kubelet.status import ContainerView, PodView, Waiting, phase, pod_status
from kernelet.agents.kubelet.statuswriter import plain

NOW, THEN = "2026-01-01T00:00:10Z", "2026-01-01T00:00:00Z"


def runtime_status(state: ContainerState, code: int = 0, **changes: Any) -> ContainerStatus:
    fields = {"id": "abc", "name": "kl_main", "labels": {}, "pid": 0, "image": "i", "image_id": "sha256:1"}
    times = {"created_at": THEN, "started_at": THEN, "finished_at": THEN, "oom_killed": False}
    return ContainerStatus(state=state, exit_code=code, **(fields | times | changes))  # type: ignore[arg-type]


RUN = runtime_status(ContainerState.RUNNING)
GOOD = runtime_status(ContainerState.EXITED, 0)
BAD = runtime_status(ContainerState.EXITED, 1)


def pod_of(policy: str = "Always", inits: int = 0, mains: int = 1, **status: Any) -> Pod:
    spec = {"restartPolicy": policy, "containers": [{"name": f"m{n}", "image": "i"} for n in range(mains)]}
    spec["initContainers"] = [{"name": f"i{n}", "image": "i"} for n in range(inits)]
    return msgspec.convert({"metadata": {"name": "p"}, "spec": spec, "status": status}, Pod)


def view_of(pod: Pod, inits: tuple[ContainerStatus | None, ...], mains: tuple[ContainerStatus | None, ...]) -> PodView:
    assert pod.spec
    first = [ContainerView(c, current=s) for c, s in zip(pod.spec.initContainers or [], inits, strict=True)]
    return PodView(first, [ContainerView(c, current=s) for c, s in zip(pod.spec.containers, mains, strict=True)])


@pytest.mark.parametrize(
    ("policy", "inits", "mains", "expected"),
    [
        ("Always", (), (None,), "Pending"),
        ("Always", (), (RUN,), "Running"),
        ("Always", (), (RUN, None), "Running"),
        ("Always", (), (GOOD,), "Running"),
        ("Always", (), (BAD,), "Running"),
        ("OnFailure", (), (GOOD,), "Succeeded"),
        ("OnFailure", (), (BAD,), "Running"),
        ("OnFailure", (), (GOOD, BAD), "Running"),
        ("Never", (), (GOOD,), "Succeeded"),
        ("Never", (), (GOOD, BAD), "Failed"),
        ("Never", (), (RUN, BAD), "Running"),
        ("Always", (RUN,), (None,), "Pending"),
        ("Always", (BAD,), (None,), "Pending"),
        ("Never", (BAD,), (None,), "Failed"),
        ("Never", (GOOD,), (None,), "Pending"),
        ("Always", (None,), (RUN,), "Running"),
    ],
)
def test_the_phase_follows_the_containers(
    policy: str, inits: tuple[Any, ...], mains: tuple[Any, ...], expected: str
) -> None:
    pod = pod_of(policy, len(inits), len(mains))
    assert phase(pod, view_of(pod, inits, mains)) == expected


@pytest.mark.parametrize(("main", "expected"), [(GOOD, "Succeeded"), (BAD, "Failed"), (None, "Failed")])
def test_a_pod_that_was_ended_has_a_final_phase_whatever_its_policy(
    main: ContainerStatus | None, expected: str
) -> None:
    pod = pod_of("Always")
    view = view_of(pod, (), (main,))
    view.ended = True
    assert phase(pod, view) == expected


@pytest.mark.parametrize(
    ("one", "state"),
    [
        (ContainerView(None), {"waiting": {"reason": "ContainerCreating"}}),  # type: ignore[arg-type]
        (
            ContainerView(None, waiting=Waiting("ErrImagePull", "m")),
            {"waiting": {"reason": "ErrImagePull", "message": "m"}},
        ),  # type: ignore[arg-type]
        (ContainerView(None, current=RUN), {"running": {"startedAt": THEN}}),  # type: ignore[arg-type]
        (
            ContainerView(None, current=BAD, waiting=Waiting("CrashLoopBackOff")),
            {"waiting": {"reason": "CrashLoopBackOff"}},
        ),  # type: ignore[arg-type]
    ],
)
def test_a_containers_state_is_what_it_does_or_waits_for(one: ContainerView, state: dict[str, Any]) -> None:
    pod = pod_of()
    assert pod.spec
    one.container = pod.spec.containers[0]
    found = pod_status(pod, PodView([], [one]), NOW)["containerStatuses"][0]
    assert found["state"] == state
    if one.waiting and one.waiting.reason == "CrashLoopBackOff":
        assert found["lastState"]["terminated"]["exitCode"] == 1


@pytest.mark.parametrize(
    ("ended", "reason"),
    [
        (GOOD, "Completed"),
        (BAD, "Error"),
        (runtime_status(ContainerState.EXITED, 137, oom_killed=True), "OOMKilled"),
        (runtime_status(ContainerState.EXITED, 127, error="no such file"), "StartError"),
    ],
)
def test_the_reason_of_an_end_is_named(ended: ContainerStatus, reason: str) -> None:
    pod = pod_of("Never")
    state = pod_status(pod, view_of(pod, (), (ended,)), NOW)["containerStatuses"][0]["state"]
    assert state["terminated"]["reason"] == reason and state["terminated"]["exitCode"] == ended.exit_code


def test_a_transition_time_changes_only_with_its_condition() -> None:
    pod = pod_of(
        conditions=[{"type": "Ready", "status": "False", "lastTransitionTime": THEN}, {"type": "x/y", "status": "True"}]
    )
    view = view_of(pod, (), (RUN,))
    before = {one["type"]: one for one in pod_status(pod, view, NOW)["conditions"]}
    assert before["Ready"]["lastTransitionTime"] == THEN and before["Initialized"]["lastTransitionTime"] == NOW
    assert before["x/y"]["status"] == "True", "conditions of others are kept"
    view.mains[0].ready = True
    after = {one["type"]: one for one in pod_status(pod, view, NOW)["conditions"]}
    assert (after["Ready"]["status"], after["Ready"]["lastTransitionTime"]) == ("True", NOW)


def test_restarts_back_off_from_nothing_to_five_minutes_and_start_over_after_a_long_run() -> None:
    backoff = Backoff()
    assert [backoff.failed(0.0) for _ in range(8)] == [0, 10, 20, 40, 80, 160, 300, 300]
    assert backoff.remaining(100.0) == 200.0
    assert backoff.failed(1000.0, ran_for=601) == 0
    pulls = Backoff(first_is_free=False)
    assert [pulls.failed(0.0) for _ in range(3)] == [10, 20, 40]


def test_nulls_and_empty_objects_do_not_count_as_a_difference() -> None:
    assert plain({"a": None, "b": {}, "c": [{"d": {}, "e": 1}]}) == {"c": [{"e": 1}]}
