"""API errors on the wire of gRPC: a status code, and Kubernetes' Status in the rich details of the trailer.

The trailer `grpc-status-details-bin` holds a google.rpc.Status (AIP-193) whose one detail is Kernelet's own Status
message with the meta/v1 Status as JSON, so that reason, details and causes arrive unchanged.
"""

from __future__ import annotations

import grpc
import msgspec
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from kernelet.proto import registry_pb2

from ..api import errors

DETAILS_KEY = "grpc-status-details-bin"

_BY_CODE: dict[int, grpc.StatusCode] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    405: grpc.StatusCode.UNIMPLEMENTED,
    409: grpc.StatusCode.ABORTED,
    410: grpc.StatusCode.OUT_OF_RANGE,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

_WITHOUT_DETAILS: dict[grpc.StatusCode, type[errors.ApiError]] = {
    grpc.StatusCode.UNAVAILABLE: errors.ServiceUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.Timeout,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthorized,
    grpc.StatusCode.PERMISSION_DENIED: errors.Forbidden,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.INVALID_ARGUMENT: errors.BadRequest,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.TooManyRequests,
    grpc.StatusCode.CANCELLED: errors.ServiceUnavailable,
    grpc.StatusCode.UNIMPLEMENTED: errors.MethodNotAllowed,
    grpc.StatusCode.OUT_OF_RANGE: errors.Expired,
}


def code_of(error: errors.ApiError) -> grpc.StatusCode:
    """The gRPC code that stands for the error's HTTP code."""
    if isinstance(error, errors.AlreadyExists):
        return grpc.StatusCode.ALREADY_EXISTS
    return _BY_CODE.get(error.code, grpc.StatusCode.INTERNAL)


def to_rpc_status(error: errors.ApiError) -> status_pb2.Status:
    """The rich status: code, message and one detail with the meta/v1 Status."""
    detail = any_pb2.Any()
    detail.Pack(registry_pb2.Status(json=msgspec.json.encode(error.to_status())))
    number: int = code_of(error).value[0]
    return status_pb2.Status(code=number, message=error.message, details=[detail])


def trailer_of(error: errors.ApiError) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata that carries the rich status."""
    return ((DETAILS_KEY, to_rpc_status(error).SerializeToString()),)


def from_rpc_error(error: grpc.RpcError) -> errors.ApiError:
    """The API error a failed call stands for; without a Status (the server was not reached) one by the code."""
    for key, value in _trailing_metadata(error):
        if key == DETAILS_KEY:
            found = _from_details(value if isinstance(value, bytes) else value.encode("latin-1"))
            if found is not None:
                return found
    code, text = _code_and_text(error)
    return _WITHOUT_DETAILS.get(code, errors.InternalError)(text)


def _from_details(data: bytes) -> errors.ApiError | None:
    message = registry_pb2.Status()
    try:
        rich = status_pb2.Status.FromString(data)
        for detail in rich.details:
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
                return errors.from_status(msgspec.json.decode(message.json, type=dict))
    except (DecodeError, msgspec.DecodeError) as failure:
        return errors.InternalError(f"the server's error details cannot be read: {failure}")
    return None


def _trailing_metadata(error: grpc.RpcError) -> list[tuple[str, str | bytes]]:
    # grpc.RpcError declares nothing: both the sync and the aio error add these methods.
    get = getattr(error, "trailing_metadata", None)
    metadata = get() if get is not None else None
    return [(str(key), value) for key, value in metadata] if metadata else []


def _code_and_text(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    code = error.code() if hasattr(error, "code") else grpc.StatusCode.UNKNOWN
    details = error.details() if hasattr(error, "details") else ""
    return code, str(details or code.name)
