"""What is in the files of configMap, secret, downwardAPI and projected volumes."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from lightkube.models.core_v1 import (
    DownwardAPIVolumeFile,
    KeyToPath,
    Pod,
    ServiceAccountTokenProjection,
    Volume,
    VolumeProjection,
)

from . import pods
from .atomic import Entry
from .env import ConfigError, Objects, missing, secret_data
from .fields import FieldError, NodeFacts, field_value, resource_value

DEFAULT_MODE = 0o644

TokenSource = Callable[[Pod, ServiceAccountTokenProjection], Awaitable[str]]
"""Issues a service account token for a pod."""


@dataclass(frozen=True, slots=True)
class PayloadContext:
    """What volumes of a pod are filled from."""

    pod: Pod
    node: NodeFacts
    addresses: tuple[str, ...]
    objects: Objects
    token: TokenSource | None = None
    """None: the cluster issues no tokens, and projected tokens are left out."""


def is_payload(volume: Volume) -> bool:
    """Whether the kubelet writes the volume's files."""
    return bool(volume.configMap or volume.secret or volume.downwardAPI or volume.projected)


def is_confidential(volume: Volume) -> bool:
    """Whether the volume must stay in memory."""
    projected = volume.projected.sources or [] if volume.projected else []
    return bool(volume.secret or any(source.secret or source.serviceAccountToken for source in projected))


async def payload_of(context: PayloadContext, volume: Volume) -> dict[str, Entry]:
    """The files of a volume for which `is_payload` holds. Raises ConfigError or FieldError."""
    if volume.configMap:
        mode = DEFAULT_MODE if volume.configMap.defaultMode is None else volume.configMap.defaultMode
        source = volume.configMap
        return await _config_map(context, source.name, source.items, bool(source.optional), mode)
    if volume.secret:
        secret = volume.secret
        mode = DEFAULT_MODE if secret.defaultMode is None else secret.defaultMode
        return await _secret(context, secret.secretName, secret.items, bool(secret.optional), mode)
    if volume.downwardAPI:
        mode = DEFAULT_MODE if volume.downwardAPI.defaultMode is None else volume.downwardAPI.defaultMode
        return _downward(context, volume.downwardAPI.items or [], mode)
    files: dict[str, Entry] = {}
    if volume.projected:
        mode = DEFAULT_MODE if volume.projected.defaultMode is None else volume.projected.defaultMode
        for projection in volume.projected.sources or []:
            files |= await _projected(context, projection, mode)
    return files


async def _projected(context: PayloadContext, source: VolumeProjection, mode: int) -> dict[str, Entry]:
    if source.configMap:
        one = source.configMap
        return await _config_map(context, one.name, one.items, bool(one.optional), mode)
    if source.secret:
        two = source.secret
        return await _secret(context, two.name, two.items, bool(two.optional), mode)
    if source.downwardAPI:
        return _downward(context, source.downwardAPI.items or [], mode)
    if source.serviceAccountToken:
        if context.token is None:
            return {}
        token = await context.token(context.pod, source.serviceAccountToken)
        return {source.serviceAccountToken.path: Entry(token.encode(), 0o600)}
    raise FieldError("a projected source is neither configMap, secret, downwardAPI nor serviceAccountToken")


async def _config_map(
    context: PayloadContext, name: str | None, items: Sequence[KeyToPath] | None, optional: bool, mode: int
) -> dict[str, Entry]:
    namespace = pods.namespace(context.pod)
    found = await context.objects.config_map(namespace, name or "")
    if found is None:
        if optional:
            return {}
        raise ConfigError(missing("configmap", namespace, name))
    values = {key: str(value).encode() for key, value in (found.data or {}).items()}
    values |= {key: base64.b64decode(value) for key, value in (found.binaryData or {}).items()}
    return _select(f'configmap "{namespace}/{name}"', values, items, optional, mode)


async def _secret(
    context: PayloadContext, name: str | None, items: Sequence[KeyToPath] | None, optional: bool, mode: int
) -> dict[str, Entry]:
    namespace = pods.namespace(context.pod)
    found = await context.objects.secret(namespace, name or "")
    if found is None:
        if optional:
            return {}
        raise ConfigError(missing("secret", namespace, name))
    return _select(f'secret "{namespace}/{name}"', secret_data(found), items, optional, mode)


def _select(
    what: str, values: Mapping[str, bytes], items: Sequence[KeyToPath] | None, optional: bool, mode: int
) -> dict[str, Entry]:
    if not items:
        return {key: Entry(value, mode) for key, value in values.items()}
    files = {}
    for item in items:
        if item.key in values:
            files[item.path] = Entry(values[item.key], mode if item.mode is None else item.mode)
        elif not optional:
            raise ConfigError(f"{what} has no key {item.key!r}; add it, or mark the volume optional")
    return files


def _downward(context: PayloadContext, items: Sequence[DownwardAPIVolumeFile], mode: int) -> dict[str, Entry]:
    files = {}
    for item in items:
        if item.fieldRef:
            text = field_value(context.pod, item.fieldRef, context.node, context.addresses)
        elif item.resourceFieldRef:
            text = resource_value(context.pod, None, item.resourceFieldRef, context.node)
        else:
            raise FieldError(f"downwardAPI file {item.path!r} has neither fieldRef nor resourceFieldRef")
        files[item.path] = Entry(text.encode(), mode if item.mode is None else item.mode)
    return files
