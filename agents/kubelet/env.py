"""The environment of a container: env, envFrom, `$(VAR)` and the variables of services, as Kubernetes gives them."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from lightkube.models.core_v1 import ConfigMap, Container, EnvFromSource, EnvVar, Pod, Secret, Service

from . import pods
from .fields import FieldError, NodeFacts, field_value, resource_value

MASTER_NAMESPACE, MASTER_NAME = "default", "kubernetes"
_REFERENCE = re.compile(r"\$(\$|\(([^()]*)\))")


class ConfigError(Exception):
    """A ConfigMap, Secret or key that a container needs is missing; the message names it and the fix."""


class Objects(Protocol):
    """Where ConfigMaps and Secrets are found."""

    async def config_map(self, namespace: str, name: str) -> ConfigMap | None: ...
    async def secret(self, namespace: str, name: str) -> Secret | None: ...


@dataclass(frozen=True, slots=True)
class EnvContext:
    """What a container's environment is made from."""

    pod: Pod
    node: NodeFacts
    addresses: tuple[str, ...]
    objects: Objects
    services: Iterable[Service] = ()


def expand(text: str, known: Mapping[str, str]) -> str:
    """`$(NAME)` replaced where NAME is known and left alone where not; `$$` is one dollar sign.

    >>> expand("http://$(HOST):$$(PORT)/$(NONE)", {"HOST": "web"})
    'http://web:$(PORT)/$(NONE)'
    """

    def one(match: re.Match[str]) -> str:
        if match[1] == "$":
            return "$"
        return known.get(match[2], match[0])

    return _REFERENCE.sub(one, text)


async def container_env(context: EnvContext, container: Container) -> dict[str, str]:
    """All variables of a container. Raises ConfigError or FieldError."""
    spec = pods.spec(context.pod)
    links = spec.enableServiceLinks is not False
    services = service_env(context.services, pods.namespace(context.pod), links=links)
    env: dict[str, str] = {}
    for source in container.envFrom or []:
        env |= await _env_from(context, source)
    # References may name services, envFrom and earlier variables, and services never hide what the pod states.
    for variable in container.env or []:
        value = await _variable(context, container, variable, services | env)
        if value is not None:
            env[variable.name] = value
    return services | env


async def _env_from(context: EnvContext, source: EnvFromSource) -> dict[str, str]:
    namespace = pods.namespace(context.pod)
    prefix = source.prefix or ""
    if source.configMapRef:
        found = await context.objects.config_map(namespace, source.configMapRef.name or "")
        if found is None and not source.configMapRef.optional:
            raise ConfigError(missing("configmap", namespace, source.configMapRef.name))
        return {prefix + key: str(value) for key, value in ((found.data if found else None) or {}).items()}
    if source.secretRef:
        secret = await context.objects.secret(namespace, source.secretRef.name or "")
        if secret is None and not source.secretRef.optional:
            raise ConfigError(missing("secret", namespace, source.secretRef.name))
        data = secret_data(secret) if secret else {}
        return {prefix + key: value.decode(errors="surrogateescape") for key, value in data.items()}
    return {}


async def _variable(
    context: EnvContext, container: Container, variable: EnvVar, known: Mapping[str, str]
) -> str | None:
    source = variable.valueFrom
    if source is None:
        return expand(variable.value or "", known)
    if source.fieldRef:
        return field_value(context.pod, source.fieldRef, context.node, context.addresses)
    if source.resourceFieldRef:
        return resource_value(context.pod, container, source.resourceFieldRef, context.node)
    namespace = pods.namespace(context.pod)
    if source.configMapKeyRef:
        ref = source.configMapKeyRef
        found = await context.objects.config_map(namespace, ref.name or "")
        values = (found.data or {}) if found else {}
        return _pick("configmap", namespace, ref, found is not None, values)
    if source.secretKeyRef:
        key = source.secretKeyRef
        secret = await context.objects.secret(namespace, key.name or "")
        data = secret_data(secret) if secret else {}
        texts = {name: value.decode(errors="surrogateescape") for name, value in data.items()}
        return _pick("secret", namespace, key, secret is not None, texts)
    raise FieldError(f"variable {variable.name} of container {container.name} names no known source in valueFrom")


def _pick(kind: str, namespace: str, ref: Any, exists: bool, values: Mapping[str, Any]) -> str | None:
    if ref.key in values:
        return str(values[ref.key])
    if ref.optional:
        return None
    if not exists:
        raise ConfigError(missing(kind, namespace, ref.name))
    raise ConfigError(f"couldn't find key {ref.key} in {kind} {namespace}/{ref.name}; add it, or mark it optional")


def missing(kind: str, namespace: str, name: str | None) -> str:
    return f'{kind} "{namespace}/{name}" not found; create it, or mark the reference optional'


def secret_data(secret: Secret) -> dict[str, bytes]:
    """The decoded values of a Secret."""
    data = {key: base64.b64decode(value) for key, value in (secret.data or {}).items()}
    return data | {key: str(value).encode() for key, value in (secret.stringData or {}).items()}


def service_env(services: Iterable[Service], namespace: str, *, links: bool) -> dict[str, str]:
    """Variables of the services with a cluster address: those of `namespace` (if `links`) and the API server's."""
    env: dict[str, str] = {}
    for service in sorted(services, key=lambda one: str(one.metadata and one.metadata.name)):
        metadata, spec = service.metadata, service.spec
        if metadata is None or spec is None or spec.clusterIP in (None, "", "None") or not spec.ports:
            continue
        master = (metadata.namespace, metadata.name) == (MASTER_NAMESPACE, MASTER_NAME)
        if master or (links and metadata.namespace == namespace):
            env |= _one_service(str(metadata.name), str(spec.clusterIP), spec.ports)
    return env


def _one_service(name: str, address: str, ports: list[Any]) -> dict[str, str]:
    prefix = name.upper().replace("-", "_")
    env = {f"{prefix}_SERVICE_HOST": address, f"{prefix}_SERVICE_PORT": str(ports[0].port)}
    for index, port in enumerate(ports):
        if port.name:
            env[f"{prefix}_SERVICE_PORT_{port.name.upper().replace('-', '_')}"] = str(port.port)
        protocol = (port.protocol or "TCP").lower()
        url = f"{protocol}://{address}:{port.port}"
        if index == 0:
            env[f"{prefix}_PORT"] = url
        link = f"{prefix}_PORT_{port.port}_{protocol.upper()}"
        env |= {link: url, f"{link}_PROTO": protocol, f"{link}_PORT": str(port.port), f"{link}_ADDR": address}
    return env
