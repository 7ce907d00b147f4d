"""Errors across the wire: ServiceError ⇄ ``google.rpc.Status``, one table for both directions.

Details: ErrorInfo (reason, domain, metadata), BadRequest (the wrong fields), RetryInfo (when to try again),
RequestInfo (the request id). See https://google.aip.dev/193.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.common.errors import BY_CODE, FieldViolation, Internal, ServiceError, Unavailable

INTERNAL_TEXT = "internal error; the request id finds it in the log"
# A status travels in trailers. Clients refuse those over 8 KiB, and with them they would lose the whole error;
# the message is in there twice and takes up to three times its bytes, details four thirds of theirs.
_MAX_TEXT_BYTES = 600
_MAX_VIOLATIONS_BYTES = 2000
_TRANSPORT_TEXT = {
    "UNAVAILABLE": "a service is away; the same call may work later",
    "DEADLINE_EXCEEDED": "not done in time; whether it took effect is unknown",
    "CANCELLED": "the call was cancelled",
    "UNIMPLEMENTED": "not served",
    "RESOURCE_EXHAUSTED": "a message is too large, or too much is asked at once",
}

log = logging.getLogger(__name__)


def to_status(error: ServiceError, *, domain: str, request_id: str) -> status_pb2.Status:
    """The status that tells a caller of ``error``; an error that came from another service keeps its domain."""
    details: list[Message] = []
    if error.reason or error.metadata:
        details.append(
            error_details_pb2.ErrorInfo(
                reason=error.reason, domain=error.domain or domain, metadata=error.metadata
            )
        )
    if error.violations:
        details.append(_bad_request(error.violations))
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    details.append(error_details_pb2.RequestInfo(request_id=request_id))
    code, message = code_pb2.Code.Value(error.code), _short(error.message)
    return status_pb2.Status(code=code, message=message, details=map(_pack, details))


def _bad_request(violations: Sequence[FieldViolation]) -> error_details_pb2.BadRequest:
    """As many of the wrong fields as there is room for."""
    bad = error_details_pb2.BadRequest()
    for violation in violations:
        bad.field_violations.add(field=_short(violation.field), description=_short(violation.description))
        if bad.ByteSize() > _MAX_VIOLATIONS_BYTES:
            break
    return bad


def _short(text: str) -> str:
    """The text, cut if it is too long, without what UTF-8 cannot say."""
    data = text.encode(errors="replace")
    cut = data[:_MAX_TEXT_BYTES].decode(errors="ignore")
    return cut if len(data) <= _MAX_TEXT_BYTES else f"{cut}…"


def _pack(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def from_status(status: status_pb2.Status) -> ServiceError:
    """The error that a status tells of, as the class of its code; Internal for a code that is no error's."""
    error = _class_of(status.code)(status.message)
    for packed in status.details:
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        with suppress(DecodeError):  # what cannot be read does not hide the rest
            if packed.Unpack(info):
                error.reason, error.domain, error.metadata = info.reason, info.domain, dict(info.metadata)
            elif packed.Unpack(bad):
                error.violations = tuple(FieldViolation(v.field, v.description) for v in bad.field_violations)
            elif packed.Unpack(retry):
                error.retry_after = retry.retry_delay.ToMilliseconds() / 1000
    return error


def _class_of(code: int) -> type[ServiceError]:
    name = code_pb2.Code.Name(code) if code in code_pb2.Code.values() else ""
    return BY_CODE.get(name, Internal)


def from_rpc_error(error: grpc.aio.AioRpcError) -> ServiceError:
    """The ServiceError that a failed call stands for.

    Our servers always send details. A failure without them is the transport's: its text names addresses and
    the like, so it goes to the log and the error gets a fixed one.
    """
    try:
        # grpc_status reads the call's trailers; an AioRpcError offers the same three methods as a call.
        status = rpc_status.from_call(error)
    except (ValueError, DecodeError):  # details that contradict the status: trust the status
        status = None
    if status is not None:
        return from_status(status)
    log.info("call failed", extra={"data": {"code": error.code().name, "details": error.details()}})
    lost = is_failed_write(error.code(), error.debug_error_string())
    cls = Unavailable if lost else _class_of(error.code().value[0])
    return cls(_TRANSPORT_TEXT.get(cls.code, INTERNAL_TEXT))


def is_failed_write(code: grpc.StatusCode, debug: str | None) -> bool:
    """Whether this is what grpc.aio makes of a stream that it could not write on: INTERNAL, though no server said
    so. Either the server has ended the stream, or the connection broke."""
    return code is grpc.StatusCode.INTERNAL and "execute_batch" in (debug or "")


@contextmanager
def remote_errors() -> Iterator[None]:
    """Turns a failed call within the block into the ServiceError that it stands for."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
