"""Errors as Kubernetes' meta/v1 Status: raised in the registry, carried by both faces, raised again in clients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason of an Invalid or Conflict error: `field` is a JSON path such as `spec.containers[0].image`."""

    field: str
    message: str
    reason: str = "FieldValueInvalid"

    def to_json(self) -> JSON:
        return {"reason": self.reason, "message": self.message, "field": self.field}


@dataclass
class ApiError(Exception):
    """Base of every error an API call can end in. `message` names the object, the cause and the fix if there is one."""

    message: str
    resource: str = ""
    group: str = ""
    name: str = ""
    causes: list[Cause] = field(default_factory=list)
    retry_after: int = 0

    code: ClassVar[int] = 500
    reason: ClassVar[str] = "InternalError"

    def __str__(self) -> str:
        return self.message

    def to_status(self) -> JSON:
        """The meta/v1 Status object, as Kubernetes writes it."""
        details: JSON = {}
        if self.name:
            details["name"] = self.name
        if self.group:
            details["group"] = self.group
        if self.resource:
            details["kind"] = self.resource
        if self.causes:
            details["causes"] = [cause.to_json() for cause in self.causes]
        if self.retry_after:
            details["retryAfterSeconds"] = self.retry_after
        status: JSON = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        status |= {"message": self.message, "reason": self.reason, "code": self.code}
        if details:
            status["details"] = details
        return status


class BadRequest(ApiError):
    code = 400
    reason = "BadRequest"


class Unauthorized(ApiError):
    code = 401
    reason = "Unauthorized"


class Forbidden(ApiError):
    code = 403
    reason = "Forbidden"


class NotFound(ApiError):
    code = 404
    reason = "NotFound"


class MethodNotAllowed(ApiError):
    code = 405
    reason = "MethodNotAllowed"


class AlreadyExists(ApiError):
    code = 409
    reason = "AlreadyExists"


class Conflict(ApiError):
    code = 409
    reason = "Conflict"


class Expired(ApiError):
    """The resource version or continue token is older than what is kept: list anew."""

    code = 410
    reason = "Expired"


class Invalid(ApiError):
    code = 422
    reason = "Invalid"


class RequestTooLarge(ApiError):
    code = 413
    reason = "RequestEntityTooLarge"


class UnsupportedMediaType(ApiError):
    code = 415
    reason = "UnsupportedMediaType"


class TooManyRequests(ApiError):
    code = 429
    reason = "TooManyRequests"


class InternalError(ApiError):
    pass


class ServiceUnavailable(ApiError):
    code = 503
    reason = "ServiceUnavailable"


class Timeout(ApiError):
    code = 504
    reason = "Timeout"


_BY_REASON: dict[str, type[ApiError]] = {
    kind.reason: kind
    for kind in (
        BadRequest, Unauthorized, Forbidden, NotFound, MethodNotAllowed, AlreadyExists, Conflict, Expired, Invalid,
        RequestTooLarge, UnsupportedMediaType, TooManyRequests, InternalError, ServiceUnavailable, Timeout,
    )
}  # fmt: skip


def from_status(status: JSON) -> ApiError:
    """The exception a Status stands for; an unknown reason becomes InternalError."""
    details = status.get("details") or {}
    causes = [Cause(c.get("field", ""), c.get("message", ""), c.get("reason", "")) for c in details.get("causes") or []]
    kind = _BY_REASON.get(status.get("reason", ""), InternalError)
    return kind(
        status.get("message", "unknown error"),
        resource=details.get("kind", ""),
        group=details.get("group", ""),
        name=details.get("name", ""),
        causes=causes,
        retry_after=details.get("retryAfterSeconds", 0),
    )


def not_found(resource: str, name: str, group: str = "") -> NotFound:
    """`pods "web" not found`, in Kubernetes' words."""
    full = f"{resource}.{group}" if group else resource
    return NotFound(f'{full} "{name}" not found', resource=resource, group=group, name=name)


def conflict(resource: str, name: str, why: str = "", group: str = "") -> Conflict:
    full = f"{resource}.{group}" if group else resource
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    return Conflict(
        f'Operation cannot be fulfilled on {full} "{name}": {why}', resource=resource, group=group, name=name
    )


def invalid(kind: str, name: str, causes: list[Cause], group: str = "") -> Invalid:
    full = f"{kind}.{group}" if group else kind
    text = ", ".join(f"{cause.field}: {cause.message}" for cause in causes)
    if len(causes) > 1:
        text = f"[{text}]"
    return Invalid(f'{full} "{name}" is invalid: {text}', resource=kind, group=group, name=name, causes=causes)
