"""Who may do what: a static role table over users and groups.

Verbs and attributes are those of Kubernetes' authorization (verb, API group, resource, subresource, namespace, name).
A rule allows; nothing denies; what no rule allows is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..api.errors import Forbidden
from .users import User

MASTERS = "system:masters"
NODES = "system:nodes"
NODE_PREFIX = "system:node:"

_READ = frozenset({"get", "list", "watch"})
_WRITE = frozenset({"create", "update", "patch"})
_ANY = frozenset({"*"})


@dataclass(frozen=True)
class Rule:
    """`resources` as kubectl writes them, with subresource: `pods`, `pods/status`, `leases.coordination.k8s.io`."""

    verbs: frozenset[str]
    resources: frozenset[str]
    own_name_only: bool = False
    """Only the object named like the node that asks."""

    def allows(self, verb: str, resource: str, name: str, own_name: str) -> bool:
        if self.own_name_only and name != own_name:
            return False
        return ("*" in self.verbs or verb in self.verbs) and ("*" in self.resources or resource in self.resources)


def _rule(verbs: frozenset[str], *resources: str, own_name_only: bool = False) -> Rule:
    return Rule(verbs, frozenset(resources), own_name_only)


_LEASES = "leases.coordination.k8s.io"
_SLICES = "endpointslices.discovery.k8s.io"
_EVENTS = ("events", "events.events.k8s.io")

USER_RULES: dict[str, tuple[Rule, ...]] = {
    "system:kube-scheduler": (
        _rule(_READ, "*"),
        _rule(_WRITE, *_EVENTS, _LEASES, "pods/binding", "pods/status", "bindings"),
        _rule(frozenset({"delete", "patch"}), "pods"),
    ),
    "system:kube-controller-manager": (_rule(_ANY, "*"),),
    "system:kernelet-routes": (
        _rule(_READ, "nodes", "services", "endpoints", _SLICES, "pods", "namespaces", _LEASES),
        _rule(_WRITE, *_EVENTS, _LEASES, "pods/status"),
    ),
}

GROUP_RULES: dict[str, tuple[Rule, ...]] = {
    MASTERS: (_rule(_ANY, "*"),),
    NODES: (
        _rule(
            _READ, "nodes", "services", _SLICES, "endpoints", "pods", "configmaps", "secrets", "namespaces", _LEASES,
            "serviceaccounts", "persistentvolumeclaims", "persistentvolumes",
        ),
        _rule(frozenset({"create", "update", "patch"}), "nodes", "nodes/status", own_name_only=True),
        _rule(_WRITE, "pods/status", *_EVENTS, _LEASES, "serviceaccounts/token"),
        # Each node publishes its DNS server as endpoint of the DNS service.
        _rule(_WRITE, _SLICES),
        _rule(frozenset({"delete"}), "pods", _LEASES),
    ),
}  # fmt: skip


class Authorizer:
    """Answers from the static tables. Further roles may be passed in; they add to the tables."""

    def __init__(self, users: dict[str, tuple[Rule, ...]] | None = None) -> None:
        self._users = USER_RULES | (users or {})

    def allows(
        self,
        user: User,
        verb: str,
        group: str,
        resource: str,
        namespace: str = "",
        name: str = "",
        subresource: str = "",
    ) -> bool:
        full = f"{resource}.{group}" if group else resource
        if subresource:
            full = f"{full}/{subresource}"
        own_name = user.name.removeprefix(NODE_PREFIX) if user.name.startswith(NODE_PREFIX) else ""
        if any(rule.allows(verb, full, name, own_name) for rule in self._users.get(user.name, ())):
            return True
        for member_of in user.groups:
            # A certificate of the group alone is no node: a node has the node's name as well.
            if member_of == NODES and not own_name:
                continue
            if any(rule.allows(verb, full, name, own_name) for rule in GROUP_RULES.get(member_of, ())):
                return True
        return False

    def check(
        self,
        user: User,
        verb: str,
        group: str,
        resource: str,
        namespace: str = "",
        name: str = "",
        subresource: str = "",
    ) -> None:
        """Raises Forbidden in Kubernetes' words."""
        if self.allows(user, verb, group, resource, namespace, name, subresource):
            return
        what = f"{resource}/{subresource}" if subresource else resource
        full = f"{resource}.{group}" if group else resource
        subject = f'{full} "{name}" is forbidden' if name else f"{full} is forbidden"
        where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
        raise Forbidden(
            f'{subject}: User "{user.name}" cannot {verb} resource "{what}" in API group "{group}" {where}',
            resource=resource,
            group=group,
            name=name,
        )
