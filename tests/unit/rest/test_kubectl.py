"""The REST face under the real kubectl."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kernelet.core.security.kubeconfig import write_kubeconfig
from kernelet.core.security.pki import Pki
from kernelet.core.security.tokens import Tokens

from .conftest import Server

KUBECTL = shutil.which("kubectl")
pytestmark = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")

APPLICATION = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: "web:1", ports: [{containerPort: 80}], env: [{name: A, value: b}]}
      - {name: side, image: "side:1"}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: web}
data: {a: b}
"""


class Kubectl:
    """Runs kubectl with a kubeconfig and a cache of its own."""

    def __init__(self, kubeconfig: Path, home: Path) -> None:
        self._environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "HOME": str(home)}

    def run(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        command = [KUBECTL or "kubectl", *arguments]
        return subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=30, env=self._environment, check=False
        )

    def __call__(self, *arguments: str, text: str = "") -> str:
        done = self.run(*arguments, text=text)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "-o", "json"))

    def error(self, *arguments: str, text: str = "") -> str:
        done = self.run(*arguments, text=text)
        assert done.returncode != 0, done.stdout
        return done.stderr

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [KUBECTL or "kubectl", *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=self._environment)


@pytest.fixture(scope="module")
def kubectl(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    return Kubectl(server.kubeconfig, tmp_path_factory.mktemp("home"))


def test_get_lists_all_namespaces_and_shows_yaml(kubectl: Kubectl) -> None:
    assert "No resources found" in kubectl.run("get", "pods", "-A").stderr
    assert kubectl("get", "svc").split("\n")[0].split() == [
        "NAME",
        "TYPE",
        "CLUSTER-IP",
        "EXTERNAL-IP",
        "PORT(S)",
        "AGE",
    ]
    assert "clusterIP: 10.96.0.1\n" in kubectl("get", "svc", "-o", "yaml")
    assert kubectl("get", "svc", "-A", "-o", "name").split() == ["service/kubernetes", "service/kube-dns"]
    assert "v1.36.0+kernelet" in kubectl("get", "--raw", "/version")
    assert "deploy " in kubectl("api-resources")


def test_apply_creates_then_changes_only_what_differs(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", text='{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"apply"}}')
    created = kubectl("apply", "-n", "apply", "-f", "-", text=APPLICATION)
    assert [line.split()[-1] for line in created.splitlines()] == ["created"] * 3
    again = kubectl("apply", "-n", "apply", "-f", "-", text=APPLICATION)
    assert [line.split()[-1] for line in again.splitlines()] == ["unchanged"] * 3
    # A container another writer added stays, since containers merge by name.
    addition = '{"spec":{"template":{"spec":{"containers":[{"name":"added","image":"x:1"}]}}}}'
    kubectl("patch", "-n", "apply", "deploy", "web", "-p", addition)
    changed = kubectl("apply", "-n", "apply", "-f", "-", text=APPLICATION.replace("web:1", "web:2"))
    assert changed.splitlines()[0] == "deployment.apps/web configured"
    spec = kubectl.json("get", "-n", "apply", "deploy", "web")["spec"]["template"]["spec"]
    assert {one["name"]: one["image"] for one in spec["containers"]} == {
        "web": "web:2",
        "side": "side:1",
        "added": "x:1",
    }
    assert "deleted" in kubectl("delete", "-n", "apply", "-f", "-", text=APPLICATION)
    assert kubectl("get", "-n", "apply", "deploy,svc,cm", "-o", "name") == ""


def test_apply_takes_a_list_of_objects_as_one(kubectl: Kubectl) -> None:
    item = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "listed"}, "data": {"a": "b"}}
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [item]})
    assert kubectl("apply", "-f", "-", text=text) == "configmap/listed created\n"
    item["metadata"] = {"name": "listed", "labelz": {}}
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [item]})
    assert "labelz" in kubectl.error("apply", "-f", "-", text=text)


def test_apply_names_a_field_that_does_not_exist(kubectl: Kubectl) -> None:
    stderr = kubectl.error("apply", "-f", "-", text=APPLICATION.replace("replicas:", "replicaz:"))
    assert 'unknown field "spec.replicaz"' in stderr


