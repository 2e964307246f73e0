"""Defaults of a pod's spec, alike in pods and in the templates of workloads."""

from __future__ import annotations

from typing import Any

from .errors import JSON
from .jsontools import child, children, default, default_map, default_number
from .resources import canonical

_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_DEFAULT_MODE = 0o644
_PROBE_NUMBERS = {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}


def pod_spec_defaults(spec: JSON) -> None:
    default(spec, "restartPolicy", "Always")
    default(spec, "dnsPolicy", "ClusterFirst")
    default(spec, "schedulerName", "default-scheduler")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("enableServiceLinks", True)
    default_map(spec, "securityContext")
    _service_account(spec)
    for key in ("initContainers", "containers", "ephemeralContainers"):
        for container in children(spec, key):
            _container(container)
            if spec.get("hostNetwork") is True:
                _host_ports(container)
    for volume in children(spec, "volumes"):
        _volume(volume)


def _service_account(spec: JSON) -> None:
    """serviceAccount is the old name of serviceAccountName; the two always agree."""
    name = spec.get("serviceAccountName") or spec.get("serviceAccount")
    if name:
        spec["serviceAccountName"] = spec["serviceAccount"] = name


def _container(container: JSON) -> None:
    default(container, "terminationMessagePath", "/dev/termination-log")
    default(container, "terminationMessagePolicy", "File")
    image = container.get("image")
    if isinstance(image, str):
        default(container, "imagePullPolicy", pull_policy(image))
    for port in children(container, "ports"):
        default(port, "protocol", "TCP")
    for env in children(container, "env"):
        _field_reference(child(env, "valueFrom"))
    _resources(default_map(container, "resources"))
    for key in _PROBES:
        if key in container:
            _probe(child(container, key))
    lifecycle = child(container, "lifecycle")
    for hook in ("postStart", "preStop"):
        _http_get(child(lifecycle, hook))


def pull_policy(image: str) -> str:
    """`Always` for a tag that moves (latest, or none), else `IfNotPresent`."""
    path, _, digest = image.partition("@")
    tag = path.rpartition("/")[2].partition(":")[2]
    if tag == "latest" or (not tag and not digest):
        return "Always"
    return "IfNotPresent"


def _resources(resources: JSON) -> None:
    """Quantities in canonical form; a limit without a request is the request too."""
    for key in ("limits", "requests"):
        amounts = child(resources, key)
        for name, amount in amounts.items():
            amounts[name] = _canonical(amount)
    limits = child(resources, "limits")
    if limits:
        requests = default_map(resources, "requests")
        for name, amount in limits.items():
            requests.setdefault(name, amount)


def _canonical(amount: Any) -> Any:
    if isinstance(amount, bool) or not isinstance(amount, (str, int, float)):
        return amount
    try:
        return canonical(amount)
    except ValueError:
        return amount


def _probe(probe: JSON) -> None:
    for key, value in _PROBE_NUMBERS.items():
        default_number(probe, key, value)
    _http_get(probe)
    grpc = probe.get("grpc")
    if isinstance(grpc, dict):
        grpc.setdefault("service", "")


def _http_get(handler: JSON) -> None:
    action = handler.get("httpGet")
    if isinstance(action, dict):
        default(action, "path", "/")
        default(action, "scheme", "HTTP")


def _host_ports(container: JSON) -> None:
    """On the host's network a container's port is the host's."""
    for port in children(container, "ports"):
        if not port.get("hostPort") and "containerPort" in port:
            port["hostPort"] = port["containerPort"]


def _field_reference(source: JSON) -> None:
    reference = source.get("fieldRef")
    if isinstance(reference, dict):
        default(reference, "apiVersion", "v1")


def _volume(volume: JSON) -> None:
    if not any(key != "name" for key in volume):
        volume["emptyDir"] = {}
    for key in ("secret", "configMap", "downwardAPI", "projected"):
        source = volume.get(key)
        if isinstance(source, dict):
            source.setdefault("defaultMode", _DEFAULT_MODE)
    host = volume.get("hostPath")
    if isinstance(host, dict):
        host.setdefault("type", "")
    _downward(child(volume, "downwardAPI"))
    for source in children(child(volume, "projected"), "sources"):
        token = source.get("serviceAccountToken")
        if isinstance(token, dict):
            default_number(token, "expirationSeconds", 3600)
        _downward(child(source, "downwardAPI"))


def _downward(source: JSON) -> None:
    for item in children(source, "items"):
        _field_reference(item)
