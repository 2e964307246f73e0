"""Pods from creation to removal: real API server, real dockerd, real containers."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from kubelet_world import World, main_state, ready, running, waiting_reason
from lightkube.models.core_v1 import ConfigMap, Event, Pod, Secret
from lightkube.models.meta_v1 import ObjectMeta
from support.waiting import eventually

from kernelet.agents.kubelet.plugins import ContainerState


async def exec_in(world: World, name: str, *command: str) -> str:
    pod = await world.client.get(Pod, name, "default")
    assert pod.status and pod.status.containerStatuses
    container_id = str(pod.status.containerStatuses[0].containerID).removeprefix("docker://")
    result = await world.runtime.exec(container_id, command, 10)
    return result.output.decode()


async def without(world: World, name: str = "") -> bool:
    return not await world.has_container_of(name)


async def reasons(world: World, name: str) -> list[str]:
    """Reasons of the pod's events so far."""
    events = await world.client.list(Event, "default")
    return [str(one.reason) for one in events.items if one.involvedObject.name == name]


async def test_a_pod_runs_and_its_status_says_so(world: World) -> None:
    await world.create("web", "sleep 600")
    status = (await world.until("web", ready))["status"]
    assert status["phase"] == "Running" and status["podIP"] == "127.0.0.1" and status["hostIP"] == "127.0.0.1"
    assert status["qosClass"] == "BestEffort"
    (container,) = status["containerStatuses"]
    assert container["ready"] and container["restartCount"] == 0 and container["containerID"].startswith("docker://")
    kinds = {one["type"]: one["status"] for one in status["conditions"]}
    assert set(kinds.values()) == {"True"} and len(kinds) == 5


async def test_deletion_waits_for_the_routes_then_ends_gracefully_and_leaves_nothing(world: World) -> None:
    order: list[str] = []

    class Routes:
        async def wait_withdrawn(self, pod: Pod, deadline: float) -> None:
            found = [one for one in await world.containers() if one.state is ContainerState.RUNNING]
            order.append(f"withdrawn with {len(found)} running")

    await world.crash()
    world.routes = Routes()
    await world.start()
    folder = world.folder / "words"
    volume = {"name": "words", "hostPath": {"path": str(folder), "type": "DirectoryOrCreate"}}
    await world.create(
        "graceful",
        "trap 'echo term >> /words/log; exit 0' TERM; touch /words/up; while :; do sleep 0.02; done",
        container={
            "volumeMounts": [{"name": "words", "mountPath": "/words"}],
            "lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", "echo prestop >> /words/log"]}}},
            "readinessProbe": {"exec": {"command": ["test", "-e", "/words/up"]}},
        },
        spec={"volumes": [volume]},
    )
    await world.until("graceful", ready)
    await world.client.delete(Pod, "graceful", "default")
    await world.gone("graceful")
    assert order == ["withdrawn with 2 running"]
    assert (folder / "log").read_text().split() == ["prestop", "term"]
    assert await world.containers() == [] and world.network.attached == set()
    assert not list((world.folder / "kubelet" / "pods").iterdir())


async def test_a_pod_removed_by_force_is_torn_down(world: World) -> None:
    await world.create(
        "forced", "trap '' TERM; while :; do sleep 0.05; done", spec={"terminationGracePeriodSeconds": 60}
    )
    await world.until("forced", ready)
    await world.client.delete(Pod, "forced", "default", grace_period=0)
    await world.eventually(lambda: without(world))


async def test_a_container_that_crashes_is_restarted_at_once_then_backs_off(world: World) -> None:
    await world.create("crash", "echo dying; exit 3")
    pod = await world.until("crash", lambda status: waiting_reason(status) == "CrashLoopBackOff")
    (container,) = pod["status"]["containerStatuses"]
    assert container["restartCount"] == 1 and not container["ready"]
    last = container["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"]) == (3, "Error")
    assert "back-off 10s" in container["state"]["waiting"]["message"]
    assert pod["status"]["phase"] == "Running"


async def test_pods_that_end_succeed_or_fail_by_restart_policy(world: World) -> None:
    never = {"restartPolicy": "Never"}
    await world.create("good", "exit 0", spec=never)
    await world.create("bad", "echo -n because > /dev/termination-log; exit 4", spec=never)
    good = await world.until("good", lambda status: status.get("phase") == "Succeeded")
    bad = await world.until("bad", lambda status: status.get("phase") == "Failed")
    assert main_state(good["status"])["terminated"]["reason"] == "Completed"
    ended = main_state(bad["status"])["terminated"]
    assert (ended["exitCode"], ended["message"]) == (4, "because")
    await eventually(lambda: not world.network.attached)


