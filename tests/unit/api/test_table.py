"""Tables are what kubectl prints."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelet.core.api import defaulting, discovery, table
from kernelet.core.api.kinds import KINDS
from kernelet.core.api.times import format_seconds

from .samples import BODIES, JSON, kind_of, sample

NOW = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)


def ago(**amount: int) -> str:
    return format_seconds(NOW - timedelta(**amount))


def cells(name: str, obj: JSON) -> dict[str, Any]:
    kind = kind_of(name)
    shown = table.row(kind, obj, NOW)
    headers = table.columns(kind)
    assert len(shown) == len(headers)
    return dict(zip([column.name for column in headers], shown, strict=True))


def pod(statuses: list[JSON], init: list[JSON] | None = None, phase: str = "Running", **metadata: Any) -> JSON:
    spec: JSON = {"nodeName": "n1", "containers": [{"name": f"c{i}"} for i in range(len(statuses) or 1)]}
    status: JSON = {"phase": phase, "podIP": "10.244.1.2", "containerStatuses": statuses}
    if init is not None:
        spec["initContainers"] = [{"name": f"i{i}"} for i in range(len(init))]
        status["initContainerStatuses"] = init
    return {"metadata": {"name": "web", "creationTimestamp": ago(minutes=5)} | metadata, "spec": spec, "status": status}


RUNNING: JSON = {"ready": True, "restartCount": 0, "state": {"running": {}}}


def waiting(reason: str) -> JSON:
    return {"ready": False, "restartCount": 0, "state": {"waiting": {"reason": reason}}}


def ended(code: int, reason: str = "", **more: Any) -> JSON:
    return {"ready": False, "restartCount": 0, "state": {"terminated": {"exitCode": code, "reason": reason, **more}}}


@pytest.mark.parametrize(
    ("obj", "ready", "status"),
    [
        (pod([RUNNING]), "1/1", "Running"),
        (pod([RUNNING, waiting("CrashLoopBackOff")]), "1/2", "CrashLoopBackOff"),
        (pod([], phase="Pending"), "0/1", "Pending"),
        (pod([waiting("ContainerCreating")], phase="Pending"), "0/1", "ContainerCreating"),
        (pod([ended(0, "Completed")], phase="Succeeded"), "0/1", "Completed"),
        (pod([ended(0, "Completed"), RUNNING]), "1/2", "NotReady"),
        (pod([ended(137)], phase="Failed"), "0/1", "ExitCode:137"),
        (pod([ended(0, signal=9)], phase="Failed"), "0/1", "Signal:9"),
        (pod([waiting("PodInitializing")], [waiting("PodInitializing")], phase="Pending"), "0/1", "Init:0/1"),
        (pod([waiting("PodInitializing")], [ended(0), ended(1, "Error")], phase="Pending"), "0/1", "Init:Error"),
        (pod([waiting("PodInitializing")], [waiting("ImagePullBackOff")]), "0/1", "Init:ImagePullBackOff"),
        (pod([RUNNING], deletionTimestamp=ago(seconds=1)), "1/1", "Terminating"),
    ],
)
def test_a_pods_state_is_told_in_one_word(obj: JSON, ready: str, status: str) -> None:
    shown = cells("Pod", obj)
    assert (shown["Ready"], shown["Status"]) == (ready, status)


def test_a_pods_row_tells_restarts_age_and_place() -> None:
    restarted = RUNNING | {"restartCount": 3, "lastState": {"terminated": {"finishedAt": ago(seconds=42)}}}
    shown = cells("Pod", pod([restarted]))
    assert shown["Restarts"] == "3 (42s ago)"
    assert (shown["Age"], shown["IP"], shown["Node"]) == ("5m", "10.244.1.2", "n1")
    assert (shown["Nominated Node"], shown["Readiness Gates"]) == ("<none>", "<none>")


def test_services_show_their_addresses_and_ports() -> None:
    spec = {"type": "NodePort", "clusterIP": "10.96.0.7", "ports": [{"port": 80, "nodePort": 30080}], "selector": {}}
    shown = cells("Service", {"metadata": {"name": "web"}, "spec": spec})
    assert (shown["Cluster-IP"], shown["External-IP"], shown["Port(s)"]) == ("10.96.0.7", "<none>", "80:30080/TCP")
    assert (shown["Age"], shown["Selector"]) == ("<unknown>", "<none>")
    waiting_for = cells("Service", {"spec": {"type": "LoadBalancer", "ports": []}})
    assert (waiting_for["External-IP"], waiting_for["Port(s)"]) == ("<pending>", "<none>")


def test_workloads_show_counts() -> None:
    _, obj = sample("Deployment")
    obj["spec"]["replicas"] = 3
    obj["status"] = {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2}
    shown = cells("Deployment", obj)
    assert [shown[key] for key in ("Ready", "Up-to-date", "Available", "Containers", "Images", "Selector")] == [
        "2/3", 3, 2, "web", "nginx:1.27", "app=web",
    ]  # fmt: skip


def test_nodes_show_state_roles_and_addresses() -> None:
    status = {
        "conditions": [{"type": "Ready", "status": "True"}],
        "addresses": [{"type": "InternalIP", "address": "10.0.0.2"}],
        "nodeInfo": {"kubeletVersion": "v1.36.0"},
    }
    labels = {"node-role.kubernetes.io/control-plane": ""}
    node = {"metadata": {"name": "n1", "labels": labels}, "spec": {"unschedulable": True}, "status": status}
    shown = cells("Node", node)
    assert [shown[key] for key in ("Status", "Roles", "Version", "Internal-IP", "External-IP")] == [
        "Ready,SchedulingDisabled", "control-plane", "v1.36.0", "10.0.0.2", "<none>",
    ]  # fmt: skip
    assert cells("Node", {})["Status"] == "Unknown"


def test_long_lists_of_addresses_are_cut() -> None:
    addresses = [{"ip": f"10.244.0.{n}"} for n in range(5)]
    shown = cells("Endpoints", {"subsets": [{"addresses": addresses, "ports": [{"port": 80}]}]})
    assert shown["Endpoints"] == "10.244.0.0:80,10.244.0.1:80,10.244.0.2:80 + 2 more..."


def test_events_show_when_what_and_about_whom() -> None:
    event = {"involvedObject": {"kind": "Pod", "name": "web"}, "lastTimestamp": ago(seconds=7), "reason": "Started"}
    shown = cells("Event", event | {"type": "Normal", "message": "started\n"})
    assert [shown[key] for key in ("Last Seen", "Type", "Reason", "Object", "Message")] == [
        "7s", "Normal", "Started", "pod/web", "started",
    ]  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_every_kind_prints_with_and_without_its_fields(name: str) -> None:
    kind, obj = sample(name)
    defaulting.apply_defaults(kind, obj)
    assert "web" in cells(name, obj).values()
    assert len(table.row(kind, {}, NOW)) == len(table.columns(kind))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "<invalid>"), (0, "0s"), (119, "119s"), (120, "2m"), (200, "3m20s"), (3600, "60m"), (5 * 3600, "5h"),
     (5 * 3600 + 120, "5h2m"), (86400, "24h"), (2 * 86400 + 3600, "2d1h"), (100 * 86400, "100d"),
     (3 * 365 * 86400, "3y"), (9 * 365 * 86400, "9y")],
)  # fmt: skip
def test_ages_are_short(seconds: int, text: str) -> None:
    assert table.human_age(seconds) == text


@given(st.integers(0, 10**9))
def test_an_age_is_never_long(seconds: int) -> None:
    assert len(table.human_age(seconds)) <= 6


def test_discovery_lists_every_kind_in_both_forms() -> None:
    core = discovery.api_resource_list(KINDS, "", "v1")["resources"]
    by_name = {resource["name"]: resource for resource in core}
    assert by_name["pods"]["shortNames"] == ["po"]
    assert by_name["pods"]["categories"] == ["all"]
    assert (by_name["pods/eviction"]["group"], by_name["pods/eviction"]["kind"]) == ("policy", "Eviction")
    assert by_name["pods/log"]["verbs"] == ["get"]
    groups = {item["name"] for item in discovery.api_group_list(KINDS)["groups"]}
    assert groups == {"apps", "discovery.k8s.io", "coordination.k8s.io"}
    (apps, *_) = discovery.aggregated(KINDS, core=False, version="v2beta1")["items"]
    deployment = next(item for item in apps["versions"][0]["resources"] if item["resource"] == "deployments")
    assert deployment["responseKind"] == {"group": "apps", "version": "v1", "kind": "Deployment"}
    assert {item["subresource"] for item in deployment["subresources"]} == {"status", "scale"}
    (only,) = discovery.aggregated(KINDS, core=True)["items"]
    assert only["metadata"] == {}


def test_printing_and_patching_need_no_model() -> None:
    script = (
        "import sys, kernelet.core.api.table, kernelet.core.api.patch, kernelet.core.api.selectors, "
        "kernelet.core.api.discovery; sys.exit('lightkube' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