def test_scale_label_annotate_patch_and_describe(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", text=APPLICATION.split("---")[0])
    kubectl("scale", "deploy", "web", "--replicas=5")
    kubectl("label", "deploy", "web", "tier=front")
    kubectl("annotate", "deploy", "web", "note=hello")
    kubectl("set", "image", "deploy/web", "side=side:2")
    found = kubectl.json("get", "deploy", "web")
    assert found["spec"]["replicas"] == 5
    assert (found["metadata"]["labels"]["tier"], found["metadata"]["annotations"]["note"]) == ("front", "hello")
    assert found["spec"]["template"]["spec"]["containers"][1]["image"] == "side:2"
    assert "5 desired" in kubectl("describe", "deploy", "web")
    assert kubectl("get", "deploy", "-l", "tier=front", "-o", "name") == "deployment.apps/web\n"
    kubectl("patch", "deploy", "web", "--type=json", "-p", '[{"op":"remove","path":"/metadata/labels/tier"}]')
    assert kubectl("get", "deploy", "-l", "tier=front", "-o", "name") == ""
    kubectl("delete", "deploy", "web")


def test_get_watch_follows_an_object(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", text='{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"seen"},"data":{}}')
    watching = kubectl.start("get", "cm", "-w", "--output-watch-events", "--no-headers", "seen")
    try:
        assert watching.stdout is not None
        assert watching.stdout.readline().split()[:3] == ["ADDED", "seen", "0"]
        kubectl("patch", "cm", "seen", "-p", '{"data":{"a":"b"}}')
        assert watching.stdout.readline().split()[:3] == ["MODIFIED", "seen", "1"]
        kubectl("delete", "cm", "seen")
        assert watching.stdout.readline().split()[:2] == ["DELETED", "seen"]
    finally:
        watching.kill()
        watching.communicate()


def test_explain_reads_the_schema(kubectl: Kubectl) -> None:
    text = kubectl("explain", "pod.spec.containers.image")
    assert "FIELD: image <string>" in text and "Container image name." in text
    assert "-required-" in kubectl("explain", "deploy.spec")


def test_who_am_i_and_what_may_i(kubectl: Kubectl) -> None:
    assert "kubernetes-admin" in kubectl("auth", "whoami")
    assert kubectl("auth", "can-i", "create", "pods").strip() == "yes"
    refusal = kubectl.run("auth", "can-i", "delete", "nodes", "--as=system:node:n1", "--as-group=system:nodes")
    assert refusal.stdout.strip() == "no"


def test_create_commands_work_whatever_encoding_kubectl_chooses(kubectl: Kubectl) -> None:
    kubectl("create", "ns", "made")
    kubectl("create", "-n", "made", "cm", "c", "--from-literal=a=b")
    kubectl("create", "-n", "made", "secret", "generic", "s", "--from-literal=password=p w")
    kubectl("create", "-n", "made", "deployment", "d", "--image=web:1", "--replicas=2", "--port=80")
    kubectl("expose", "-n", "made", "deployment", "d", "--port=80", "--target-port=http")
    kubectl("run", "-n", "made", "p", "--image=web:1", "--env=A=b", "--restart=Never")
    assert kubectl.json("get", "-n", "made", "cm", "c")["data"] == {"a": "b"}
    assert kubectl.json("get", "-n", "made", "secret", "s")["data"] == {"password": "cCB3"}
    assert kubectl.json("get", "-n", "made", "deploy", "d")["spec"]["replicas"] == 2
    assert kubectl.json("get", "-n", "made", "svc", "d")["spec"]["ports"][0]["targetPort"] == "http"
    assert kubectl.json("get", "-n", "made", "pod", "p")["spec"]["restartPolicy"] == "Never"
    kubectl("create", "-n", "made", "serviceaccount", "who")


def test_a_token_user_is_authenticated_and_held_to_its_rights(server: Server, tmp_path: Path) -> None:
    token = Tokens(server.folder / "pki").create("somebody", ["nobodies"], ttl=60)
    ca = (server.folder / "pki" / "ca.crt").read_bytes()
    write_kubeconfig(tmp_path / "config", server.url, ca, token=token)
    user = Kubectl(tmp_path / "config", tmp_path)
    assert "somebody" in user("get", "--raw", "/api/v1") or user.run("api-resources").returncode == 0
    assert 'User "somebody" cannot list resource "pods"' in user.error("get", "pods")
    write_kubeconfig(tmp_path / "config", server.url, ca, token="K1nonsense")
    assert "Unauthorized" in user.error("get", "pods")


def test_a_server_of_another_ca_and_a_client_of_another_ca_are_refused(server: Server, tmp_path: Path) -> None:
    other = Pki.ensure(tmp_path / "other")
    mine = (server.folder / "pki" / "admin.crt").read_bytes(), (server.folder / "pki" / "admin.key").read_bytes()
    write_kubeconfig(tmp_path / "config", server.url, other.ca_pem, *mine)
    assert "certificate signed by unknown authority" in Kubectl(tmp_path / "config", tmp_path).error("get", "pods")
    foreign = other.issue("admin", "kubernetes-admin", ["system:masters"]).read()
    write_kubeconfig(tmp_path / "config", server.url, (server.folder / "pki" / "ca.crt").read_bytes(), *foreign)
    stderr = Kubectl(tmp_path / "config", tmp_path).error("get", "pods")
    assert "certificate" in stderr or "Unauthorized" in stderr or "connection reset" in stderr
