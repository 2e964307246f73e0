"""Discovery documents, built from a table of kinds: the per-group lists and the aggregated form (v2 and v2beta1).

Source: meta/v1 APIResourceList and KEP-3352 (aggregated discovery).
"""

from __future__ import annotations

from collections.abc import Iterable

from .errors import JSON
from .kinds import Kind

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
_GET_CREATE = ("create", "get")
_READ_WRITE = ("get", "patch", "update")
_ANY = ("create", "delete", "get", "patch", "update")
# Subresource -> verbs, and the group, version and kind it speaks where that is not its parent's.
_SUBRESOURCES: dict[str, tuple[tuple[str, ...], tuple[str, str, str] | None]] = {
    "status": (_READ_WRITE, None),
    "scale": (_READ_WRITE, ("autoscaling", "v1", "Scale")),
    "finalize": (("update",), None),
    "binding": (("create",), ("", "v1", "Binding")),
    "eviction": (("create",), ("policy", "v1", "Eviction")),
    "log": (("get",), None),
    "exec": (_GET_CREATE, ("", "v1", "PodExecOptions")),
    "attach": (_GET_CREATE, ("", "v1", "PodAttachOptions")),
    "portforward": (_GET_CREATE, ("", "v1", "PodPortForwardOptions")),
}


def _subresource(kind: Kind, name: str) -> tuple[tuple[str, ...], tuple[str, str, str]]:
    if name == "proxy":
        return _ANY, (kind.group, kind.version, f"{kind.kind}ProxyOptions")
    verbs, speaks = _SUBRESOURCES.get(name, (_READ_WRITE, None))
    return verbs, speaks or (kind.group, kind.version, kind.kind)


def groups(kinds: Iterable[Kind]) -> dict[str, list[str]]:
    """Group -> its versions, preferred first, in the table's order; the core group is ""."""
    found: dict[str, list[str]] = {}
    for kind in kinds:
        versions = found.setdefault(kind.group, [])
        if kind.version not in versions:
            versions.append(kind.version)
    return found


def api_versions(server_address: str = "") -> JSON:
    """The answer of /api."""
    addresses = [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}]
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": addresses}


def api_group(group: str, versions: list[str]) -> JSON:
    """The answer of /apis/<group>."""
    offered = [{"groupVersion": f"{group}/{version}", "version": version} for version in versions]
    return {"kind": "APIGroup", "apiVersion": "v1", "name": group, "versions": offered, "preferredVersion": offered[0]}


def api_group_list(kinds: Iterable[Kind]) -> JSON:
    """The answer of /apis: every group but the core one."""
    listed = [
        {key: value for key, value in api_group(group, versions).items() if key not in ("kind", "apiVersion")}
        for group, versions in groups(kinds).items()
        if group
    ]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}


def api_resource_list(kinds: Iterable[Kind], group: str, version: str) -> JSON:
    """The answer of /api/v1 or /apis/<group>/<version>."""
    resources: list[JSON] = []
    for kind in kinds:
        if (kind.group, kind.version) == (group, version):
            resources.append(_resource(kind))
            resources += [_legacy_subresource(kind, name) for name in kind.subresources]
    group_version = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}


def _resource(kind: Kind) -> JSON:
    resource: JSON = {
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": list(VERBS),
    }
    if kind.short_names:
        resource["shortNames"] = list(kind.short_names)
    if kind.categories:
        resource["categories"] = list(kind.categories)
    return resource


def _legacy_subresource(kind: Kind, name: str) -> JSON:
    verbs, (group, version, speaks) = _subresource(kind, name)
    resource: JSON = {"name": f"{kind.plural}/{name}", "singularName": "", "namespaced": kind.namespaced}
    if (group, version) != (kind.group, kind.version):
        resource |= {"group": group, "version": version}
    return resource | {"kind": speaks, "verbs": list(verbs)}


def aggregated(kinds: Iterable[Kind], *, core: bool, version: str = "v2") -> JSON:
    """The APIGroupDiscoveryList of /api (core) or /apis, in apidiscovery.k8s.io `v2` or `v2beta1`."""
    table = list(kinds)
    items = []
    for group, versions in groups(table).items():
        if (not group) is core:
            offered = [_aggregated_version(table, group, offered_version) for offered_version in versions]
            items.append({"metadata": {"name": group} if group else {}, "versions": offered})
    api_version = f"apidiscovery.k8s.io/{version}"
    return {"kind": "APIGroupDiscoveryList", "apiVersion": api_version, "metadata": {}, "items": items}


def _aggregated_version(kinds: list[Kind], group: str, version: str) -> JSON:
    resources = [_aggregated(kind) for kind in kinds if (kind.group, kind.version) == (group, version)]
    return {"version": version, "resources": resources, "freshness": "Current"}


def _aggregated(kind: Kind) -> JSON:
    resource: JSON = {
        "resource": kind.plural,
        "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "scope": "Namespaced" if kind.namespaced else "Cluster",
        "singularResource": kind.singular,
        "verbs": list(VERBS),
    }
    if kind.short_names:
        resource["shortNames"] = list(kind.short_names)
    if kind.categories:
        resource["categories"] = list(kind.categories)
    if kind.subresources:
        resource["subresources"] = [_aggregated_subresource(kind, name) for name in kind.subresources]
    return resource


def _aggregated_subresource(kind: Kind, name: str) -> JSON:
    verbs, (group, version, speaks) = _subresource(kind, name)
    response = {"group": group, "version": version, "kind": speaks}
    return {"subresource": name, "responseKind": response, "verbs": list(verbs)}