async def test_init_containers_run_to_completion_one_after_the_other(world: World) -> None:
    shared = {"volumeMounts": [{"name": "s", "mountPath": "/s"}]}
    inits = [
        {"name": f"init{n}", "image": world.image, "command": ["sh", "-c", f"echo {n} >> /s/order"], **shared}
        for n in (1, 2)
    ]
    await world.create(
        "inits",
        "sleep 600",
        container=shared,
        spec={"initContainers": inits, "volumes": [{"name": "s", "emptyDir": {}}]},
    )
    pod = await world.until("inits", ready)
    assert await exec_in(world, "inits", "cat", "/s/order") == "1\n2\n"
    states = [one["state"]["terminated"]["reason"] for one in pod["status"]["initContainerStatuses"]]
    assert states == ["Completed", "Completed"]


async def test_a_failing_init_container_holds_the_pod_back(world: World) -> None:
    inits = [{"name": "never", "image": world.image, "command": ["sh", "-c", "exit 1"]}]
    await world.create("held", "sleep 600", spec={"initContainers": inits})
    pod = await world.until("held", lambda status: "CrashLoopBackOff" in json.dumps(status))
    assert pod["status"]["phase"] == "Pending" and waiting_reason(pod["status"]) == "PodInitializing"


async def test_readiness_follows_the_probe_and_liveness_restarts(world: World) -> None:
    probe = {"periodSeconds": 1, "failureThreshold": 1}
    await world.create(
        "probed",
        "touch /live /ready; sleep 600",
        container={
            "readinessProbe": {"exec": {"command": ["test", "-e", "/ready"]}, **probe},
            "livenessProbe": {"exec": {"command": ["test", "-e", "/live"]}, **probe},
        },
        spec={"terminationGracePeriodSeconds": 1},
    )
    await world.until("probed", ready)
    await exec_in(world, "probed", "rm", "/ready")
    await world.until("probed", lambda status: running(status) and not ready(status))
    await exec_in(world, "probed", "rm", "/live")
    pod = await world.until(
        "probed", lambda status: status["containerStatuses"][0]["restartCount"] == 1 and ready(status)
    )
    assert pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 137
    assert {"Unhealthy", "Killing"} <= set(await reasons(world, "probed"))


async def test_an_image_that_cannot_be_had_is_named(world: World) -> None:
    await world.create("noimage", container={"image": "127.0.0.1:9/none:1"})
    pod = await world.until("noimage", lambda status: waiting_reason(status) in ("ErrImagePull", "ImagePullBackOff"))
    assert "127.0.0.1:9/none:1" in main_state(pod["status"])["waiting"]["message"]
    assert pod["status"]["phase"] == "Pending"
    await world.client.delete(Pod, "noimage", "default")
    await world.gone("noimage")


async def test_configuration_reaches_the_container_and_volumes_follow_their_source(world: World) -> None:
    metadata = {"namespace": "default"}
    await world.create(
        "configured",
        "sleep 600",
        container={
            "env": [
                {"name": "GREETING", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "word"}}},
                {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "BOTH", "value": "$(GREETING)-$(POD)"},
            ],
            "volumeMounts": [{"name": "c", "mountPath": "/c"}, {"name": "k", "mountPath": "/k"}],
        },
        spec={
            "volumes": [
                {"name": "c", "configMap": {"name": "conf"}},
                {"name": "k", "secret": {"secretName": "key", "defaultMode": 0o400}},
            ]
        },
    )

    async def mount_failed() -> bool:
        return "FailedMount" in await reasons(world, "configured")

    async def follows() -> bool:
        return await exec_in(world, "configured", "cat", "/c/word") == "bye"

    await world.eventually(mount_failed)
    await world.client.create(ConfigMap(metadata=ObjectMeta(name="conf", **metadata), data={"word": "hello"}))
    await world.client.create(Secret(metadata=ObjectMeta(name="key", **metadata), data={"pin": "MTIzNA=="}))
    await world.until("configured", ready)
    assert (await exec_in(world, "configured", "sh", "-c", "echo $BOTH; cat /k/pin")).split() == [
        "hello-configured",
        "1234",
    ]
    assert "10.96.0.1" in await exec_in(world, "configured", "sh", "-c", "echo $KUBERNETES_SERVICE_HOST")
    assert "ndots:5" in await exec_in(world, "configured", "cat", "/etc/resolv.conf")
    assert list(world.config.memory.rglob("pin")), "secrets live in the memory folder"  # type: ignore[union-attr]
    await world.client.patch(ConfigMap, "conf", {"data": {"word": "bye"}}, "default")
    await world.eventually(follows)


