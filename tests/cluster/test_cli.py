"""The command lines at work on a cluster: `kernelet`, and `kubectl` where it does the same."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.cluster import Cluster, Ran, Space, eventually, is_ready, run
from support.manifests import SLEEP, deployment, pod, service

from kernelet.agents.cluster.build import kernelet_command

JSON = dict[str, Any]
COMMAND_LINES = pytest.mark.parametrize("program", ["kernelet", "kubectl"])


class Shell:
    """One of the two programs in the namespace of a test."""

    def __init__(self, space: Space, program: str = "kernelet") -> None:
        self._space = space
        self._run = space.cluster.kernelet if program == "kernelet" else space.cluster.kubectl

    async def __call__(self, *words: str, **options: Any) -> Ran:
        return await self._run("-n", self._space.name, *words, **options)


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Manifests, one a file, in YAML and JSON."""
    made = tmp_path / "manifests"
    made.mkdir()
    (made / "web.yaml").write_text(yaml.safe_dump_all([service("web"), deployment("web", 1)]))
    (made / "settings.json").write_text(json.dumps(config_map("a")))
    (made / "notes.txt").write_text("no manifest")
    return made


def config_map(value: str) -> JSON:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"key": value}}


@COMMAND_LINES
async def test_a_folder_is_applied_changed_and_deleted(space: Space, folder: Path, program: str) -> None:
    shell = Shell(space, program)
    done = (await shell("apply", "-f", str(folder))).out
    assert sorted(done.splitlines()) == [
        "configmap/settings created", "deployment.apps/web created", "service/web created",
    ]  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(config_map("b")))
    done = (await shell("apply", "-f", str(folder))).out
    assert sorted(done.splitlines()) == [
        "configmap/settings configured", "deployment.apps/web unchanged", "service/web unchanged",
    ]  # fmt: skip
    assert (await space.get("configmaps", "settings"))["data"] == {"key": "b"}
    await shell("rollout", "status", "deployment/web")
    await space.pods_ready("app=web", 1)
    done = (await shell("delete", "-f", str(folder))).out
    assert len(done.splitlines()) == 3
    await space.until("pods", lambda pods: not pods, 30)


@COMMAND_LINES
async def test_objects_are_shown_as_tables_names_yaml_and_json(space: Space, program: str) -> None:
    shell = Shell(space, program)
    await space.create(pod("one"))
    found = await space.pod_until("one", is_ready)
    table = rows((await shell("get", "pods")).out)
    assert table[0] == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    assert table[1][:4] == ["one", "1/1", "Running", "0"]
    wide = rows((await shell("get", "pods", "-o", "wide")).out)
    assert wide[0][5:7] == ["IP", "NODE"]
    assert wide[1][5:7] == [found["status"]["podIP"], found["spec"]["nodeName"]]
    assert (await shell("get", "pods", "-o", "name")).out == "pod/one\n"
    one = json.loads((await shell("get", "pod", "one", "-o", "json")).out)
    assert one["metadata"]["uid"] == found["metadata"]["uid"]
    assert yaml.safe_load((await shell("get", "pod/one", "-o", "yaml")).out)["spec"] == one["spec"]
    listed = json.loads((await shell("get", "pods", "-o", "json")).out)
    assert (listed["kind"], [item["metadata"]["name"] for item in listed["items"]]) == ("List", ["one"])
    assert (await shell("get", "pods", "-l", "app=other", "-o", "name")).out == ""


