"""The table of kinds: one row a kind, everything that differs between kinds as data.

Importing this module imports no model: `Kind.model` resolves its lightkube dataclass on first use, so that the
command line, which works on plain JSON, starts fast.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .errors import JSON, NotFound


@dataclass(frozen=True)
class Kind:
    """A group/version/kind and what the API server, the clients and the command line need to know of it."""

    group: str
    version: str
    kind: str
    plural: str
    model_path: str
    """`module:class` of the lightkube-models dataclass."""
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ()
    """Names such as `status`, `scale`, `log`, `exec`, `binding`, `eviction`."""
    graceful: bool = False
    """Deletion sets deletionTimestamp and waits for the owner of the object to finish (pods)."""
    has_generation: bool = False
    """metadata.generation counts changes of spec."""

    @property
    def singular(self) -> str:
        return self.kind.lower()

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource_name(self) -> str:
        """`deployments.apps`, or `pods` in the core group."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @cached_property
    def model(self) -> type[Any]:
        module, name = self.model_path.split(":")
        found: type[Any] = getattr(importlib.import_module(module), name)
        return found

    @property
    def storage_prefix(self) -> str:
        """`/registry/pods/` or `/registry/apps.deployments/`; keys below are `<namespace>/<name>` or `<name>`."""
        name = f"{self.group}.{self.plural}" if self.group else self.plural
        return f"/registry/{name}/"

    def storage_key(self, namespace: str, name: str) -> str:
        return f"{self.storage_prefix}{namespace}/{name}" if self.namespaced else f"{self.storage_prefix}{name}"

    def has(self, subresource: str) -> bool:
        return subresource in self.subresources


class KindTable:
    """Looks kinds up by every name a client may use. Custom resources add rows at run time."""

    def __init__(self, kinds: list[Kind]) -> None:
        self._by_plural: dict[tuple[str, str], Kind] = {}
        self._by_kind: dict[tuple[str, str], Kind] = {}
        self._by_alias: dict[str, list[Kind]] = {}
        self._by_model: dict[str, Kind] = {}
        for kind in kinds:
            self.add(kind)

    def add(self, kind: Kind) -> None:
        self._by_plural[kind.group, kind.plural] = kind
        self._by_kind[kind.group, kind.kind] = kind
        self._by_model[kind.model_path.split(":")[1]] = kind
        for alias in {kind.plural, kind.singular, *kind.short_names}:
            self._by_alias.setdefault(alias, []).append(kind)

    def __iter__(self) -> Iterator[Kind]:
        return iter(self._by_plural.values())

    def by_plural(self, group: str, version: str, plural: str) -> Kind:
        """Raises NotFound, in Kubernetes' words, for a resource the server does not have."""
        kind = self._by_plural.get((group, plural))
        if kind is None or (version and kind.version != version):
            raise NotFound("the server could not find the requested resource", resource=plural, group=group)
        return kind

    def by_kind(self, api_version: str, kind: str) -> Kind:
        """The row of an object's apiVersion and kind. Raises NotFound naming both."""
        group, _, version = api_version.rpartition("/")
        found = self._by_kind.get((group, kind))
        if found is None or found.version != version:
            raise NotFound(f'no matches for kind "{kind}" in version "{api_version}"', resource=kind, group=group)
        return found

    def by_model(self, model: type[Any]) -> Kind:
        """The row whose lightkube dataclass this is."""
        kind = self._by_model.get(model.__name__)
        if kind is None or kind.model is not model:
            raise NotFound(f"no kind is registered for model {model.__module__}.{model.__name__}")
        return kind

    def of(self, obj: JSON) -> Kind:
        """The row of a JSON object by its apiVersion and kind."""
        return self.by_kind(str(obj.get("apiVersion", "")), str(obj.get("kind", "")))

    def resolve(self, text: str) -> Kind:
        """What a person types: `po`, `pod`, `pods`, `deploy`, `deployments.apps`, `deployments.v1.apps`."""
        alias, _, rest = text.lower().partition(".")
        for kind in self._by_alias.get(alias, []):
            if not rest or rest in (
                kind.group,
                f"{kind.version}.{kind.group}",
                kind.version if not kind.group else None,
            ):
                return kind
        raise NotFound(f'the server doesn\'t have a resource type "{text}"', resource=text)


_ALL = ("all",)

_CORE = "lightkube.models.core_v1"
_APPS = "lightkube.models.apps_v1"
_SCALED = ("status", "scale")
_POD_SUBRESOURCES = ("status", "binding", "eviction", "log", "exec", "attach", "portforward", "proxy")

KINDS = KindTable(
    [
        Kind("", "v1", "Namespace", "namespaces", f"{_CORE}:Namespace", namespaced=False, short_names=("ns",),
             subresources=("status", "finalize")),
        Kind("", "v1", "Node", "nodes", f"{_CORE}:Node", namespaced=False, short_names=("no",),
             subresources=("status", "proxy")),
        Kind("", "v1", "Pod", "pods", f"{_CORE}:Pod", short_names=("po",), categories=_ALL,
             subresources=_POD_SUBRESOURCES, graceful=True, has_generation=True),
        Kind("", "v1", "Service", "services", f"{_CORE}:Service", short_names=("svc",), categories=_ALL,
             subresources=("status", "proxy")),
        Kind("", "v1", "Endpoints", "endpoints", f"{_CORE}:Endpoints", short_names=("ep",)),
        Kind("", "v1", "ReplicationController", "replicationcontrollers", f"{_CORE}:ReplicationController",
             short_names=("rc",), categories=_ALL, subresources=_SCALED, has_generation=True),
        Kind("", "v1", "ConfigMap", "configmaps", f"{_CORE}:ConfigMap", short_names=("cm",)),
        Kind("", "v1", "Secret", "secrets", f"{_CORE}:Secret"),
        Kind("", "v1", "Event", "events", f"{_CORE}:Event", short_names=("ev",)),
        Kind("", "v1", "ServiceAccount", "serviceaccounts", f"{_CORE}:ServiceAccount", short_names=("sa",)),
        Kind("apps", "v1", "ReplicaSet", "replicasets", f"{_APPS}:ReplicaSet", short_names=("rs",), categories=_ALL,
             subresources=_SCALED, has_generation=True),
        Kind("apps", "v1", "Deployment", "deployments", f"{_APPS}:Deployment", short_names=("deploy",),
             categories=_ALL, subresources=_SCALED, has_generation=True),
        Kind("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", "lightkube.models.discovery_v1:EndpointSlice",
             has_generation=True),
        Kind("coordination.k8s.io", "v1", "Lease", "leases", "lightkube.models.coordination_v1:Lease"),
    ]
)  # fmt: skip
