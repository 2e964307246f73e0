"""Files in every form are read; one that cannot be says where and why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelet.core.cli import yamlio
from kernelet.core.cli.failures import CliError
from kernelet.core.cli.files import in_namespace, load, parse
from kernelet.core.cli.settings import Settings

Write = Callable[[str, str], str]

TWO = """
apiVersion: v1
kind: ConfigMap
metadata: {name: a}
data: {since: 2026-01-02T03:04:05Z}
---
# nothing but a comment
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: b, namespace: shop}
"""


def test_several_documents_of_one_file_keep_their_order(write: Write) -> None:
    first, second = load([write("two.yaml", TWO)])
    assert (first.kind.kind, first.name, second.kind.kind, second.name) == ("ConfigMap", "a", "Deployment", "b")
    assert first.obj["data"] == {"since": "2026-01-02T03:04:05Z"}
    assert first.source.endswith("two.yaml: document 1")


def test_json_lists_and_folders_are_read(write: Write, tmp_path: Path) -> None:
    write("b.json", '{"apiVersion":"v1","kind":"Secret","metadata":{"name":"s"}}')
    write("a.yaml", "{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Pod, metadata: {name: p}}]}")
    write("notes.txt", "not: read")
    write("inner/c.yml", "{apiVersion: v1, kind: Node, metadata: {name: n}}")
    assert [item.name for item in load([str(tmp_path)])] == ["p", "s"]
    assert [item.name for item in load([str(tmp_path)], recursive=True)] == ["p", "s", "n"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "kind: Pod\napiVersion: v1\nmetadata:\n  name: [a\nspec: {}\n",
            r"bad.yaml: line 5, column 5: .*correct the YAML",
        ),
        ("a: b\n\tc: d\n", r"bad.yaml: line 2, column 1: "),
        ('{"kind": "Pod",', r"bad.yaml: line 2"),
        ("kind: Pod\nmetadata: {name: a}\n", r"bad.yaml: apiVersion not set"),
        (
            "apiVersion: v1\nkind: Pud\nmetadata: {name: a}\n",
            r'bad.yaml: no matches for kind "Pud" in version "v1"; `kern',
        ),
        ("apiVersion: v1\nkind: Pod\n", r"bad.yaml: metadata.name not set; name the pod"),
        ("- a\n- b\n", r"bad.yaml: a list is no object"),
        ("just words\n", r"bad.yaml: expected an object with apiVersion and kind, got str"),
        ("# empty\n", r"bad.yaml: no objects found"),
        ("apiVersion: v1\nkind: List\nitems: [3]\n", r"bad.yaml: items\[0\]: expected an object"),
    ],
)
def test_a_bad_file_is_told_by_name_place_and_cause(write: Write, text: str, error: str) -> None:
    with pytest.raises(CliError, match=error):
        load([write("bad.yaml", text)])


def test_a_missing_file_is_named() -> None:
    with pytest.raises(CliError, match=r"/nowhere/web\.yaml: No such file or directory; name an existing"):
        load(["/nowhere/web.yaml"])


def test_a_file_and_an_option_that_disagree_on_the_namespace_are_refused(write: Write) -> None:
    first, second = load([write("two.yaml", TWO)])
    other = Settings(namespace_option="other")
    assert in_namespace(first, other) == "other"
    with pytest.raises(CliError, match="deployment b is of namespace shop, but -n says other; leave out one"):
        in_namespace(second, other)


@given(st.binary(max_size=60))
def test_no_bytes_crash_it(data: bytes) -> None:
    try:
        list(parse(data, "stdin"))
    except CliError as error:
        assert error.message.startswith("stdin")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet=st.characters(codec="utf-8"), max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_what_is_printed_as_yaml_reads_back_the_same(value: object) -> None:
    assert yamlio.load_documents(yamlio.dump(value).encode()) == [value]
