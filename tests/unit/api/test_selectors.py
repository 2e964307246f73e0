"""Selectors agree with a naive evaluator, and refuse what Kubernetes refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelet.core.api.errors import BadRequest
from kernelet.core.api.selectors import FieldSelector, LabelSelector, Requirement

from .samples import JSON, kind_of

keys = st.sampled_from(["a", "b", "app.kubernetes.io/name"])
values = st.sampled_from(["", "x", "y", "3", "10", "a-b_c.d"])
labels = st.dictionaries(keys, values)
OPERATORS = ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]


@st.composite
def requirements(draw: st.DrawFn) -> Requirement:
    operator = draw(st.sampled_from(OPERATORS))
    if operator in ("In", "NotIn"):
        return Requirement(draw(keys), operator, tuple(draw(st.lists(values, min_size=1, max_size=3))))
    if operator in ("Gt", "Lt"):
        return Requirement(draw(keys), operator, (str(draw(st.integers(0, 12))),))
    return Requirement(draw(keys), operator)


def naive(requirement: Requirement, labels: dict[str, str]) -> bool:
    present = requirement.key in labels
    value = labels.get(requirement.key, "")
    number = int(value) if value.isdigit() else None
    limit = int(requirement.values[0]) if requirement.operator in ("Gt", "Lt") else 0
    return {
        "In": present and value in requirement.values,
        "NotIn": not present or value not in requirement.values,
        "Exists": present,
        "DoesNotExist": not present,
        "Gt": number is not None and number > limit,
        "Lt": number is not None and number < limit,
    }[requirement.operator]


@given(st.lists(requirements(), max_size=3), labels)
def test_a_selector_means_all_of_its_requirements(wanted: list[Requirement], have: dict[str, str]) -> None:
    expected = all(naive(requirement, have) for requirement in wanted)
    selector = LabelSelector(tuple(wanted))
    assert selector.matches(have) is expected
    assert LabelSelector.parse(str(selector)).matches(have) is expected
    spec = {"matchExpressions": [{"key": r.key, "operator": r.operator, "values": list(r.values)} for r in wanted]}
    assert LabelSelector.from_object(spec).matches(have) is expected


@pytest.mark.parametrize(
    ("text", "matching", "other"),
    [
        ("a=x", {"a": "x"}, {"a": "y"}),
        (" a == x , b != y ", {"a": "x"}, {"a": "x", "b": "y"}),
        ("a in (x, y),!b", {"a": "y"}, {"a": "y", "b": ""}),
        ("a notin (x)", {}, {"a": "x"}),
        ("a", {"a": ""}, {"b": ""}),
        ("a>3,a<11", {"a": "10"}, {"a": "3"}),
        ("in", {"in": "x"}, {}),
    ],
)
def test_the_string_form_is_kubernetes(text: str, matching: dict[str, str], other: dict[str, str]) -> None:
    selector = LabelSelector.parse(text)
    assert selector.matches(matching)
    assert not selector.matches(other)


def test_no_selector_selects_nothing_and_an_empty_one_everything() -> None:
    assert not LabelSelector.from_object(None).matches({"a": "b"})
    assert not LabelSelector.from_object(None).empty
    assert LabelSelector.from_object({}).matches({"a": "b"})
    assert LabelSelector.parse("").empty


@pytest.mark.parametrize("text", ["a=b c", "a,,b", "=x", "a in x", "a=(b)", "a>x", "a in ()(", "-a=b", "a=b,", "a=%"])
def test_a_malformed_label_selector_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match=r"pars|values"):
        LabelSelector.parse(text)


@given(st.text(max_size=20))
def test_any_text_is_a_selector_or_refused(text: str) -> None:
    for parse in (LabelSelector.parse, FieldSelector.parse):
        try:
            parse(text)
        except BadRequest as error:
            assert error.message


POD: JSON = {
    "metadata": {"name": "web-1", "namespace": "default"},
    "spec": {"nodeName": "n1"},
    "status": {"phase": "Running"},
}


def test_field_selectors_compare_the_fields_of_the_kind() -> None:
    pod = kind_of("Pod")
    assert FieldSelector.parse("spec.nodeName=n1,status.phase!=Failed").matches(pod, POD)
    assert FieldSelector.parse("metadata.name==web-1").exact("metadata.name") == "web-1"
    assert not FieldSelector.parse("spec.nodeName!=n1").matches(pod, POD)
    assert FieldSelector.parse("spec.hostNetwork=false").matches(pod, POD)
    assert FieldSelector.parse(r"metadata.name=a\,b\=c").exact("metadata.name") == "a,b=c"
    event = {"involvedObject": {"name": "web-1", "kind": "Pod"}, "source": {"component": "kubelet"}}
    assert FieldSelector.parse("involvedObject.name=web-1,source=kubelet").matches(kind_of("Event"), event)


def test_a_field_that_cannot_be_selected_by_is_named_with_those_that_can() -> None:
    with pytest.raises(BadRequest, match=r"field label not supported: spec.image; pods can .*spec.nodeName"):
        FieldSelector.parse("spec.image=x").matches(kind_of("Pod"), POD)
    with pytest.raises(BadRequest, match="can't understand"):
        FieldSelector.parse("spec.nodeName")
