"""Causes of an Invalid error in Kubernetes' wording (apimachinery field.Error), one builder a reason."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from .errors import Cause


def shown(value: Any) -> str:
    """A value as Kubernetes prints it in an error: strings quoted, the rest as JSON, long ones cut."""
    text = msgspec.json.encode(value).decode(errors="replace")
    return text if len(text) <= 200 else f"{text[:200]}..."


def required(path: str, detail: str = "") -> Cause:
    return Cause(path, f"Required value: {detail}" if detail else "Required value", "FieldValueRequired")


def invalid_value(path: str, value: Any, detail: str) -> Cause:
    return Cause(path, f"Invalid value: {shown(value)}: {detail}", "FieldValueInvalid")


def type_invalid(path: str, detail: str) -> Cause:
    return Cause(path, detail, "FieldValueTypeInvalid")


def duplicate(path: str, value: Any) -> Cause:
    return Cause(path, f"Duplicate value: {shown(value)}", "FieldValueDuplicate")


def not_supported(path: str, value: Any, supported: Iterable[str]) -> Cause:
    choices = ", ".join(f'"{choice}"' for choice in supported)
    return Cause(path, f"Unsupported value: {shown(value)}: supported values: {choices}", "FieldValueNotSupported")


def forbidden(path: str, detail: str) -> Cause:
    return Cause(path, f"Forbidden: {detail}", "FieldValueForbidden")


def not_found(path: str, value: Any) -> Cause:
    return Cause(path, f"Not found: {shown(value)}", "FieldValueNotFound")


def too_long(path: str, limit: int) -> Cause:
    return Cause(path, f"Too long: may not be more than {limit} bytes", "FieldValueTooLong")


def immutable(path: str, value: Any) -> Cause:
    return invalid_value(path, value, "field is immutable")
