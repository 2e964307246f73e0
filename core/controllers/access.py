"""Short ways to what models keep behind optional fields."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

import msgspec
from lightkube.models.core_v1 import ObjectReference, PodTemplateSpec
from lightkube.models.meta_v1 import LabelSelector as LabelSelectorModel
from lightkube.models.meta_v1 import ObjectMeta, OwnerReference

from kernelet.core.api.errors import JSON

Key = tuple[str, str]
"""Namespace ("" for cluster-scoped kinds) and name."""


class HasMetadata(Protocol):
    """Any object of the API."""

    @property
    def metadata(self) -> ObjectMeta | None: ...


T = TypeVar("T")


def meta(obj: HasMetadata) -> ObjectMeta:
    """The metadata every stored object has. Raises ValueError for an object made by hand without it."""
    if obj.metadata is None:
        raise ValueError(f"{type(obj).__name__} has no metadata")
    return obj.metadata


def name_of(obj: HasMetadata) -> str:
    return meta(obj).name or ""


def namespace_of(obj: HasMetadata) -> str:
    return meta(obj).namespace or ""


def uid_of(obj: HasMetadata) -> str:
    return meta(obj).uid or ""


def key_of(obj: HasMetadata) -> Key:
    return namespace_of(obj), name_of(obj)


def labels_of(obj: HasMetadata) -> Mapping[str, str]:
    return meta(obj).labels or {}


def annotations_of(obj: HasMetadata) -> Mapping[str, str]:
    return meta(obj).annotations or {}


def deleting(obj: HasMetadata) -> bool:
    """Whether deletion has been asked for."""
    return meta(obj).deletionTimestamp is not None


def created(obj: HasMetadata) -> datetime:
    return meta(obj).creationTimestamp or datetime.fromtimestamp(0, UTC)


def controller_of(obj: HasMetadata) -> OwnerReference | None:
    """The one owner that manages this object, if any."""
    return next((owner for owner in meta(obj).ownerReferences or [] if owner.controller), None)


def controller_reference(owner: HasMetadata, api_version: str, kind: str) -> OwnerReference:
    """What an object made by a controller for `owner` carries; foreground deletion of the owner waits for it."""
    return OwnerReference(
        apiVersion=api_version,
        kind=kind,
        name=name_of(owner),
        uid=uid_of(owner),
        controller=True,
        blockOwnerDeletion=True,
    )


def reference_to(obj: HasMetadata, api_version: str | None, kind: str) -> ObjectReference:
    """What an endpoint or an event carries to name its object."""
    found = meta(obj)
    return ObjectReference(apiVersion=api_version, kind=kind, name=found.name, namespace=found.namespace, uid=found.uid)


def clone(obj: T) -> T:
    """A copy that may be changed; objects of a cache may not."""
    return copy.deepcopy(obj)


def to_json(model: msgspec.Struct) -> JSON:
    """The JSON of a model, fields at their default left out."""
    found: JSON = msgspec.to_builtins(model)
    return found


def selector_json(selector: LabelSelectorModel | None) -> JSON | None:
    """The object form `selectors.LabelSelector.from_object` reads."""
    return None if selector is None else to_json(selector)


def template_labels(template: PodTemplateSpec | None) -> dict[str, str]:
    if template is None or template.metadata is None:
        return {}
    return dict(template.metadata.labels or {})


def now() -> datetime:
    """Wall-clock time in whole seconds, as the API writes it."""
    return datetime.now(UTC).replace(microsecond=0)


def condition(conditions: list[Any] | None, name: str) -> Any:
    """The condition of this type, or None. Conditions of all kinds have `type` and `status`."""
    return next((entry for entry in conditions or [] if entry.type == name), None)
