"""Defaults are Kubernetes' own, the same wherever a pod template stands, and settle at once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelet.core.api import defaulting, validation

from .samples import BODIES, JSON, sample


def defaulted(name: str, **changes: object) -> JSON:
    kind, obj = sample(name)
    obj |= changes
    defaulting.apply_defaults(kind, obj)
    return obj


@pytest.mark.parametrize("name", BODIES)
def test_defaulting_twice_is_defaulting_once_and_the_result_is_valid(name: str) -> None:
    kind, obj = sample(name)
    defaulting.apply_defaults(kind, obj)
    once = copy.deepcopy(obj)
    defaulting.apply_defaults(kind, obj)
    assert obj == once
    assert validation.validate(kind, obj, None) == []
    assert validation.validate(kind, obj, once) == []
    assert validation.unknown_fields(kind, obj) == []


def test_a_pod_gets_the_defaults_of_kubernetes() -> None:
    spec = defaulted("Pod")["spec"]
    assert spec["restartPolicy"] == "Always"
    assert spec["terminationGracePeriodSeconds"] == 30
    assert spec["schedulerName"] == "default-scheduler"
    assert spec["dnsPolicy"] == "ClusterFirst"
    assert spec["enableServiceLinks"] is True
    web = spec["containers"][0]
    assert web["resources"] == {
        "limits": {"cpu": "500m", "memory": "64Mi"},
        "requests": {"cpu": "100m", "memory": "64Mi"},
    }
    assert web["livenessProbe"] == {
        "httpGet": {"port": "http", "path": "/", "scheme": "HTTP"},
        "timeoutSeconds": 1,
        "periodSeconds": 10,
        "successThreshold": 1,
        "failureThreshold": 3,
    }
    assert web["readinessProbe"]["periodSeconds"] == 1
    assert web["ports"] == [{"containerPort": 80, "name": "http", "protocol": "TCP"}]
    assert web["env"][1]["valueFrom"]["fieldRef"]["apiVersion"] == "v1"
    assert spec["volumes"] == [
        {"name": "conf", "configMap": {"name": "conf", "defaultMode": 420}},
        {"name": "tmp", "emptyDir": {}},
    ]


def test_a_template_gets_the_same_defaults_as_a_pod() -> None:
    pod = defaulted("Pod")["spec"]
    for name in ("Deployment", "ReplicaSet", "ReplicationController"):
        assert defaulted(name)["spec"]["template"]["spec"] == pod


@pytest.mark.parametrize(
    ("image", "policy"),
    [
        ("nginx", "Always"),
        ("nginx:latest", "Always"),
        ("localhost:5000/nginx", "Always"),
        ("nginx:1.27", "IfNotPresent"),
        ("localhost:5000/nginx:1", "IfNotPresent"),
        ("nginx@sha256:0", "IfNotPresent"),
    ],
)
def test_the_pull_policy_follows_the_tag(image: str, policy: str) -> None:
    spec = defaulted("Pod", spec={"containers": [{"name": "a", "image": image}]})["spec"]
    assert spec["containers"][0]["imagePullPolicy"] == policy


def test_ports_on_the_host_network_are_ports_of_the_host() -> None:
    container = {"name": "a", "image": "a", "ports": [{"containerPort": 53, "protocol": "UDP"}]}
    spec = defaulted("Pod", spec={"hostNetwork": True, "containers": [container]})["spec"]
    assert spec["containers"][0]["ports"][0]["hostPort"] == 53


def test_a_deployment_rolls_a_quarter_at_a_time() -> None:
    spec = defaulted("Deployment")["spec"]
    rolling = {"maxUnavailable": "25%", "maxSurge": "25%"}
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": rolling}
    assert (spec["replicas"], spec["revisionHistoryLimit"], spec["progressDeadlineSeconds"]) == (1, 10, 600)


def test_a_replication_controller_selects_what_its_template_is_labelled_with() -> None:
    obj = defaulted("ReplicationController")
    assert obj["spec"]["selector"] == {"app": "web"}


def test_a_service_targets_its_own_port_unless_told_otherwise() -> None:
    spec = {"type": "NodePort", "sessionAffinity": "ClientIP", "ports": [{"port": 80}]}
    found = defaulted("Service", spec=spec)["spec"]
    assert found["ports"] == [{"port": 80, "protocol": "TCP", "targetPort": 80}]
    assert found["sessionAffinityConfig"] == {"clientIP": {"timeoutSeconds": 10800}}
    assert found["externalTrafficPolicy"] == found["internalTrafficPolicy"] == "Cluster"


def test_plain_text_of_a_secret_moves_into_its_data() -> None:
    obj = defaulted("Secret")
    assert obj["data"] == {"a": "AAE=", "password": "c2VjcmV0"}
    assert "stringData" not in obj


def test_a_namespace_carries_its_name_as_a_label_and_a_finalizer() -> None:
    obj = defaulted("Namespace")
    assert obj["metadata"]["labels"]["kubernetes.io/metadata.name"] == "web"
    assert obj["spec"]["finalizers"] == ["kubernetes"]


def test_null_means_absent() -> None:
    obj = defaulted("Pod", status=None)
    assert obj["status"] == {"phase": "Pending"}
    kind, nulls = sample("Pod")
    nulls["spec"]["restartPolicy"] = None
    nulls["spec"]["containers"][0]["command"] = None
    defaulting.apply_defaults(kind, nulls)
    assert nulls["spec"]["restartPolicy"] == "Always"
    assert "command" not in nulls["spec"]["containers"][0]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, JSON]:
    """A typical object with arbitrary JSON in place of one of its values."""
    name = draw(st.sampled_from(sorted(BODIES)))
    _, obj = sample(name)
    holder: Any = obj
    while True:
        if isinstance(holder, dict) and holder:
            key: Any = draw(st.sampled_from(sorted(holder)))
        elif isinstance(holder, list) and holder:
            key = draw(st.integers(0, len(holder) - 1))
        else:
            return name, obj
        below = holder[key]
        if not isinstance(below, (dict, list)) or not below or draw(st.booleans()):
            holder[key] = draw(anything)
            return name, obj
        holder = below


@given(damaged())
def test_arbitrary_json_ends_in_causes_and_never_in_a_crash(case: tuple[str, JSON]) -> None:
    name, obj = case
    kind, _ = sample(name)
    before = copy.deepcopy(obj)
    defaulting.apply_defaults(kind, obj)
    once = copy.deepcopy(obj)
    defaulting.apply_defaults(kind, obj)
    assert obj == once
    for cause in validation.validate(kind, obj, before):
        assert cause.message
    validation.unknown_fields(kind, before)


def test_depth_is_no_way_to_crash_it() -> None:
    deep: JSON = {}
    for _ in range(5000):
        deep = {"a": deep}
    kind, obj = sample("Pod")
    obj["metadata"]["annotations"] = deep
    defaulting.apply_defaults(kind, obj)
    assert validation.validate(kind, obj, None)
