"""Rules of one container of a pod."""

from __future__ import annotations

from collections.abc import Iterator

from .causes import duplicate, forbidden, invalid_value, not_found, not_supported, required
from .errors import JSON, Cause
from .names import (
    config_key_problem,
    dns_label_problem,
    env_name_problem,
    port_name_problem,
    port_number_problem,
    qualified_name_problem,
)  # fmt: skip
from .validation_labels import quantity

_PROTOCOLS = ("TCP", "UDP", "SCTP")
_PULL_POLICIES = ("Always", "IfNotPresent", "Never")
_MESSAGE_POLICIES = ("File", "FallbackToLogsOnError")
_SCHEMES = ("HTTP", "HTTPS")
_HANDLERS = ("exec", "httpGet", "tcpSocket", "grpc", "sleep")
_ENV_SOURCES = ("fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef")
_FIELD_PATHS = (
    "metadata.name", "metadata.namespace", "metadata.uid", "metadata.labels", "metadata.annotations", "spec.nodeName",
    "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs",
)  # fmt: skip


def check_container(path: str, container: JSON, names: set[str], volumes: set[str]) -> Iterator[Cause]:
    """One container; `names` of those before it are extended, `volumes` are what it may mount."""
    name = container["name"]
    if not name:
        yield required(f"{path}.name")
    elif wrong := dns_label_problem(name):
        yield invalid_value(f"{path}.name", name, wrong)
    elif name in names:
        yield duplicate(f"{path}.name", name)
    names.add(name)
    image = container.get("image")
    if not image:
        yield required(f"{path}.image")
    elif image != image.strip():
        yield invalid_value(f"{path}.image", image, "must not have leading or trailing whitespace")
    policy = container.get("imagePullPolicy")
    if policy is not None and policy not in _PULL_POLICIES:
        yield not_supported(f"{path}.imagePullPolicy", policy, _PULL_POLICIES)
    if container["terminationMessagePolicy"] not in _MESSAGE_POLICIES:
        yield not_supported(
            f"{path}.terminationMessagePolicy", container["terminationMessagePolicy"], _MESSAGE_POLICIES
        )
    yield from _check_ports(f"{path}.ports", container.get("ports") or [])
    yield from _check_env(path, container)
    yield from _check_mounts(f"{path}.volumeMounts", container.get("volumeMounts") or [], volumes)
    yield from _check_resources(f"{path}.resources", container["resources"])
    for kind in ("livenessProbe", "readinessProbe", "startupProbe"):
        if kind in container:
            yield from _check_probe(f"{path}.{kind}", container[kind], kind)
    for hook, handler in (container.get("lifecycle") or {}).items():
        if isinstance(handler, dict):
            yield from _check_handler(f"{path}.lifecycle.{hook}", handler)


def _check_ports(path: str, ports: list[JSON]) -> Iterator[Cause]:
    names: set[str] = set()
    for index, port in enumerate(ports):
        where, name, host_port = f"{path}[{index}]", port.get("name"), port.get("hostPort")
        if name:
            if wrong := port_name_problem(name):
                yield invalid_value(f"{where}.name", name, wrong)
            elif name in names:
                yield duplicate(f"{where}.name", name)
            names.add(name)
        if wrong := port_number_problem(port["containerPort"]):
            yield invalid_value(f"{where}.containerPort", port["containerPort"], wrong)
        if host_port and (wrong := port_number_problem(host_port)):
            yield invalid_value(f"{where}.hostPort", host_port, wrong)
        if port["protocol"] not in _PROTOCOLS:
            yield not_supported(f"{where}.protocol", port["protocol"], _PROTOCOLS)


def _check_env(path: str, container: JSON) -> Iterator[Cause]:
    for index, env in enumerate(container.get("env") or []):
        where, name, source = f"{path}.env[{index}]", env["name"], env.get("valueFrom")
        if not name:
            yield required(f"{where}.name")
        elif wrong := env_name_problem(name):
            yield invalid_value(f"{where}.name", name, wrong)
        if source is not None:
            yield from _check_env_source(f"{where}.valueFrom", source, bool(env.get("value")))
    for index, source in enumerate(container.get("envFrom") or []):
        where = f"{path}.envFrom[{index}]"
        prefix = source.get("prefix")
        if prefix and (wrong := env_name_problem(prefix)):
            yield invalid_value(f"{where}.prefix", prefix, wrong)
        given = [key for key in ("configMapRef", "secretRef") if key in source]
        if len(given) != 1:
            yield invalid_value(where, "", "must specify one of: `configMapRef` or `secretRef`")
        elif not source[given[0]].get("name"):
            yield required(f"{where}.{given[0]}.name")


