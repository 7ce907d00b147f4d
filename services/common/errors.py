"""The errors that services raise, one class per gRPC status code; pure, so that domains may use them.

A :class:`ServiceError` crosses the wire as a ``google.rpc.Status`` (:mod:`services.common.status`) and
comes back as the same class. An exception that is not one of these reaches the caller as INTERNAL with a
fixed text: its detail goes to the log alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A request field that is wrong: ``field`` as a proto path (``statements[1].media_file_id``)."""

    field: str
    description: str


class ServiceError(Exception):
    """A refusal that the caller is meant to understand.

    ``reason`` is one word of the service's ``…ErrorReason`` enum without its prefix; ``retry_after`` in
    seconds says when to try again; ``domain`` is filled in by the server that first sends the error.
    """

    code: ClassVar[str] = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        violations: Sequence[FieldViolation] = (),
        retry_after: float | None = None,
        metadata: Mapping[str, str] | None = None,
        domain: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.violations = tuple(violations)
        self.retry_after = retry_after
        self.metadata = dict(metadata or {})
        self.domain = domain


class InvalidArgument(ServiceError):
    """The request is wrong whatever the state of the system."""

    code = "INVALID_ARGUMENT"

    @classmethod
    def field(cls, field: str, description: str, *, reason: str = "") -> InvalidArgument:
        """One wrong field."""
        return cls(f"{field}: {description}", reason=reason, violations=[FieldViolation(field, description)])


class OutOfRange(ServiceError):
    """A number lies beyond the end of something. ``violations`` names the field."""

    code = "OUT_OF_RANGE"


class Unauthenticated(ServiceError):
    """No token, or one that does not count."""

    code = "UNAUTHENTICATED"


class PermissionDenied(ServiceError):
    """The caller is known and may not do this."""

    code = "PERMISSION_DENIED"


class NotFound(ServiceError):
    """There is no such thing, or none that the caller may know of."""

    code = "NOT_FOUND"


class AlreadyExists(ServiceError):
    """Something else is there already; it stays."""

    code = "ALREADY_EXISTS"


class FailedPrecondition(ServiceError):
    """The thing is in a state that does not allow this; trying again changes nothing by itself."""

    code = "FAILED_PRECONDITION"


class Aborted(ServiceError):
    """Lost a race; trying the whole operation again may work."""

    code = "ABORTED"


class ResourceExhausted(ServiceError):
    """A bound was reached: quota, space, streams."""

    code = "RESOURCE_EXHAUSTED"


class Unavailable(ServiceError):
    """A dependency is away; the same call may work later."""

    code = "UNAVAILABLE"


class DeadlineExceeded(ServiceError):
    """The time given was not enough. Whether it was done is unknown."""

    code = "DEADLINE_EXCEEDED"


class Cancelled(ServiceError):
    """The caller went away."""

    code = "CANCELLED"


class Unimplemented(ServiceError):
    """Not served."""

    code = "UNIMPLEMENTED"


class DataLoss(ServiceError):
    """What was stored is not what comes back."""

    code = "DATA_LOSS"


class Internal(ServiceError):
    """Our fault; the text is fixed."""

    code = "INTERNAL"


BY_CODE: dict[str, type[ServiceError]] = {cls.code: cls for cls in ServiceError.__subclasses__()}
