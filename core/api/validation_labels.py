"""Rules of labels, label selectors and quantities, which appear in many kinds."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from .causes import forbidden, invalid_value, not_supported, required, type_invalid
from .errors import JSON, Cause
from .names import label_value_problem, qualified_name_problem
from .resources import parse_quantity

_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")


def check_labels(path: str, labels: Any) -> Iterator[Cause]:
    for key, value in (labels or {}).items():
        if wrong := qualified_name_problem(key):
            yield invalid_value(path, key, wrong)
        if not isinstance(value, str):
            yield type_invalid(f"{path}.{key}", f"Expected `str`, got `{type(value).__name__}`; quote the value")
        elif wrong := label_value_problem(value):
            yield invalid_value(path, value, wrong)


def check_selector(path: str, selector: JSON) -> Iterator[Cause]:
    """A meta/v1 LabelSelector."""
    yield from check_labels(f"{path}.matchLabels", selector.get("matchLabels"))
    for index, item in enumerate(selector.get("matchExpressions") or []):
        where, operator, values = f"{path}.matchExpressions[{index}]", item["operator"], item.get("values") or []
        if wrong := qualified_name_problem(item["key"]):
            yield invalid_value(f"{where}.key", item["key"], wrong)
        if operator not in _OPERATORS:
            yield not_supported(f"{where}.operator", operator, _OPERATORS)
        elif operator in ("In", "NotIn") and not values:
            yield required(f"{where}.values", "must be specified when `operator` is 'In' or 'NotIn'")
        elif operator in ("Exists", "DoesNotExist") and values:
            yield forbidden(f"{where}.values", "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
        for value in values:
            if wrong := label_value_problem(value):
                yield invalid_value(f"{where}.values", value, wrong)


def quantity(path: str, value: Any) -> tuple[Fraction | None, Cause | None]:
    """The exact amount at a path, or what is wrong with it."""
    if not isinstance(value, str):
        return None, type_invalid(path, f"Expected `str`, got `{type(value).__name__}`")
    try:
        amount = parse_quantity(value)
    except ValueError as error:
        return None, invalid_value(path, value, str(error))
    if amount < 0:
        return None, invalid_value(path, value, "must be greater than or equal to 0")
    return amount, None