def _check_env_source(path: str, source: JSON, has_value: bool) -> Iterator[Cause]:
    given = [key for key in _ENV_SOURCES if key in source]
    if has_value and given:
        yield invalid_value(path, "", "may not be specified when `value` is not empty")
    elif len(given) != 1:
        yield invalid_value(
            path, "", f"must specify exactly one of: {', '.join(f'`{key}`' for key in _ENV_SOURCES[:4])}"
        )
    reference = source.get("fieldRef")
    if reference is not None:
        field = reference["fieldPath"]
        base, bracket, _ = field.partition("[")
        if not field:
            yield required(f"{path}.fieldRef.fieldPath")
        elif (bracket and base not in ("metadata.labels", "metadata.annotations")) or base not in _FIELD_PATHS:
            yield invalid_value(
                f"{path}.fieldRef.fieldPath", field, "error converting fieldPath: field label not supported"
            )
    for key in ("configMapKeyRef", "secretKeyRef"):
        reference = source.get(key)
        if reference is not None:
            if not reference["key"]:
                yield required(f"{path}.{key}.key")
            elif wrong := config_key_problem(reference["key"]):
                yield invalid_value(f"{path}.{key}.key", reference["key"], wrong)
            if not reference.get("name"):
                yield required(f"{path}.{key}.name")


def _check_mounts(path: str, mounts: list[JSON], volumes: set[str]) -> Iterator[Cause]:
    points: set[str] = set()
    for index, mount in enumerate(mounts):
        where, point = f"{path}[{index}]", mount["mountPath"]
        if not mount["name"]:
            yield required(f"{where}.name")
        elif mount["name"] not in volumes:
            yield not_found(f"{where}.name", mount["name"])
        if not point:
            yield required(f"{where}.mountPath")
        elif point in points:
            yield invalid_value(f"{where}.mountPath", point, "must be unique")
        points.add(point)
        sub = mount.get("subPath") or ""
        if sub.startswith("/"):
            yield invalid_value(f"{where}.subPath", sub, "must be a relative path")
        elif ".." in sub.split("/"):
            yield invalid_value(f"{where}.subPath", sub, "must not contain '..'")
        if sub and mount.get("subPathExpr"):
            yield invalid_value(
                f"{where}.subPathExpr", mount["subPathExpr"], "subPathExpr and subPath are mutually exclusive"
            )


def _check_resources(path: str, resources: JSON) -> Iterator[Cause]:
    limits = {}
    for name, value in (resources.get("limits") or {}).items():
        where = f"{path}.limits[{name}]"
        if wrong := qualified_name_problem(name):
            yield invalid_value(where, name, wrong)
        amount, cause = quantity(where, value)
        if cause is not None:
            yield cause
        elif amount is not None:
            limits[name] = (amount, value)
    for name, value in (resources.get("requests") or {}).items():
        where = f"{path}.requests[{name}]"
        amount, cause = quantity(where, value)
        if cause is not None:
            if name not in (resources.get("limits") or {}):
                yield cause
        elif amount is not None and name in limits and amount > limits[name][0]:
            limit = limits[name][1]
            yield invalid_value(f"{path}.requests", value, f"must be less than or equal to {name} limit of {limit}")


def _check_probe(path: str, probe: JSON, kind: str) -> Iterator[Cause]:
    yield from _check_handler(path, probe)
    for field, least in (
        ("initialDelaySeconds", 0),
        ("timeoutSeconds", 1),
        ("periodSeconds", 1),
        ("failureThreshold", 1),
    ):
        value = probe.get(field, least)
        if value < least:
            yield invalid_value(f"{path}.{field}", value, f"must be greater than or equal to {least}")
    successes = probe["successThreshold"]
    if kind != "readinessProbe" and successes != 1:
        yield invalid_value(f"{path}.successThreshold", successes, "must be 1")
    elif successes < 1:
        yield invalid_value(f"{path}.successThreshold", successes, "must be greater than or equal to 1")
    grace = probe.get("terminationGracePeriodSeconds")
    if grace is not None and kind == "readinessProbe":
        yield invalid_value(f"{path}.terminationGracePeriodSeconds", grace, "must not be set for readinessProbes")


def _check_handler(path: str, handler: JSON) -> Iterator[Cause]:
    given = [key for key in _HANDLERS if key in handler]
    if not given:
        yield required(path, "must specify a handler type")
    for extra in given[1:]:
        yield forbidden(f"{path}.{extra}", "may not specify more than 1 handler type")
    if "exec" in handler and not handler["exec"].get("command"):
        yield required(f"{path}.exec.command")
    for key in ("httpGet", "tcpSocket", "grpc"):
        if key in handler:
            yield from check_port_reference(f"{path}.{key}.port", handler[key]["port"])
    action = handler.get("httpGet")
    if action is not None:
        if action["scheme"] not in _SCHEMES:
            yield not_supported(f"{path}.httpGet.scheme", action["scheme"], _SCHEMES)
        for header in action.get("httpHeaders") or []:
            if not header["name"] or any(letter in header["name"] for letter in " :\r\n"):
                yield invalid_value(
                    f"{path}.httpGet.httpHeaders", header["name"], "a valid HTTP header name is required"
                )


def check_port_reference(path: str, port: int | str) -> Iterator[Cause]:
    """A port by number, or by the name a container gives it."""
    if isinstance(port, int):
        if wrong := port_number_problem(port):
            yield invalid_value(path, port, wrong)
    elif wrong := port_name_problem(port):
        yield invalid_value(path, port, wrong)
