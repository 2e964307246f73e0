"""Kubernetes' protobuf encoding of request bodies."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelet.core.api.errors import BadRequest
from kernelet.core.server.rest import protobuf


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def envelope(api_version: str, kind: str, raw: bytes) -> bytes:
    return b"k8s\x00" + field(1, field(1, api_version) + field(2, kind)) + field(2, raw)


def test_a_deployment_is_read_with_its_nested_messages() -> None:
    port = field(3, 8080)
    container = field(1, "web") + field(2, "web:1") + field(6, port)
    template = field(1, field(11, field(1, "app") + field(2, "web"))) + field(2, field(2, container))
    spec = field(1, 0) + field(3, template) + field(5, 0)
    raw = field(1, field(1, "web") + field(2, "") + field(8, b"")) + field(2, spec)
    assert protobuf.decode(envelope("apps/v1", "Deployment", raw)) == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        # replicas 0 was given; minReadySeconds 0 was not.
        "spec": {
            "replicas": 0,
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "web", "image": "web:1", "ports": [{"containerPort": 8080}]}]},
            },
        },
    }


def test_special_types_take_their_json_form() -> None:
    decode = protobuf._value
    assert decode("meta.v1.Time", field(1, 1_700_000_000), 0) == "2023-11-14T22:13:20Z"
    assert decode("meta.v1.MicroTime", field(1, 1_700_000_000) + field(2, 5000), 0) == "2023-11-14T22:13:20.000005Z"
    assert decode("resource.Quantity", field(1, "100m"), 0) == "100m"
    assert decode("intstr.IntOrString", field(1, 1) + field(3, "http"), 0) == "http"
    assert decode("intstr.IntOrString", field(1, 0) + field(2, 80), 0) == 80
    assert decode("i", (1 << 64) - 5, 0) == -5
    assert decode("y", b"p w", 0) == "cCB3"


def test_fields_kubernetes_inlines_are_inlined() -> None:
    selector = field(1, field(1, "config")) + field(2, "key")
    assert protobuf._object("core.v1.ConfigMapKeySelector", selector, 0) == {"name": "config", "key": "key"}
    volume = field(1, "v") + field(2, field(2, field(1, "")))
    assert protobuf._object("core.v1.Volume", volume, 0) == {"name": "v", "emptyDir": {}}


def test_every_field_of_the_table_is_one_of_the_model() -> None:
    unknown = []
    for message, fields in protobuf._table().items():
        group, _, name = message.rpartition(".")
        model: Any = getattr(importlib.import_module(f"lightkube.models.{group.replace('.', '_')}"), name, None)
        keywords = {"from": "from_", "except": "except_"}
        for one in fields.values() if isinstance(model, type) else ():
            if not one.inline and keywords.get(one.name, one.name) not in model.__annotations__:
                unknown.append(f"{message}.{one.name}")
    assert unknown in ([], ["networking.v1.IPBlock.except", "networking.v1.NetworkPolicyIngressRule.from"])


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"k8s\x00", b"k8s\x00\xff", envelope("apps/v1", "Nonsense", b""), envelope("v1", "Pod", b"\x0a\x05x")],
)
def test_what_cannot_be_read_is_refused(data: bytes) -> None:
    with pytest.raises(BadRequest, match=r"unrecognized|cannot be read as protobuf"):
        protobuf.decode(data)


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(raw: bytes) -> None:
    for data in (b"k8s\x00" + raw, envelope("v1", "Pod", raw), envelope("v1", "Event", raw)):
        try:
            assert isinstance(protobuf.decode(data), dict)
        except BadRequest:
            continue
