"""Commands against a real API server."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kernelet.core.api.kinds import KINDS
from kernelet.core.cli.failures import CliError
from kernelet.core.cli.rollout import progress
from kernelet.core.cli.status import routes_target
from kernelet.core.client.config import ClientConfig

from .conftest import Cluster

Write = Callable[[str, str], str]

WEB = """
apiVersion: apps/v1
kind: Deployment
metadata:
  name: NAME
  labels: {app: NAME}
spec:
  replicas: 2
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec:
      containers:
      - name: nginx
        image: nginx:1.27
        resources: {limits: {cpu: 0.5}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: NAME, labels: {app: NAME}}
data: {text: "one\\ntwo\\n"}
"""


def manifest(name: str) -> str:
    return WEB.replace("NAME", name)


def get(cluster: Cluster, *arguments: str) -> Any:
    return json.loads(cluster.run("get", *arguments, "-o", "json"))


def test_apply_creates_then_leaves_alone_then_changes(cluster: Cluster, write: Write) -> None:
    file = write("web.yaml", manifest("apply"))
    assert cluster.run("apply", "-f", file) == "deployment.apps/apply created\nconfigmap/apply created\n"
    assert cluster.run("apply", "-f", file) == "deployment.apps/apply unchanged\nconfigmap/apply unchanged\n"
    cluster.run("scale", "deploy/apply", "--replicas", "5")
    cluster.run("annotate", "deploy", "apply", "by=someone")
    changed = manifest("apply").replace("  replicas: 2\n", "").replace("nginx:1.27", "nginx:1.28")
    output = cluster.run("apply", "-f", "-", stdin=changed)
    assert output == "deployment.apps/apply configured\nconfigmap/apply unchanged\n"
    found = get(cluster, "deploy", "apply")
    assert found["spec"]["template"]["spec"]["containers"][0]["image"] == "nginx:1.28"
    # The manifest no longer says how many: what it had set is gone, and the default is back.
    assert found["spec"]["replicas"] == 1
    assert found["metadata"]["annotations"]["by"] == "someone"


def test_one_refused_object_does_not_keep_the_others_back(cluster: Cluster, write: Write) -> None:
    bad = manifest("partly").replace("image: nginx:1.27", "imaeg: nginx:1.27")
    result = cluster.try_run("apply", "-f", write("bad.yaml", bad))
    assert result.exit_code == 1
    assert "configmap/partly created" in result.stdout
    assert "bad.yaml: document 1: " in result.stderr
    assert "spec.template.spec.containers[0].imaeg" in result.stderr or "containers[0].image" in result.stderr


def test_a_dry_run_changes_nothing(cluster: Cluster, write: Write) -> None:
    file = write("web.yaml", manifest("dry"))
    assert "deployment.apps/dry created (dry run)" in cluster.run("apply", "-f", file, "--dry-run=client")
    assert "configmap/dry created (server dry run)" in cluster.run("apply", "-f", file, "--dry-run=server")
    assert 'configmaps "dry" not found' in cluster.fail("get", "cm", "dry")


def test_get_prints_tables_names_and_documents(cluster: Cluster, write: Write) -> None:
    cluster.run("create", "-f", write("web.yaml", manifest("shown")))
    header, row = cluster.run("get", "deploy", "shown").splitlines()
    assert header.split() == ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]
    assert row.split()[:4] == ["shown", "0/2", "0", "0"]
    wide = cluster.run("get", "deploy", "-l", "app=shown", "-o", "wide", "--show-labels", "--no-headers")
    assert wide.split()[5:] == ["nginx", "nginx:1.27", "app=shown", "app=shown"]
    assert (
        cluster.run("get", "deploy,cm", "-l", "app=shown", "-o", "name") == "deployment.apps/shown\nconfigmap/shown\n"
    )
    assert "text: |\n    one\n    two\n" in cluster.run("get", "cm/shown", "-o", "yaml")
    listed = get(cluster, "deploy,cm", "-l", "app=shown")
    assert (listed["kind"], [item["kind"] for item in listed["items"]]) == ("List", ["Deployment", "ConfigMap"])
    assert "NAMESPACE" in cluster.run("get", "cm", "-A").splitlines()[0]
    both = cluster.run("get", "deploy,cm", "-l", "app=shown")
    assert "deployment.apps/shown" in both
    assert "\n\nNAME" in both


def test_what_is_not_there_is_said(cluster: Cluster) -> None:
    assert (
        cluster.fail("get", "pod", "nope")
        == 'error: pods "nope" not found; `kernelet get pods -A` shows what there is\n'
    )
    assert cluster.try_run("get", "pods", "-n", "empty").stderr == "No resources found in empty namespace.\n"
    assert "field label not supported: spec.image; pods can be selected by" in cluster.fail(
        "get", "pods", "--field-selector", "spec.image=x"
    )


def test_some_found_and_some_not_prints_both(cluster: Cluster) -> None:
    result = cluster.try_run("get", "ns", "default", "nope", "-o", "name")
    assert (result.exit_code, result.stdout) == (1, "namespace/default\n")
    assert 'namespaces "nope" not found' in result.stderr


def test_labels_are_set_kept_and_removed(cluster: Cluster) -> None:
    cluster.run("create", "configmap", "labelled", "--from-literal", "a=b")
    assert cluster.run("label", "cm", "labelled", "tier=web", "x=y") == "configmap/labelled labeled\n"
    assert "label tier is 'web' already" in cluster.fail("label", "cm/labelled", "tier=db")
    cluster.run("label", "cm", "labelled", "tier=db", "x-", "--overwrite")
    assert get(cluster, "cm", "labelled")["metadata"]["labels"] == {"tier": "db"}
    assert cluster.run("label", "cm", "labelled", "tier=db") == "configmap/labelled not labeled\n"


def test_scaling_is_refused_where_another_number_was_expected(cluster: Cluster, write: Write) -> None:
    cluster.run("create", "-f", write("web.yaml", manifest("scaled")))
    assert cluster.run("scale", "deploy", "scaled", "--replicas=7") == "deployment.apps/scaled scaled\n"
    assert "has 7 replicas, not 2" in cluster.fail("scale", "deploy/scaled", "--replicas=1", "--current-replicas=2")
    assert get(cluster, "deploy", "scaled")["spec"]["replicas"] == 7


def test_creating_twice_says_what_to_do(cluster: Cluster) -> None:
    assert cluster.run("create", "ns", "twice") == "namespace/twice created\n"
    assert cluster.fail("create", "ns", "twice") == (
        'error: namespaces "twice" already exists; change it with `kernelet apply`, or delete it first\n'
    )


def test_delete_waits_until_finalizers_are_done(cluster: Cluster) -> None:
    obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "held", "finalizers": ["example.com/hold"]}}
    cluster.run("create", "-f", "-", stdin=json.dumps(obj))
    assert "not gone after 0.3 s" in cluster.fail("delete", "cm", "held", "--timeout=300ms")

    def release() -> None:
        kind = KINDS.resolve("cm")
        patch = {"metadata": {"finalizers": None}}
        cluster.settings.run(lambda client: client.patch(kind, "held", patch, "default"))

    timer = threading.Timer(0.5, release)
    timer.start()
    try:
        assert (
            cluster.run("delete", "cm", "held", "--timeout=20s") == 'configmap "held" deleted from default namespace\n'
        )
    finally:
        timer.join()
    assert "not found" in cluster.fail("get", "cm", "held")


def test_delete_by_file_and_by_selector(cluster: Cluster, write: Write) -> None:
    file = write("web.yaml", manifest("gone"))
    cluster.run("apply", "-f", file)
    cluster.run("delete", "-f", file)
    assert "not found" in cluster.fail("delete", "-f", file)
    assert cluster.run("delete", "-f", file, "--ignore-not-found") == ""
    cluster.run("apply", "-f", file)
    cluster.run("delete", "deploy,cm", "-l", "app=gone")
    assert cluster.run("get", "deploy,cm", "-l", "app=gone", "-o", "name") == ""


def test_delete_by_file_takes_what_is_in_a_namespace_before_the_namespace(cluster: Cluster, write: Write) -> None:
    inside = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"c{number}", "namespace": "short-lived"}}
        for number in range(3)
    ]
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "short-lived"}}
    file = write("all.json", json.dumps({"apiVersion": "v1", "kind": "List", "items": [space, *inside]}))
    cluster.run("apply", "-f", file)
    deleted = cluster.run("delete", "-f", file, "--no-wait").splitlines()
    assert [line.split('"')[1] for line in deleted] == ["c2", "c1", "c0", "short-lived"]


def test_describe_tells_all_and_hides_secrets(cluster: Cluster, write: Write) -> None:
    cluster.run("create", "-f", write("web.yaml", manifest("told")))
    text = cluster.run("describe", "deploy/told")
    for part in ("Name:              told", "2 desired | 0 updated", "Image:             nginx:1.27", "Events:"):
        assert part in text
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "told"}, "stringData": {"key": "hunter2"}}
    cluster.run("create", "-f", "-", stdin=json.dumps(secret))
    text = cluster.run("describe", "secret", "told")
    assert "key: <hidden>" in text
    assert "aHVudGVyMg" not in text


def test_describe_tells_what_a_load_balancer_needs_to_know(cluster: Cluster) -> None:
    spec = {
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30999, "ports": [{"port": 80}],
        "loadBalancerSourceRanges": ["10.0.0.0/8", "192.0.2.0/24"], "trafficDistribution": "PreferClose",
    }  # fmt: skip
    made = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "balanced"}, "spec": spec}
    cluster.run("create", "-f", "-", stdin=json.dumps(made))
    words = " ".join(cluster.run("describe", "service", "balanced").split())
    for part in (
        "External Policy: Local",
        "HealthCheck NodePort: 30999",
        "Source Ranges: 10.0.0.0/8, 192.0.2.0/24",
        "Traffic Distribution: PreferClose",
    ):
        assert part in words


def test_events_are_shown_oldest_first_and_by_object(cluster: Cluster) -> None:
    for name, moment, count in (("late", "2026-01-02T03:00:09Z", 1), ("early", "2026-01-02T03:00:01Z", 4)):
        event = {
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": name}, "reason": name, "message": "m",
            "type": "Normal", "count": count, "involvedObject": {"kind": "Pod", "name": name, "namespace": "default"},
            "firstTimestamp": "2026-01-02T03:00:00Z", "lastTimestamp": moment,
        }  # fmt: skip
        cluster.run("create", "-f", "-", stdin=json.dumps(event))
    rows = [line for line in cluster.run("events").splitlines() if "pod/" in line]
    assert ["early" in rows[0], "late" in rows[1], "(x4 over" in rows[0]] == [True, True, True]
    only = cluster.run("events", "--for", "pod/late")
    assert "pod/late" in only
    assert "pod/early" not in only


def test_status_names_what_is_not_well(cluster: Cluster) -> None:
    result = cluster.try_run("status")
    assert result.exit_code == 1
    assert "api server" in result.stdout
    assert "no nodes: start one with `kernelet node`" in result.stdout


def test_status_asks_for_routes_only_where_they_can_be_reached(tmp_path: Path) -> None:
    near = ClientConfig(f"unix://{tmp_path}/registry.sock", b"")
    assert routes_target("127.0.0.1:6446", near) == "127.0.0.1:6446"
    assert routes_target("172.31.255.1:6446", near) == ""
    assert routes_target("172.31.255.1:6446", ClientConfig("172.31.255.1:6444", b"")) == "172.31.255.1:6446"
    with socket.socket(socket.AF_UNIX) as beside:
        beside.bind(str(tmp_path / "routes.sock"))
        assert routes_target("172.31.255.1:6446", near) == f"unix://{tmp_path}/routes.sock"


def test_a_watch_shows_changes_until_interrupted(cluster: Cluster) -> None:
    script = "import sys; from kernelet.core.cli.main import main; main(sys.argv[1:])"
    arguments = ["--kubeconfig", cluster.kubeconfig, "get", "cm", "-l", "watched=yes", "-w"]
    cluster.run("create", "configmap", "watched")
    cluster.run("label", "cm", "watched", "watched=yes")
    command = [sys.executable, "-u", "-c", script, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().split() == ["NAME", "DATA", "AGE"]
            assert process.stdout.readline().split()[:2] == ["watched", "0"]
            patch = {"data": {"a": "b"}}
            kind = KINDS.resolve("cm")
            cluster.settings.run(lambda client: client.patch(kind, "watched", patch, "default"))
            assert process.stdout.readline().split()[:2] == ["watched", "1"]
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=10) == 130
        finally:
            process.kill()
        assert process.stderr is not None
        assert process.stderr.read() == ""


def deployment(generation: int = 2, conditions: list[dict[str, str]] | None = None, **status: int) -> dict[str, Any]:
    return {
        "metadata": {"name": "web", "generation": generation},
        "spec": {"replicas": 3},
        "status": {"observedGeneration": 2, "conditions": conditions or [], **status},
    }


@pytest.mark.parametrize(
    ("obj", "text", "done"),
    [
        (deployment(generation=3), "Waiting for deployment spec update to be observed...", False),
        (deployment(updatedReplicas=1), "1 out of 3 new replicas have been updated", False),
        (deployment(updatedReplicas=3, replicas=4), "1 old replicas are pending termination", False),
        (
            deployment(updatedReplicas=3, replicas=3, availableReplicas=2),
            "2 of 3 updated replicas are available",
            False,
        ),
        (deployment(updatedReplicas=3, replicas=3, availableReplicas=3), "successfully rolled out", True),
    ],
)
def test_a_rollout_is_told_step_by_step(obj: dict[str, Any], text: str, done: bool) -> None:
    found, finished = progress(obj)
    assert text in found
    assert finished is done


def test_a_rollout_past_its_deadline_is_an_error() -> None:
    late = [{"type": "Progressing", "reason": "ProgressDeadlineExceeded"}]
    with pytest.raises(CliError, match="exceeded its progress deadline"):
        progress(deployment(conditions=late))


def test_rollout_status_waits_for_the_last_step(cluster: Cluster, write: Write) -> None:
    cluster.run("create", "-f", write("web.yaml", manifest("rolled")))
    kind = KINDS.resolve("deploy")
    status = {"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2, "availableReplicas": 1}

    def set_status(available: int) -> None:
        patch = {"status": status | {"availableReplicas": available}}
        cluster.settings.run(lambda client: client.patch(kind, "rolled", patch, "default", subresource="status"))

    set_status(1)
    assert "1 of 2 updated replicas" in cluster.run("rollout", "status", "deploy/rolled", "--no-watch")
    assert "not rolled out after 0.2 s" in cluster.fail("rollout", "status", "deploy/rolled", "--timeout=200ms")
    timer = threading.Timer(0.5, set_status, [2])
    timer.start()
    try:
        assert cluster.run("rollout", "status", "deploy/rolled", "--timeout=20s").endswith("successfully rolled out\n")
    finally:
        timer.join()
    assert cluster.run("rollout", "restart", "deploy/rolled") == "deployment.apps/rolled restarted\n"
    template = get(cluster, "deploy", "rolled")["spec"]["template"]
    assert "kubectl.kubernetes.io/restartedAt" in template["metadata"]["annotations"]
    cluster.run("rollout", "pause", "deploy/rolled")
    assert get(cluster, "deploy", "rolled")["spec"]["paused"] is True


def test_undo_goes_back_to_the_template_of_an_earlier_revision(cluster: Cluster, write: Write) -> None:
    cluster.run("create", "-f", write("web.yaml", manifest("undone")))
    owner = get(cluster, "deploy", "undone")
    for revision, image in ((1, "nginx:1"), (2, "nginx:2")):
        labels = {"app": "undone", "pod-template-hash": f"h{revision}"}
        spec = {"containers": [{"name": "nginx", "image": image}]}
        replica_set = {
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {
                "name": f"undone-{revision}", "annotations": {"deployment.kubernetes.io/revision": str(revision)},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "undone",
                                     "uid": owner["metadata"]["uid"], "controller": True}],
            },
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}},
        }  # fmt: skip
        cluster.run("create", "-f", "-", stdin=json.dumps(replica_set))
    assert cluster.run("rollout", "history", "deploy/undone").splitlines()[2:] == [
        "1          <none>",
        "2          <none>",
    ]
    assert "image: nginx:1" in cluster.run("rollout", "history", "deploy/undone", "--revision", "1")
    assert cluster.run("rollout", "undo", "deploy/undone") == "deployment.apps/undone rolled back\n"
    template = get(cluster, "deploy", "undone")["spec"]["template"]
    assert template["spec"]["containers"][0]["image"] == "nginx:1"
    assert template["metadata"]["labels"] == {"app": "undone"}
    assert "has no revision 9; it has 1, 2" in cluster.fail("rollout", "undo", "deploy/undone", "--to-revision", "9")


def test_names_are_completed_from_the_cluster(cluster: Cluster) -> None:
    from kernelet.core.cli.complete import names

    assert names(cluster.settings, KINDS.resolve("ns"), "kube-s") == ["kube-system"]
