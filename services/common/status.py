"""Errors across the wire: ServiceError ⇄ ``google.rpc.Status``, one table for both directions.

Details: ErrorInfo (reason, domain, metadata), BadRequest (the wrong fields), RetryInfo (when to try again),
RequestInfo (the request id). See https://google.aip.dev/193.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.common.errors import BY_CODE, FieldViolation, Internal, ServiceError

INTERNAL_TEXT = "internal error; the request id finds it in the log"


def to_status(error: ServiceError, *, domain: str, request_id: str) -> status_pb2.Status:
    """The status that tells a caller of ``error``; an error that came from another service keeps its domain."""
    details: list[Message] = []
    if error.reason:
        details.append(
            error_details_pb2.ErrorInfo(
                reason=error.reason, domain=error.domain or domain, metadata=error.metadata
            )
        )
    if error.violations:
        violation = error_details_pb2.BadRequest.FieldViolation
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[violation(field=v.field, description=v.description) for v in error.violations]
            )
        )
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    details.append(error_details_pb2.RequestInfo(request_id=request_id))
    return status_pb2.Status(
        code=code_pb2.Code.Value(error.code), message=error.message, details=map(_pack, details)
    )


def _pack(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def from_status(status: status_pb2.Status) -> ServiceError:
    """The error that a status tells of, as the class of its code."""
    error = BY_CODE.get(code_pb2.Code.Name(status.code), Internal)(status.message)
    for packed in status.details:
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if packed.Unpack(info):
            error.reason, error.domain, error.metadata = info.reason, info.domain, dict(info.metadata)
        elif packed.Unpack(bad):
            error.violations = tuple(FieldViolation(v.field, v.description) for v in bad.field_violations)
        elif packed.Unpack(retry):
            error.retry_after = retry.retry_delay.ToMilliseconds() / 1000
    return error


def from_rpc_error(error: grpc.aio.AioRpcError) -> ServiceError:
    """The ServiceError that a failed call stands for; one without details has its code and text."""
    try:
        # grpc_status reads the call's trailers; an AioRpcError offers the same three methods as a call.
        status = rpc_status.from_call(error)
    except ValueError:  # details that contradict the status: trust the status
        status = None
    if status is not None:
        return from_status(status)
    return BY_CODE.get(error.code().name, Internal)(error.details() or error.code().name)


@contextmanager
def remote_errors() -> Iterator[None]:
    """Turns a failed call within the block into the ServiceError that it stands for."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
