"""Times as Kubernetes writes them: RFC 3339 in UTC, seconds (`Time`) or microseconds (`MicroTime`)."""

from __future__ import annotations

from datetime import UTC, datetime


def format_seconds(moment: datetime) -> str:
    """`2026-01-02T03:04:05Z`, the form of metadata.creationTimestamp."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_micro(moment: datetime) -> str:
    """`2026-01-02T03:04:05.678901Z`, the form of a Lease's renewTime."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def now() -> datetime:
    return datetime.now(UTC)


def now_rfc3339() -> str:
    return format_seconds(now())


def now_micro() -> str:
    return format_micro(now())


def parse(text: str) -> datetime:
    """An aware datetime of an RFC 3339 text; a text without an offset is UTC. Raises ValueError naming the text."""
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{text!r} is not a time; write it as 2006-01-02T15:04:05Z") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def parse_or_none(value: object) -> datetime | None:
    """The time of a JSON value, or None where it is absent or no time (printing must not fail on it)."""
    if not isinstance(value, str) or not value:
        return None
    try:
        return parse(value)
    except ValueError:
        return None
