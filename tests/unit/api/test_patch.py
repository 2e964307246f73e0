"""The three patch types do what their documents say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelet.core.api.errors import ApiError, BadRequest, Invalid, UnsupportedMediaType
from kernelet.core.api.patch import (
    JSON_PATCH,
    MERGE_PATCH,
    STRATEGIC_MERGE_PATCH,
    apply_patch,
    json_patch,
    merge_patch,
)

from .samples import JSON, kind_of, sample

scalars = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3)
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.sampled_from("abc"), documents, max_size=3)


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return value


# RFC 7386, appendix A: original, patch, result.
RFC_7386: list[tuple[Any, Any, Any]] = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("original", "patch", "result"), RFC_7386)
def test_merge_patches_of_the_rfc(original: Any, patch: Any, result: Any) -> None:
    assert merge_patch(original, patch) == result


@given(objects, objects)
def test_a_merge_patch_applied_twice_is_applied_once(target: JSON, patch: JSON) -> None:
    once = merge_patch(target, patch)
    assert merge_patch(once, patch) == once
    assert merge_patch(target, {}) == target
    assert merge_patch({}, patch) == without_nulls(patch)


# RFC 6902, appendix A: document, patch, result.
RFC_6902: list[tuple[Any, list[JSON], Any]] = [
    ({"foo": "bar"}, [{"op": "add", "path": "/baz", "value": "qux"}], {"baz": "qux", "foo": "bar"}),
    ({"foo": ["bar", "baz"]}, [{"op": "add", "path": "/foo/1", "value": "qux"}], {"foo": ["bar", "qux", "baz"]}),
    ({"baz": "qux", "foo": "bar"}, [{"op": "remove", "path": "/baz"}], {"foo": "bar"}),
    ({"foo": ["bar", "qux", "baz"]}, [{"op": "remove", "path": "/foo/1"}], {"foo": ["bar", "baz"]}),
    ({"baz": "qux"}, [{"op": "replace", "path": "/baz", "value": "boo"}], {"baz": "boo"}),
    (
        {"foo": {"bar": "baz", "waldo": "fred"}, "qux": {"corge": "grault"}},
        [{"op": "move", "from": "/foo/waldo", "path": "/qux/thud"}],
        {"foo": {"bar": "baz"}, "qux": {"corge": "grault", "thud": "fred"}},
    ),
    (
        {"foo": ["all", "grass", "cows", "eat"]},
        [{"op": "move", "from": "/foo/1", "path": "/foo/3"}],
        {"foo": ["all", "cows", "eat", "grass"]},
    ),
    ({"foo": ["bar"]}, [{"op": "add", "path": "/foo/-", "value": ["abc"]}], {"foo": ["bar", ["abc"]]}),
    ({"/": 9, "~1": 10}, [{"op": "test", "path": "/~01", "value": 10}], {"/": 9, "~1": 10}),
    ({"a": {"b": 1}}, [{"op": "copy", "from": "/a", "path": "/c"}], {"a": {"b": 1}, "c": {"b": 1}}),
    ({"foo": 1}, [{"op": "add", "path": "", "value": {"bar": 2}}], {"bar": 2}),
]


@pytest.mark.parametrize(("document", "patch", "result"), RFC_6902)
def test_json_patches_of_the_rfc(document: Any, patch: list[JSON], result: Any) -> None:
    before = json.dumps(document)
    assert json_patch(document, patch) == result
    assert json.dumps(document) == before


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        ({"op": "test", "path": "/a", "value": True}, Invalid),
        ({"op": "remove", "path": "/nothing"}, Invalid),
        ({"op": "replace", "path": "/nothing", "value": 1}, Invalid),
        ({"op": "add", "path": "/list/7", "value": 1}, Invalid),
        ({"op": "add", "path": "/list/01", "value": 1}, Invalid),
        ({"op": "move", "from": "/obj", "path": "/obj/x"}, Invalid),
        ({"op": "add", "path": "/a"}, BadRequest),
        ({"op": "add", "path": "a", "value": 1}, BadRequest),
        ({"op": "eat", "path": "/a"}, BadRequest),
        ("add", BadRequest),
    ],
)
def test_a_json_patch_that_does_not_fit_says_which_operation(operation: Any, error: type[ApiError]) -> None:
    document = {"a": 1, "list": [1], "obj": {}}
    with pytest.raises(error, match="operation 0 of the JSON patch"):
        json_patch(document, [operation])


def strategic(obj: JSON, patch: JSON, name: str = "Deployment") -> JSON:
    return apply_patch(kind_of(name), obj, STRATEGIC_MERGE_PATCH, json.dumps(patch).encode())


def containers(*names: str) -> list[JSON]:
    return [{"name": name, "image": name} for name in names]


def pod(*names: str) -> JSON:
    return {"spec": {"template": {"spec": {"containers": containers(*names)}}}}


def names_of(obj: JSON) -> list[str]:
    return [item["name"] for item in obj["spec"]["template"]["spec"]["containers"]]


def test_a_strategic_patch_merges_containers_by_name_and_env_within_them() -> None:
    _, obj = sample("Deployment")
    patch = {"name": "web", "image": "nginx:2", "env": [{"name": "A", "value": "c"}, {"name": "N", "value": "1"}]}
    found = strategic(obj, {"spec": {"template": {"spec": {"containers": [patch]}}}})
    web = found["spec"]["template"]["spec"]["containers"][0]
    assert web["image"] == "nginx:2"
    assert [(item["name"], item.get("value")) for item in web["env"]] == [("A", "c"), ("IP", None), ("N", "1")]
    assert web["ports"] == obj["spec"]["template"]["spec"]["containers"][0]["ports"]
    assert obj["spec"]["template"]["spec"]["containers"][0]["image"] == "nginx:1.27"


def test_elements_can_be_deleted_and_lists_and_objects_replaced() -> None:
    gone = {"spec": {"template": {"spec": {"containers": [{"name": "b", "$patch": "delete"}]}}}}
    assert names_of(strategic(pod("a", "b", "c"), gone)) == ["a", "c"]
    whole = {"spec": {"template": {"spec": {"containers": [*containers("z"), {"$patch": "replace"}]}}}}
    assert names_of(strategic(pod("a", "b"), whole)) == ["z"]
    labels = {"metadata": {"labels": {"$patch": "replace", "c": "d"}}}
    assert strategic({"metadata": {"labels": {"a": "b"}}}, labels)["metadata"]["labels"] == {"c": "d"}
    assert strategic({"spec": {"strategy": {"type": "x"}}}, {"spec": {"strategy": {"$patch": "delete"}}})["spec"] == {
        "strategy": {}
    }


def test_the_order_given_is_kept_and_what_only_the_server_has_stays_in_its_place() -> None:
    order = [{"name": "c"}, {"name": "a"}]
    patch = {"spec": {"template": {"spec": {"$setElementOrder/containers": order, "containers": [{"name": "a"}]}}}}
    assert names_of(strategic(pod("a", "b", "c"), patch)) == ["b", "c", "a"]
    untouched = {"spec": {"template": {"spec": {"$setElementOrder/containers": order}}}}
    assert names_of(strategic(pod("x", "a", "c"), untouched)) == ["x", "c", "a"]


def test_only_the_keys_named_are_retained() -> None:
    obj = {"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}
    patch = {"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}
    assert strategic(obj, patch)["spec"]["strategy"] == {"type": "Recreate"}


def test_finalizers_are_a_set_with_deletion() -> None:
    obj = {"metadata": {"finalizers": ["a/x", "b/y"]}}
    assert strategic(obj, {"metadata": {"finalizers": ["c/z", "a/x"]}})["metadata"]["finalizers"] == [
        "a/x",
        "b/y",
        "c/z",
    ]
    gone = {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a/x"]}}
    assert strategic(obj, gone)["metadata"]["finalizers"] == ["b/y"]


def test_lists_without_a_merge_key_are_replaced_and_null_removes() -> None:
    obj = {"spec": {"template": {"spec": {"tolerations": [{"key": "a"}]}}}, "metadata": {"labels": {"a": "b"}}}
    patch = {"spec": {"template": {"spec": {"tolerations": [{"key": "b"}]}}}, "metadata": {"labels": {"a": None}}}
    found = strategic(obj, patch)
    assert found["spec"]["template"]["spec"]["tolerations"] == [{"key": "b"}]
    assert found["metadata"]["labels"] == {}


def test_a_strategic_element_without_its_key_is_refused() -> None:
    with pytest.raises(BadRequest, match="containers without its merge key name"):
        strategic(pod("a"), {"spec": {"template": {"spec": {"containers": [{"image": "x"}]}}}})


@given(documents, objects, st.sampled_from([JSON_PATCH, MERGE_PATCH, STRATEGIC_MERGE_PATCH, "x/y"]))
def test_no_patch_crashes(patch: Any, target: JSON, media_type: str) -> None:
    try:
        found = apply_patch(kind_of("Pod"), target, media_type, json.dumps(patch).encode())
    except ApiError as error:
        assert error.message
    else:
        assert isinstance(found, dict)


def test_bytes_that_are_no_json_and_unknown_types_are_refused() -> None:
    with pytest.raises(BadRequest, match="not valid JSON"):
        apply_patch(kind_of("Pod"), {}, MERGE_PATCH, b"{")
    with pytest.raises(UnsupportedMediaType, match="use application/json-patch"):
        apply_patch(kind_of("Pod"), {}, "text/plain", b"{}")
    with pytest.raises(ApiError):
        apply_patch(kind_of("Pod"), {}, STRATEGIC_MERGE_PATCH, b'{"a":' * 5000 + b"{}" + b"}" * 5000)
