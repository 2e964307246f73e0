"""C and Python agree on what lies in the maps."""

from __future__ import annotations

import re
from pathlib import Path
from struct import Struct

import pytest

from kernelet.ext import bpf

from .btf import Btf, Layout


@pytest.fixture(scope="module")
def btf() -> Btf:
    return Btf(bpf.CONNECT)


def leaves(btf: Btf, layout: Layout, base: int = 0) -> list[tuple[int, int]]:
    """Offset and size of each field, those of inner structs in their place."""
    found = []
    for member in layout.members:
        inner = {"service": "service_key", "endpoint": "endpoint", "backend": "endpoint"}.get(member.name)
        if inner:
            found.extend(leaves(btf, btf.layout(inner), base + member.offset))
        else:
            found.append((base + member.offset, member.size))
    return found


def fields(layout: Struct) -> list[tuple[int, int]]:
    """The same of a `struct` format."""
    found, offset = [], 0
    for code in re.findall(r"\d+s|[A-Z]", layout.format.removeprefix("=")):
        size = Struct(f"={code}").size
        found.append((offset, size))
        offset += size
    return found


@pytest.mark.parametrize("name", sorted(bpf.LAYOUTS))
def test_a_struct_has_the_fields_that_python_packs(btf: Btf, name: str) -> None:
    layout = btf.layout(name)
    assert layout.size == bpf.LAYOUTS[name].size
    assert leaves(btf, layout) == fields(bpf.LAYOUTS[name])


@pytest.mark.parametrize("name", sorted(bpf.LAYOUTS))
def test_a_struct_has_no_holes(btf: Btf, name: str) -> None:
    found = leaves(btf, btf.layout(name))
    assert sum(size for _, size in found) == btf.layout(name).size


def test_constants_are_those_of_the_header() -> None:
    text = Path(bpf.CONNECT).with_name("consts.h").read_text()
    defined = {name: int(value) for name, value in re.findall(r"#define (\w+) (\d+)", text)}
    for name in ("SCOPE_ADDRESS", "SCOPE_NODE_PORT", "FLAG_GONE"):
        assert getattr(bpf, name) == defined[name]


def test_a_question_has_the_fields_that_python_packs() -> None:
    btf = Btf(bpf.CHOOSE)
    layout = btf.layout("question")
    assert layout.size == bpf.QUESTION.size
    assert leaves(btf, layout) == fields(bpf.QUESTION)
