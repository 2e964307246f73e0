"""Single pods: volumes, restarts, limits, their end, logs and exec."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from support.cluster import Space, address_of, eventually, is_ready, restarts
from support.manifests import PORT, SLEEP, container, pod
from support.traffic import get

JSON = dict[str, Any]


def state(found: JSON) -> JSON:
    statuses = (found.get("status") or {}).get("containerStatuses") or [{}]
    return dict(statuses[0].get("state") or {})


def phase(found: JSON) -> str:
    return str((found.get("status") or {}).get("phase"))


def shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


async def test_volumes_show_configmaps_secrets_shared_and_host_folders(space: Space, tmp_path: Path) -> None:
    (tmp_path / "from-host").write_text("host")
    await space.create(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"key": "config"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"key": "secret"}},
    )
    mounts = [{"name": name, "mountPath": f"/{name}"} for name in ("config", "secret", "shared", "host")]
    writer = container(*shell("echo shared > /shared/file; exec sleep 1000"), name="writer", volumeMounts=mounts[2:3])
    await space.create(
        pod(
            "reader", *SLEEP,
            volumes=[
                {"name": "config", "configMap": {"name": "c"}},
                {"name": "secret", "secret": {"secretName": "s"}},
                {"name": "shared", "emptyDir": {}},
                {"name": "host", "hostPath": {"path": str(tmp_path)}},
            ],
            containers=[container(*SLEEP, volumeMounts=mounts), writer],
            terminationGracePeriodSeconds=1,
        )
    )  # fmt: skip
    found = await space.pod_until("reader", is_ready)
    script = "cat /config/key /secret/key /shared/file /host/from-host; echo -n back > /host/to-host"
    done = await space.cluster.kernelet("exec", "reader", "-n", space.name, "-c", "main", "--", *shell(script))
    assert done.out == "configsecretshared\nhost"
    assert (tmp_path / "to-host").read_text() == "back"
    await space.patch("configmaps", "c", {"data": {"key": "changed"}})

    file = next(space.cluster.paths.node(found["spec"]["nodeName"]).rglob(f"{found['metadata']['uid']}/**/config/key"))
    await eventually(lambda: file.read_text() == "changed", 20, "the changed ConfigMap in its volume")
    done = await space.cluster.kernelet("exec", "reader", "-n", space.name, "--", "cat", "/config/key")
    assert done.out == "changed"


async def test_a_failing_container_is_restarted_with_growing_pauses(space: Space) -> None:
    await space.create(pod("failing", *shell("exit 3")))
    found = await space.pod_until(
        "failing", lambda one: restarts(one) >= 1 and "waiting" in state(one), 40, "the failing pod's back-off"
    )
    assert state(found)["waiting"]["reason"] == "CrashLoopBackOff"
    assert found["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 3
    assert phase(found) == "Running"


async def test_restart_policies_decide_what_an_end_means(space: Space) -> None:
    await space.create(
        pod("good", *shell("exit 0"), restartPolicy="OnFailure"),
        pod("bad", *shell("exit 7"), restartPolicy="Never"),
    )
    good = await space.pod_until("good", lambda one: phase(one) == "Succeeded")
    bad = await space.pod_until("bad", lambda one: phase(one) == "Failed")
    assert state(good)["terminated"]["reason"] == "Completed"
    assert state(bad)["terminated"]["exitCode"] == 7
    assert (restarts(good), restarts(bad)) == (0, 0)


async def test_a_container_that_is_not_alive_is_restarted(space: Space) -> None:
    probe = {"httpGet": {"path": "/healthz", "port": PORT}, "periodSeconds": 1, "failureThreshold": 3}
    await space.create(pod("sick", container={"livenessProbe": probe}, terminationGracePeriodSeconds=1))
    found = await space.pod_until("sick", is_ready)
    assert restarts(found) == 0
    where = space.cluster.node_netns(found["spec"]["nodeName"])
    await get(where, address_of(found), PORT, "/set?healthy=0")
    again = await space.pod_until("sick", lambda one: is_ready(one) and restarts(one) == 1)
    assert address_of(again) == address_of(found)
    told = await space.until("events", lambda found: any(one["reason"] == "Unhealthy" for one in found), 15)
    assert any("Liveness probe failed" in one["message"] for one in told)


async def test_limits_are_those_of_the_containers_cgroup(space: Space) -> None:
    resources = {"limits": {"cpu": "250m", "memory": "64Mi"}, "requests": {"cpu": "100m"}}
    await space.create(pod("limited", *SLEEP, container={"resources": resources}))
    found = await space.pod_until("limited", is_ready)
    identity = found["status"]["containerStatuses"][0]["containerID"].removeprefix("docker://")
    process = space.cluster.inspect(identity)["State"]["Pid"]
    assert limit(process, "memory", "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    assert limit(process, "cpu", "cpu.cfs_quota_us", "cpu.max") in ("25000", "25000 100000")
    assert found["status"]["qosClass"] == "Burstable"


def limit(process: int, controller: str, first: str, second: str) -> str:
    """A file of the process's cgroup, in whichever hierarchy this host has (cgroups(7))."""
    for line in Path(f"/proc/{process}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for root, name in ((f"/sys/fs/cgroup/{controllers}", first), ("/sys/fs/cgroup", second)):
            file = Path(f"{root}{path}/{name}")
            if controller in controllers.split(",") and name == first and file.exists():
                return file.read_text().strip()
            if not controllers and name == second and file.exists():
                return file.read_text().strip()
    raise AssertionError(f"process {process} has no {controller} cgroup")


async def test_a_pod_has_its_grace_period_to_end_and_no_more(space: Space) -> None:
    await space.create(
        pod("deaf", *shell("trap '' TERM; while true; do sleep 0.1; done"), terminationGracePeriodSeconds=3),
        pod("quick", *SLEEP, terminationGracePeriodSeconds=30),
    )
    for name in ("deaf", "quick"):
        await space.pod_until(name, is_ready)
    took: dict[str, float] = {}

    async def end(name: str) -> None:
        began = time.monotonic()
        await space.delete("pods", name)
        await space.gone("pods", name)
        took[name] = time.monotonic() - began

    await asyncio.gather(end("deaf"), end("quick"))
    assert 3.0 <= took["deaf"] < 9.0, took
    assert took["quick"] < 6.0, took


async def test_logs_are_read_by_both_command_lines(space: Space) -> None:
    await space.create(pod("talker", *shell("echo one; echo two >&2; echo three; exec sleep 1000")))
    await space.pod_until("talker", is_ready)
    cluster, where = space.cluster, ("-n", space.name)
    for command in (cluster.kernelet, cluster.kubectl):
        text = (await command("logs", "talker", *where)).out
        assert sorted(text.split()) == ["one", "three", "two"]
        assert (await command("logs", "talker", *where, "--tail", "1")).out.strip() in ("two", "three")


async def test_the_log_of_the_container_before_the_restart_is_kept(space: Space) -> None:
    script = "test -e /shared/x || { echo first; touch /shared/x; exit 1; }; echo second; exec sleep 1000"
    shared = {"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}
    volumes = [{"name": "shared", "emptyDir": {}}]
    await space.create(pod("twice", *shell(script), container=shared, volumes=volumes))
    await space.pod_until("twice", lambda one: restarts(one) == 1 and is_ready(one), 60)
    cluster, where = space.cluster, ("-n", space.name)
    for command in (cluster.kernelet, cluster.kubectl):
        assert (await command("logs", "twice", *where)).out == "second\n"
        assert (await command("logs", "twice", *where, "--previous")).out == "first\n"


async def test_commands_are_run_by_both_command_lines(space: Space) -> None:
    await space.create(pod("shell", *SLEEP))
    await space.pod_until("shell", is_ready)
    cluster, where = space.cluster, ("-n", space.name)
    for command in (cluster.kernelet, cluster.kubectl):
        done = await command("exec", "shell", *where, "--", *shell("echo out; echo err >&2; exit 5"), ok=False)
        assert (done.code, done.out) == (5, "out\n"), done
        assert "err\n" in done.err
        done = await command("exec", "-i", "shell", *where, "--", "cat", stdin="through\n")
        assert done.out == "through\n"


async def test_a_log_is_followed_to_its_end(space: Space) -> None:
    await space.create(pod("short", *shell("for i in 1 2 3; do echo $i; sleep 0.3; done"), restartPolicy="Never"))
    await space.pod_until("short", lambda one: phase(one) == "Running" and "running" in state(one))
    done = await space.cluster.kernelet("logs", "-f", "short", "-n", space.name)
    assert done.out.split() == ["1", "2", "3"]


async def test_nothing_is_left_of_a_pod_that_ended(space: Space) -> None:
    await space.create(pod("brief"))
    found = await space.pod_until("brief", is_ready)
    label, node = f"io.kernelet.pod.uid={found['metadata']['uid']}", found["spec"]["nodeName"]
    folder = space.cluster.paths.node(node)
    assert len(space.cluster.containers(label)) == 2
    assert list(folder.rglob(found["metadata"]["uid"]))
    await space.delete("pods", "brief")
    await space.gone("pods", "brief")
    assert not space.cluster.containers(label)
    await eventually(lambda: not list(folder.rglob(found["metadata"]["uid"])), 5, "no folder of the pod")