@COMMAND_LINES
async def test_changes_are_watched_as_they_come(space: Space, program: str) -> None:
    argv = ["kubectl"] if program == "kubectl" else kernelet_command()
    process = await asyncio.create_subprocess_exec(
        *argv, "--kubeconfig", space.cluster.kubeconfig, "-n", space.name, "get", "pods", "-w",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    seen: list[str] = []

    async def until(*words: str) -> None:
        """Reads lines until one has all of these words."""
        assert process.stdout is not None
        async with asyncio.timeout(30):
            while not (seen and all(word in seen[-1] for word in words)):
                seen.append((await process.stdout.readline()).decode())
                assert seen[-1], "the watch ended"

    try:
        await space.create(pod("before"))
        await until("before")  # from here on it watches
        await space.create(pod("watched"))
        await until("watched", "1/1")
        assert any("watched" in line and "Pending" in line for line in seen)
        assert seen[0].split()[:3] == ["NAME", "READY", "STATUS"]
    finally:
        process.kill()
        await process.wait()


@COMMAND_LINES
async def test_a_description_tells_the_state_and_the_events(space: Space, program: str) -> None:
    await space.create(pod("told", labels={"app": "told", "tier": "test"}))
    found = await space.pod_until("told", is_ready)
    await started_is_told(space)
    text = (await Shell(space, program)("describe", "pod", "told")).out
    for words in ("Started", "tier=test", found["spec"]["nodeName"], found["status"]["podIP"], "Scheduled", "Running"):
        assert words in text, words


@COMMAND_LINES
async def test_labels_replicas_and_rollouts_are_changed(space: Space, program: str) -> None:
    shell = Shell(space, program)
    await space.create(deployment("web", 1))
    await shell("label", "deployment", "web", "tier=front")
    assert (await space.get("deployments", "web"))["metadata"]["labels"] == {"tier": "front"}
    done = await shell("label", "deployment", "web", "tier=back", ok=False)
    assert (done.code, "--overwrite" in done.err) == (1, True), done
    await shell("label", "deployment", "web", "tier-")
    assert not (await space.get("deployments", "web"))["metadata"].get("labels")
    await shell("scale", "deployment/web", "--replicas=2")
    done = await shell("rollout", "status", "deployment/web")
    assert 'deployment "web" successfully rolled out' in done.out
    before = {one["metadata"]["uid"] for one in await space.pods_ready("app=web", 2)}
    await shell("rollout", "restart", "deployment/web")
    await shell("rollout", "status", "deployment/web")
    pods = await space.pods_ready("app=web", 2)
    assert not before & {one["metadata"]["uid"] for one in pods}


async def test_events_are_told_oldest_first(space: Space) -> None:
    await space.create(pod("told"))
    await space.pod_until("told", is_ready)

    await started_is_told(space)
    table = rows((await Shell(space)("events")).out)
    column = table[0].index("REASON") - 1  # LAST SEEN is one column of two words
    found = [row[column] for row in table[1:]]
    assert found.index("Scheduled") < found.index("Created") < found.index("Started")


async def started_is_told(space: Space) -> None:
    """Events are written after what they tell of has happened."""
    await space.until("events", lambda found: any(one["reason"] == "Started" for one in found), 15)


@COMMAND_LINES
async def test_failures_are_one_line_and_an_exit_status(space: Space, program: str) -> None:
    shell = Shell(space, program)
    for words, status, told in (
        (["get", "pod", "nobody"], 1, 'pods "nobody" not found'),
        (["get", "nonsense"], 1, "nonsense"),
        (["exec", "nobody", "--", "true"], 1, 'pods "nobody" not found'),
        (["logs", "nobody"], 1, 'nobody" not found'),
        (["delete", "service", "nobody"], 1, 'services "nobody" not found'),
    ):
        done = await shell(*words, ok=False)
        assert done.code == status, (words, done)
        assert told in done.err, (words, done)
        assert "Traceback" not in done.err
        assert not done.out


async def test_what_is_wrong_with_a_manifest_is_named(space: Space, tmp_path: Path) -> None:
    shell = Shell(space)
    wrong = deployment("web", 1)
    wrong["spec"]["replicas"] = "many"
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(wrong))
    done = await shell("apply", "-f", str(file), ok=False)
    assert done.code == 1
    assert "spec.replicas" in done.err
    assert str(file) in done.err
    done = await shell("apply", "-f", str(tmp_path / "missing.yaml"), ok=False)
    assert (done.code, "missing.yaml" in done.err) == (1, True), done


async def test_a_wrong_option_is_status_2_and_a_cluster_that_is_away_is_status_1(space: Space, tmp_path: Path) -> None:
    done = await space.cluster.kernelet("get", "pods", "--no-such-option", ok=False)
    assert (done.code, "--no-such-option" in done.err) == (2, True), done
    away = tmp_path / "away.kubeconfig"
    text = Path(space.cluster.kubeconfig).read_text()
    away.write_text(text.replace("registry.sock", "nobody.sock"))
    done = await run(*kernelet_command(), "--kubeconfig", str(away), "--request-timeout", "1", "get", "pods")
    assert done.code == 1
    assert done.err.startswith("error: ")
    assert len(done.err.splitlines()) == 1, done


async def test_types_and_names_are_completed(space: Space) -> None:
    await space.create(pod("alpha", *SLEEP), pod("beta", *SLEEP))
    command = kernelet_command()[0]

    async def complete(words: str) -> list[str]:
        asked = f"kernelet --kubeconfig {space.cluster.kubeconfig} -n {space.name} {words}"
        count = len(asked.split()) - (0 if words.endswith(" ") else 1)
        environment = {"_KERNELET_COMPLETE": "bash_complete", "COMP_WORDS": asked, "COMP_CWORD": str(count)}
        done = await run(command, env=environment)
        return [line.partition(",")[2] for line in done.out.splitlines()]

    assert "deployments" in await complete("get dep")
    assert await complete("get pods al") == ["alpha"]
    assert set(await complete("logs ")) == {"alpha", "beta"}
    script = (await run(command, "completion", "bash")).out
    assert "_KERNELET_COMPLETE=bash_complete" in script


async def test_the_clusters_of_this_machine_are_listed(cluster: Cluster) -> None:
    found = rows((await cluster.kernelet("cluster", "list")).out)
    assert [cluster.name, "3", "running", f"https://127.0.0.1:{cluster.spec.api_port}"] in found
    printed = (await cluster.kernelet("cluster", "kubeconfig", cluster.name)).out
    assert printed == Path(cluster.kubeconfig).read_text()
    done = await cluster.kernelet("cluster", "kubeconfig", "nobody", ok=False)
    assert (done.code, "nobody" in done.err) == (1, True)


async def test_a_deleted_pod_is_waited_for(space: Space) -> None:
    await space.create(pod("going", *SLEEP))
    found = await space.pod_until("going", is_ready)
    await Shell(space)("delete", "pod", "going")
    assert not await space.list("pods")
    label = f"io.kernelet.pod.uid={found['metadata']['uid']}"
    await eventually(lambda: not space.cluster.containers(label), 5, "no container of the deleted pod")
