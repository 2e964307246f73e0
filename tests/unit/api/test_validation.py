"""Every planted error is found at its JSON path, in Kubernetes' words."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest

from kernelet.core.api import codec, defaulting, validation
from kernelet.core.api.errors import Cause

from .samples import JSON, sample

W = "spec.containers[0]"
T = "spec.template.spec.containers[0]"


def plant(obj: JSON, path: str, value: Any) -> None:
    """Sets the value at a path such as `spec.containers[0].image`; `...` removes it."""
    parts = path.replace("[", ".[").split(".")
    keys = [int(part[1:-1]) if part.startswith("[") else part for part in parts]
    holder: Any = obj
    for key, following in itertools.pairwise(keys):
        if isinstance(holder, dict) and key not in holder:
            holder[key] = [] if isinstance(following, int) else {}
        holder = holder[key]
    if value is ...:
        del holder[keys[-1]]
    elif isinstance(holder, list) and keys[-1] == len(holder):
        holder.append(value)
    else:
        holder[keys[-1]] = value


def causes(name: str, **planted: Any) -> list[Cause]:
    kind, obj = sample(name)
    for path, value in planted.items():
        plant(obj, path, value)
    defaulting.apply_defaults(kind, obj)
    return validation.validate(kind, obj, None)


BALANCED = "may only be used when `type` is 'LoadBalancer'"
SERVICES: list[tuple[str, str, Any, str, str, str]] = [
    ("Service", "spec.loadBalancerSourceRanges", ["10.0.0.0/8"], "spec.loadBalancerSourceRanges", "FieldValueForbidden",
     BALANCED),
    ("Service", "spec", {"type": "LoadBalancer", "ports": [{"port": 1}], "loadBalancerSourceRanges": [" 10.0.0.1/8 ",
     "10.0.0.0"]}, "spec.loadBalancerSourceRanges[1]", "FieldValueInvalid",
     '"10.0.0.0": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)'),
    ("Service", "spec.allocateLoadBalancerNodePorts", True, "spec.allocateLoadBalancerNodePorts", "FieldValueForbidden",
     BALANCED),
    ("Service", "spec.loadBalancerClass", "a/b", "spec.loadBalancerClass", "FieldValueForbidden", BALANCED),
    ("Service", "spec.externalTrafficPolicy", "Local", "spec.externalTrafficPolicy", "FieldValueInvalid",
     "may only be set for externally-accessible services"),
    ("Service", "spec.internalTrafficPolicy", "Near", "spec.internalTrafficPolicy", "FieldValueNotSupported",
     'supported values: "Cluster", "Local"'),
    ("Service", "spec.trafficDistribution", "Near", "spec.trafficDistribution", "FieldValueNotSupported",
     'supported values: "PreferClose", "PreferSameNode", "PreferSameZone"'),
    ("Service", "spec", {"sessionAffinity": "ClientIP", "ports": [{"port": 1}],
     "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}},
     "spec.sessionAffinityConfig.clientIP.timeoutSeconds", "FieldValueInvalid",
     "must be greater than 0 and less than 86400"),
    ("Service", "spec", {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}},
     "ports": [{"port": 1}]}, "spec.sessionAffinityConfig.clientIP.timeoutSeconds", "FieldValueInvalid", "0"),
    ("Service", "spec.ipFamilies", ["IPv4", "IPv4"], "spec.ipFamilies[1]", "FieldValueDuplicate", "IPv4"),
    ("Service", "spec.ipFamilies", ["IPv5"], "spec.ipFamilies[0]", "FieldValueNotSupported", "IPv6"),
    ("Service", "spec.ipFamilyPolicy", "Both", "spec.ipFamilyPolicy", "FieldValueNotSupported", "RequireDualStack"),
    ("Service", "spec", {"clusterIPs": ["10.96.0.1", "10.96.0.2"], "clusterIP": "10.96.0.1", "ports": [{"port": 1}]},
     "spec.clusterIPs", "FieldValueInvalid", "may specify no more than one IP for each IP family"),
    ("Service", "spec", {"clusterIP": "fd00::1", "ipFamilies": ["IPv4"], "ports": [{"port": 1}]}, "spec.clusterIPs[0]",
     "FieldValueInvalid", "expected an IPv4 value as indicated by `ipFamilies[0]`"),
    ("Service", "spec", {"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4", "IPv6"], "ports": [{"port": 1}]},
     "spec.ipFamilyPolicy", "FieldValueInvalid", "when multiple ipFamilies are specified"),
    ("Service", "spec", {"type": "ExternalName", "externalName": "-x"}, "spec.externalName", "FieldValueInvalid", "-x"),
    ("Service", "spec", {"type": "ExternalName"}, "spec.externalName", "FieldValueRequired", ""),
    ("Service", "spec", {"type": "ExternalName", "externalName": "a.test", "clusterIP": "10.96.0.1"}, "spec.clusterIP",
     "FieldValueForbidden", "may not be set when `type` is 'ExternalName'"),
    ("Service", "spec", {"type": "NodePort", "ports": [{"name": "a", "port": 1, "nodePort": 30001},
     {"name": "b", "port": 2, "nodePort": 30001}]}, "spec.ports[1].nodePort", "FieldValueDuplicate", "30001"),
    ("Service", "status", {"loadBalancer": {"ingress": [{"ip": "nowhere"}]}}, "status.loadBalancer.ingress[0].ip",
     "FieldValueInvalid", "must be a valid IP address"),
]  # fmt: skip

PLANTED: list[tuple[str, str, Any, str, str, str]] = [
    # kind, path, value, path of the cause, its reason, a part of its message
    ("Pod", f"{W}.image", 4, f"{W}.image", "FieldValueTypeInvalid", "Expected `str`, got `int`"),
    ("Pod", f"{W}.image", ..., f"{W}.image", "FieldValueRequired", "Required value"),
    ("Pod", "spec.containers", ..., "spec.containers", "FieldValueRequired", "Required value"),
    ("Pod", "spec.containers", [], "spec.containers", "FieldValueRequired", "Required value"),
    ("Pod", f"{W}.name", "Web", f"{W}.name", "FieldValueInvalid", 'Invalid value: "Web": a lowercase RFC 1123 label'),
    ("Pod", f"{W}.name", "init", f"{W}.name", "FieldValueDuplicate", 'Duplicate value: "init"'),
    ("Pod", f"{W}.ports[0].containerPort", 70000, f"{W}.ports[0].containerPort", "FieldValueInvalid",
     "must be between 1 and 65535, inclusive"),
    ("Pod", f"{W}.ports[1]", {"name": "http", "containerPort": 81}, f"{W}.ports[1].name", "FieldValueDuplicate",
     "http"),
    ("Pod", f"{W}.env[0].name", "a=b", f"{W}.env[0].name", "FieldValueInvalid", "environment variable name"),
    ("Pod", f"{W}.env[1].value", "x", f"{W}.env[1].valueFrom", "FieldValueInvalid", "may not be specified when"),
    ("Pod", f"{W}.volumeMounts[0].name", "none", f"{W}.volumeMounts[0].name", "FieldValueNotFound",
     'Not found: "none"'),
    ("Pod", f"{W}.resources.requests.cpu", "2", f"{W}.resources.requests", "FieldValueInvalid",
     "must be less than or equal to cpu limit of 500m"),
    ("Pod", f"{W}.resources.limits.cpu", "many", f"{W}.resources.limits[cpu]", "FieldValueInvalid", "not a quantity"),
    ("Pod", f"{W}.livenessProbe.httpGet", ..., f"{W}.livenessProbe", "FieldValueRequired",
     "must specify a handler type"),
    ("Pod", f"{W}.livenessProbe.successThreshold", 2, f"{W}.livenessProbe.successThreshold", "FieldValueInvalid",
     "must be 1"),
    ("Pod", f"{W}.imagePullPolicy", "Maybe", f"{W}.imagePullPolicy", "FieldValueNotSupported",
     'supported values: "Always", "IfNotPresent", "Never"'),
    ("Pod", "spec.volumes[1].name", "conf", "spec.volumes[1].name", "FieldValueDuplicate", "conf"),
    ("Pod", "spec.volumes[0].configMap.name", "", "spec.volumes[0].configMap.name", "FieldValueRequired", "Required"),
    ("Pod", "spec.restartPolicy", "Often", "spec.restartPolicy", "FieldValueNotSupported", "Often"),
    ("Pod", "spec.nodeSelector", {"a": 1}, "spec.nodeSelector.a", "FieldValueTypeInvalid", "Expected `str`, got `int`"),
    ("Pod", "spec.tolerations[0].effect", "Never", "spec.tolerations[0].effect", "FieldValueNotSupported", "NoExecute"),
    ("Pod", "metadata.name", "Bad_Name", "metadata.name", "FieldValueInvalid", "a lowercase RFC 1123 subdomain"),
    ("Pod", "metadata.name", "", "metadata.name", "FieldValueRequired", "name or generateName is required"),
    ("Pod", "metadata.labels", {"a": "b c"}, "metadata.labels", "FieldValueInvalid", "a valid label must be"),
    ("Pod", "metadata.labels", {"a": True}, "metadata.labels.a", "FieldValueTypeInvalid", "Expected `str`, got `bool`"),
    ("Pod", "metadata.annotations", {"a b": "x"}, "metadata.annotations", "FieldValueInvalid",
     "name part must consist"),
    ("Pod", "kind", "Service", "kind", "FieldValueInvalid", "must be Pod"),
    ("Service", "metadata.name", "1web", "metadata.name", "FieldValueInvalid", "a DNS-1035 label"),
    ("Service", "spec.ports", [], "spec.ports", "FieldValueRequired", "Required value"),
    ("Service", "spec.ports[1]", {"port": 81}, "spec.ports[1].name", "FieldValueRequired", "Required value"),
    ("Service", "spec.ports[0].nodePort", 30000, "spec.ports[0].nodePort", "FieldValueForbidden",
     "may not be used when `type` is 'ClusterIP'"),
    ("Service", "spec.type", "Magic", "spec.type", "FieldValueNotSupported", "ExternalName"),
    *SERVICES,
    ("Service", "spec.clusterIP", "10.96.0", "spec.clusterIPs[0]", "FieldValueInvalid", "must be a valid IP address"),
    ("Deployment", "spec.selector", ..., "spec.selector", "FieldValueRequired", "Required value"),
    ("Deployment", "spec.template.metadata.labels", {"app": "db"}, "spec.template.metadata.labels", "FieldValueInvalid",
     "`selector` does not match template `labels`"),
    ("Deployment", f"{T}.image", 4, f"{T}.image", "FieldValueTypeInvalid", "Expected `str`, got `int`"),
    ("Deployment", "spec.template.spec.restartPolicy", "Never", "spec.template.spec.restartPolicy",
     "FieldValueNotSupported", 'supported values: "Always"'),
    ("Deployment", "spec.replicas", -1, "spec.replicas", "FieldValueInvalid", "greater than or equal to 0"),
    ("Deployment", "spec.strategy", {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}},
     "spec.strategy.rollingUpdate.maxUnavailable", "FieldValueInvalid", "may not be 0 when `maxSurge` is 0"),
    ("ReplicationController", "spec.selector", {"app": "db"}, "spec.template.metadata.labels", "FieldValueInvalid",
     "does not match"),
    ("ConfigMap", "data", {"a/b": "x"}, "data[a/b]", "FieldValueInvalid", "a valid config key must"),
    ("ConfigMap", "data", {"a": 1}, "data[a]", "FieldValueTypeInvalid", "Expected `str`, got `int`"),
    ("Secret", "data", {"a": "no base64!"}, "data[a]", "FieldValueInvalid", "stringData"),
    ("EndpointSlice", "endpoints[0].addresses[0]", "fd00::1", "endpoints[0].addresses[0]", "FieldValueInvalid",
     "must be an IPv4 address"),
    ("EndpointSlice", "endpoints[0].hints", {"forZones": [{"name": "a"}, {"name": "a"}]},
     "endpoints[0].hints.forZones[1].name", "FieldValueDuplicate", "a"),
    ("EndpointSlice", "endpoints[0].hints", {"forNodes": [{"name": str(number)} for number in range(9)]},
     "endpoints[0].hints.forNodes", "FieldValueTooMany", "must have at most 8 items"),
    ("EndpointSlice", "endpoints[0].hints", {"forZones": [{"name": "a b"}]}, "endpoints[0].hints.forZones[0].name",
     "FieldValueInvalid", "a valid label must be"),
    ("Lease", "spec.leaseDurationSeconds", 0, "spec.leaseDurationSeconds", "FieldValueInvalid",
     "must be greater than 0"),
    ("Namespace", "metadata.namespace", "x", "metadata.namespace", "FieldValueForbidden", "not allowed on this type"),
    ("Node", "spec.podCIDRs[0]", "10.0.0.1/24", "spec.podCIDRs[0]", "FieldValueInvalid", "must be a valid CIDR"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "path", "value", "field", "reason", "message"), PLANTED)
def test_a_planted_error_is_named_by_path_reason_and_words(
    name: str, path: str, value: Any, field: str, reason: str, message: str
) -> None:
    found = causes(name, **{path: value})
    assert any(c.field == field and c.reason == reason and message in c.message for c in found), found


def test_several_errors_are_all_named() -> None:
    found = causes("Pod", **{f"{W}.image": ..., "spec.restartPolicy": "Often", "metadata.name": "A"})
    assert {cause.field for cause in found} == {f"{W}.image", "spec.restartPolicy", "metadata.name"}


def update(name: str, path: str, value: Any, **before: Any) -> list[str]:
    """Fields an update is refused for."""
    kind, old = sample(name)
    for old_path, old_value in before.items():
        plant(old, old_path, old_value)
    defaulting.apply_defaults(kind, old)
    new = codec.decode(codec.encode(old))
    plant(new, path, value)
    defaulting.apply_defaults(kind, new)
    return [cause.field for cause in validation.validate(kind, new, old)]


def test_of_a_pods_spec_only_images_deadlines_and_further_tolerations_may_change() -> None:
    assert update("Pod", f"{W}.image", "nginx:2") == []
    assert update("Pod", "spec.activeDeadlineSeconds", 5) == []
    assert update("Pod", "spec.tolerations[1]", {"operator": "Exists"}) == []
    assert update("Pod", "spec.tolerations", []) == ["spec.tolerations"]
    assert update("Pod", f"{W}.command", ["sh"]) == ["spec"]
    assert update("Pod", "spec.nodeName", "n2", **{"spec.nodeName": "n1"}) == ["spec"]


def test_selectors_addresses_and_immutable_data_stay() -> None:
    labels = {"app": "web", "x": "y"}
    assert update("Deployment", "spec.selector.matchLabels.x", "y", **{"spec.template.metadata.labels": labels}) == [
        "spec.selector"
    ]
    assert update("Service", "spec.clusterIP", "10.96.0.8", **{"spec.clusterIP": "10.96.0.7"}) == ["spec.clusterIPs[0]"]
    assert update("Service", "spec.clusterIP", "10.96.0.8") == []
    assert update("ConfigMap", "data.c", "c", immutable=True) == ["data"]
    assert update("Secret", "type", "x") == ["type"]
    assert update("Pod", "metadata.uid", "2", **{"metadata.uid": "1"}) == ["metadata.uid"]


def test_unknown_fields_are_named_by_path() -> None:
    kind, obj = sample("Deployment")
    plant(obj, f"{T}.imagePullPolicies", "x")
    plant(obj, "spec.replica", 3)
    plant(obj, "metadata.labels.anything", "x")
    assert sorted(validation.unknown_fields(kind, obj)) == ["spec.replica", f"{T}.imagePullPolicies"]


def test_defaulting_and_validating_a_pod_takes_well_below_a_millisecond() -> None:
    kind, obj = sample("Pod")
    body = codec.encode(obj)
    best = 1.0
    for _ in range(20):
        begin = time.perf_counter()
        fresh = codec.decode(body)
        defaulting.apply_defaults(kind, fresh)
        validation.validate(kind, fresh, None)
        best = min(best, time.perf_counter() - begin)
    assert best < 0.0005
