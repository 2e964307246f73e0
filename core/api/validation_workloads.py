"""Rules of ReplicationController, ReplicaSet and Deployment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .causes import forbidden, immutable, invalid_value, not_supported, required
from .errors import JSON, BadRequest, Cause
from .jsontools import child
from .selectors import LabelSelector
from .validation_labels import check_labels, check_selector
from .validation_pod import check_pod_spec

_STRATEGIES = ("Recreate", "RollingUpdate")
_MISMATCH = "`selector` does not match template `labels`"


def check_replication_controller(obj: JSON) -> Iterator[Cause]:
    spec = obj["spec"]
    yield from _check_counts(spec)
    selector = spec.get("selector") or {}
    yield from check_labels("spec.selector", selector)
    if not selector:
        yield required("spec.selector")
    if "template" not in spec:
        yield required("spec.template")
        return
    labels = _template_labels(spec)
    if selector and any(labels.get(key) != value for key, value in selector.items()):
        yield invalid_value("spec.template.metadata.labels", labels, _MISMATCH)
    yield from _check_template(spec["template"])


def check_replica_set(obj: JSON) -> Iterator[Cause]:
    spec = obj["spec"]
    yield from _check_counts(spec)
    yield from _check_selected_template(spec)


def check_deployment(obj: JSON) -> Iterator[Cause]:
    spec = obj["spec"]
    yield from _check_counts(spec)
    yield from _check_selected_template(spec)
    yield from _check_strategy(spec["strategy"])
    history = spec["revisionHistoryLimit"]
    if history < 0:
        yield invalid_value("spec.revisionHistoryLimit", history, "must be greater than or equal to 0")
    deadline, ready = spec["progressDeadlineSeconds"], spec.get("minReadySeconds") or 0
    if deadline < 0:
        yield invalid_value("spec.progressDeadlineSeconds", deadline, "must be greater than or equal to 0")
    elif deadline <= ready:
        yield invalid_value("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds")


def check_selector_update(obj: JSON, old: JSON) -> Iterator[Cause]:
    if obj["spec"]["selector"] != child(old, "spec").get("selector"):
        yield immutable("spec.selector", obj["spec"]["selector"])


def _check_counts(spec: JSON) -> Iterator[Cause]:
    for field in ("replicas", "minReadySeconds"):
        value = spec.get(field) or 0
        if value < 0:
            yield invalid_value(f"spec.{field}", value, "must be greater than or equal to 0")


def _template_labels(spec: JSON) -> dict[str, str]:
    labels: dict[str, str] = child(child(child(spec, "template"), "metadata"), "labels")
    return labels


def _check_selected_template(spec: JSON) -> Iterator[Cause]:
    selector = spec["selector"]
    problems = list(check_selector("spec.selector", selector))
    yield from problems
    if not selector.get("matchLabels") and not selector.get("matchExpressions"):
        yield invalid_value("spec.selector", selector, "empty selector is invalid for deployment")
    if "template" not in spec:
        yield required("spec.template")
        return
    label_problems = list(check_labels("spec.template.metadata.labels", _template_labels(spec)))
    yield from label_problems
    if not problems and not label_problems and not _matches(selector, _template_labels(spec)):
        yield invalid_value("spec.template.metadata.labels", _template_labels(spec), _MISMATCH)
    yield from _check_template(spec["template"], labels_checked=True)


def _matches(selector: JSON, labels: dict[str, str]) -> bool:
    try:
        return LabelSelector.from_object(selector).matches(labels)
    except BadRequest:
        return False


def _check_template(template: JSON, *, labels_checked: bool = False) -> Iterator[Cause]:
    metadata = child(template, "metadata")
    if not labels_checked:
        yield from check_labels("spec.template.metadata.labels", metadata.get("labels"))
    if "containers" not in child(template, "spec"):
        yield required("spec.template.spec.containers")
        return
    pod = template["spec"]
    yield from check_pod_spec("spec.template.spec", pod)
    if pod["restartPolicy"] != "Always":
        yield not_supported("spec.template.spec.restartPolicy", pod["restartPolicy"], ("Always",))
    if pod.get("activeDeadlineSeconds") is not None:
        yield forbidden(
            "spec.template.spec.activeDeadlineSeconds", "activeDeadlineSeconds in ReplicaSet is not Supported"
        )


def _check_strategy(strategy: JSON) -> Iterator[Cause]:
    path, rolling = "spec.strategy", strategy.get("rollingUpdate")
    if strategy["type"] not in _STRATEGIES:
        yield not_supported(f"{path}.type", strategy["type"], _STRATEGIES)
        return
    if strategy["type"] == "Recreate":
        if rolling is not None:
            yield forbidden(f"{path}.rollingUpdate", "may not be specified when strategy `type` is 'Recreate'")
        return
    values = {}
    for field in ("maxUnavailable", "maxSurge"):
        value = (rolling or {}).get(field, 0)
        amount = _amount(value)
        if amount is None:
            yield invalid_value(f"{path}.rollingUpdate.{field}", value, "must be an integer or percentage (e.g '5%')")
        elif amount < 0:
            yield invalid_value(f"{path}.rollingUpdate.{field}", value, "must be greater than or equal to 0")
        elif field == "maxUnavailable" and isinstance(value, str) and amount > 100:
            yield invalid_value(f"{path}.rollingUpdate.{field}", value, "must not be greater than 100%")
        values[field] = amount
    if values == {"maxUnavailable": 0, "maxSurge": 0}:
        yield invalid_value(f"{path}.rollingUpdate.maxUnavailable", 0, "may not be 0 when `maxSurge` is 0")


def _amount(value: Any) -> int | None:
    """The number of `3` or of `25%`, None where it is neither."""
    if isinstance(value, int):
        return value
    digits = value.removesuffix("%")
    return int(digits) if value.endswith("%") and digits.isascii() and digits.isdigit() and len(digits) < 10 else None
