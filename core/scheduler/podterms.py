"""Inter-pod affinity: what a pod says about the pods it wants to be, or not to be, near."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from lightkube.models.core_v1 import PodAffinityTerm, PodSpec

from kernelet.core.api.selectors import IN, NOT_IN, LabelSelector, Requirement

NamespaceLabels = Callable[[str], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class PodTerm:
    """Pods of these labels, in these namespaces, within one domain of the topology label `key`."""

    key: str
    selector: LabelSelector
    namespaces: frozenset[str]
    namespace_selector: LabelSelector

    def matches(self, namespace: str, labels: Mapping[str, str], labels_of: NamespaceLabels) -> bool:
        if not self.selector.matches(labels):
            return False
        if namespace in self.namespaces:
            return True
        return not self.namespace_selector.nothing and self.namespace_selector.matches(labels_of(namespace))


@dataclass(frozen=True, slots=True)
class PodTerms:
    """Required terms, and preferred ones with their weights (negative for anti-affinity)."""

    affinity: tuple[PodTerm, ...] = ()
    anti_affinity: tuple[PodTerm, ...] = ()
    preferred: tuple[tuple[int, PodTerm], ...] = ()


NONE = PodTerms()


def pod_terms(spec: PodSpec, namespace: str, labels: Mapping[str, str]) -> PodTerms:
    near = spec.affinity.podAffinity if spec.affinity else None
    far = spec.affinity.podAntiAffinity if spec.affinity else None
    if near is None and far is None:
        return NONE

    def of(term: PodAffinityTerm) -> PodTerm:
        return _term(term, namespace, labels)

    wanted = (near.preferredDuringSchedulingIgnoredDuringExecution if near else None) or []
    unwanted = (far.preferredDuringSchedulingIgnoredDuringExecution if far else None) or []
    preferred = [(each.weight, of(each.podAffinityTerm)) for each in wanted]
    preferred += [(-each.weight, of(each.podAffinityTerm)) for each in unwanted]
    return PodTerms(
        tuple(of(term) for term in (near.requiredDuringSchedulingIgnoredDuringExecution if near else None) or []),
        tuple(of(term) for term in (far.requiredDuringSchedulingIgnoredDuringExecution if far else None) or []),
        tuple(preferred),
    )


def selector_of(
    selector: Any, labels: Mapping[str, str], same: list[str] | None, other: list[str] | None = None
) -> LabelSelector:
    """A model's selector, narrowed to the pod's own values of the labels `same`, and to others' of `other`."""
    form: Any = msgspec.to_builtins(selector) if selector is not None else None
    found = LabelSelector.from_object(form)
    more = [Requirement(key, IN, (labels[key],)) for key in same or [] if key in labels]
    more += [Requirement(key, NOT_IN, (labels[key],)) for key in other or [] if key in labels]
    return LabelSelector(found.requirements + tuple(more), found.nothing)


def _term(term: PodAffinityTerm, namespace: str, labels: Mapping[str, str]) -> PodTerm:
    form: Any = msgspec.to_builtins(term.namespaceSelector) if term.namespaceSelector is not None else None
    named = frozenset(term.namespaces or ())
    return PodTerm(
        term.topologyKey,
        selector_of(term.labelSelector, labels, term.matchLabelKeys, term.mismatchLabelKeys),
        # Neither namespaces nor a selector for them: the pod's own.
        named if named or form is not None else frozenset({namespace}),
        LabelSelector.from_object(form),
    )
