"""Quantities are exact, times round-trip, names are as Kubernetes generates and checks them."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelet.core.api import names, times
from kernelet.core.api.errors import BadRequest
from kernelet.core.api.models import from_model, to_model
from kernelet.core.api.resources import bytes_of, canonical, cpu_millis, parse_quantity, qos_class

from .samples import kind_of, sample


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("100m", Fraction(1, 10)),
        ("0.1", Fraction(1, 10)),
        ("1.5Gi", 1024**3 * 3 // 2),
        ("1e3", 1000),
        ("1E", 10**18),
        ("-2k", -2000),
        (".5", Fraction(1, 2)),
        ("12.", 12),
        ("3n", Fraction(3, 10**9)),
    ],
)
def test_a_quantity_is_exact(text: str, value: Fraction | int) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize("text", ["", "1x", "Mi", "1 Mi", "1e", "--1", "1e99999999999", "9" * 100, "٣", "1ki"])
def test_what_is_no_quantity_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ValueError, match="quantity"):
        parse_quantity(text)


@given(st.integers(0, 10**12), st.sampled_from(["", "m", "u", "k", "M", "G", "Ki", "Mi", "Gi", "e2", "E-1"]))
def test_the_canonical_form_is_the_same_amount_and_settled(number: int, suffix: str) -> None:
    text = f"{number}{suffix}"
    assert parse_quantity(canonical(text)) == parse_quantity(text)
    assert canonical(canonical(text)) == canonical(text)


def test_amounts_round_up() -> None:
    assert (cpu_millis("0.5"), cpu_millis("1m"), cpu_millis("100u"), bytes_of("64Mi"), bytes_of("1m")) == (
        500,
        1,
        1,
        67108864,
        1,
    )
    assert [canonical(value) for value in ("0.5", 2, 0.25, "1024Mi", "1000m")] == ["500m", "2", "250m", "1Gi", "1"]


def test_a_pods_class_follows_requests_and_limits() -> None:
    full = {"cpu": "1", "memory": "1Gi"}
    assert qos_class({"containers": [{"resources": {}}]}) == "BestEffort"
    assert qos_class({"containers": [{"resources": {"requests": {"cpu": "1"}}}]}) == "Burstable"
    assert qos_class({"containers": [{"resources": {"limits": full, "requests": full}}]}) == "Guaranteed"
    assert qos_class({"containers": [{"resources": {"limits": full}}, {}]}) == "Burstable"


def test_times_are_utc_and_round_trip() -> None:
    assert times.format_seconds(times.parse("2026-01-02T05:04:05+02:00")) == "2026-01-02T03:04:05Z"
    assert times.format_micro(times.parse("2026-01-02T03:04:05.123456789Z")) == "2026-01-02T03:04:05.123456Z"
    assert times.parse(times.now_micro()).tzinfo is not None
    with pytest.raises(ValueError, match="write it as"):
        times.parse("yesterday")


def test_generated_names_fit_and_are_valid() -> None:
    for base in ("web-", "x" * 300):
        name = names.generate_name(base)
        assert len(name) <= 63
        assert names.check_name(kind_of("Namespace"), name) is None
    assert len({names.random_suffix() for _ in range(200)}) > 190


def test_models_round_trip_and_name_the_path_of_a_wrong_type() -> None:
    kind, obj = sample("Lease")
    lease = to_model(kind, obj)
    assert lease.spec.leaseDurationSeconds == 4
    assert from_model(lease) == obj
    with pytest.raises(BadRequest, match=r"Pod .*spec.containers\[0\].image: Expected `str`, got `int`"):
        to_model(kind_of("Pod"), b'{"spec":{"containers":[{"name":"a","image":4}]}}')
    with pytest.raises(BadRequest, match="not the JSON of a Pod"):
        to_model(kind_of("Pod"), b"{")