async def test_a_sidecar_starts_before_the_others_and_does_not_keep_a_job_alive(world: World) -> None:
    sidecar = {"name": "side", "image": world.image, "restartPolicy": "Always", "command": ["sh", "-c", "sleep 600"]}
    spec = {"initContainers": [sidecar], "restartPolicy": "Never", "terminationGracePeriodSeconds": 0}
    await world.create("job", "sleep 0.5", spec=spec)
    pod = await world.until("job", running)
    assert "running" in pod["status"]["initContainerStatuses"][0]["state"]
    await world.until("job", lambda status: status.get("phase") == "Succeeded")
    await eventually(lambda: not world.network.attached)
    assert all(one.state is ContainerState.EXITED for one in await world.containers())


async def test_a_pod_past_its_active_deadline_fails(world: World) -> None:
    await world.create("late", "sleep 600", spec={"activeDeadlineSeconds": 1, "terminationGracePeriodSeconds": 0})
    pod = await world.until("late", lambda status: status.get("phase") == "Failed")
    assert pod["status"]["reason"] == "DeadlineExceeded"


async def test_the_death_of_the_sandbox_makes_the_pod_anew(world: World) -> None:
    await world.create("sand", "sleep 600", spec={"terminationGracePeriodSeconds": 1})
    first = await world.until("sand", ready)
    pause = next(one for one in await world.containers() if one.labels["io.kernelet.kind"] == "sandbox")
    await world.runtime.stop(pause.id, 0)
    pod = await world.until(
        "sand", lambda status: ready(status) and status["containerStatuses"][0]["restartCount"] == 1
    )
    assert identity(pod) != identity(first)
    kinds = sorted(
        one.labels["io.kernelet.kind"] for one in await world.containers() if one.state is ContainerState.RUNNING
    )
    assert kinds == ["container", "sandbox"]


def identity(pod: dict[str, Any]) -> tuple[str, str, int]:
    (container,) = pod["status"]["containerStatuses"]
    return container["containerID"], container["state"]["running"]["startedAt"], container["restartCount"]


async def test_a_new_kubelet_adopts_what_runs_and_removes_what_is_gone(world: World) -> None:
    await world.create("stays", "sleep 600", container={"readinessProbe": {"exec": {"command": ["true"]}}})
    await world.create("crashed", "exit 1")
    await world.create("leaves", "sleep 600", spec={"terminationGracePeriodSeconds": 1})
    before = await world.until("stays", ready)
    await world.until("leaves", ready)
    await world.until("crashed", lambda status: waiting_reason(status) == "CrashLoopBackOff")
    await world.crash()
    await world.client.delete(Pod, "leaves", "default", grace_period=0)
    begun = time.monotonic()
    await world.start()
    await world.eventually(lambda: without(world, "leaves"))
    after = await world.client.raw.get(world.pods, "stays", "default")
    assert identity(after) == identity(before) and ready(after["status"])
    flaps = [one for one in after["status"]["conditions"] if one not in before["status"]["conditions"]]
    assert flaps == [], "readiness did not flap"
    crashed = await world.until("crashed", lambda status: status["containerStatuses"][0]["restartCount"] >= 2)
    assert time.monotonic() - begun < 15 and crashed["status"]["phase"] == "Running"


async def test_a_kubelet_that_dies_while_it_starts_pods_leaves_no_doubles(world: World) -> None:
    names = [f"mid{number}" for number in range(4)]
    for name in names:
        await world.create(name, "sleep 600", spec={"terminationGracePeriodSeconds": 0})
    for _ in range(3):
        await asyncio.sleep(0.25)
        await world.crash()
        await world.start()
    found = [await world.until(name, ready) for name in names]
    assert [one["status"]["containerStatuses"][0]["restartCount"] for one in found] == [0] * len(names)

    async def no_doubles() -> bool:
        return len(await world.containers()) == 2 * len(names)

    await world.eventually(no_doubles)


async def test_an_idle_kubelet_writes_no_status(world: World) -> None:
    await world.create(
        "quiet", "sleep 600", container={"readinessProbe": {"exec": {"command": ["true"]}, "periodSeconds": 1}}
    )
    before = await world.until("quiet", ready)
    await asyncio.sleep(3)
    after = await world.client.raw.get(world.pods, "quiet", "default")
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
