"""Errors as phones see them: RFC 9457 ``application/problem+json``, and the one table gRPC code → HTTP status."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from types import MappingProxyType

from aiohttp import web

from services.common.errors import ServiceError
from services.common.status import INTERNAL_TEXT
from services.gateway import quota_fields

CONTENT_TYPE = "application/problem+json"

_CLIENT_LEFT = 499
# https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto, except where a phone can tell more.
STATUS_BY_CODE: Mapping[str, int] = {
    "CANCELLED": _CLIENT_LEFT,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 409,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}
STATUS_BY_REASON: Mapping[str, int] = {
    "FILE_INFECTED": 422,
    "FILE_TOO_LARGE": 413,
    "LENGTH_EXCEEDED": 413,
    "OFFSET_MISMATCH": 409,
    "QUOTA_BYTES_PER_DAY": 429,
    "QUOTA_OPEN_UPLOADS": 429,
    "RATE_LIMITED": 429,
    "SCANNER_UNAVAILABLE": 503,
    "STORAGE_FULL": 507,
    "UPLOAD_EXPIRED": 410,
}
# Statuses that RFC 9110 does not name: a client that went away, and the checksum extension of tus 1.0.
_TITLES: Mapping[int, str] = {460: "Checksum Mismatch", 499: "Client Closed Request"}
# What these codes carry is for the log, not for strangers: texts of exceptions, addresses of services.
_FIXED_TEXT: Mapping[str, str] = {
    "UNKNOWN": INTERNAL_TEXT,
    "INTERNAL": INTERNAL_TEXT,
    "DATA_LOSS": INTERNAL_TEXT,
    "UNAVAILABLE": "a service is away; try again",
    "DEADLINE_EXCEEDED": "not done in time; whether it took effect is unknown",
}
_DEFAULT_RETRY_SECONDS = 2
_PATH_PART = re.compile(r"\[([^\]]*)\]|([^.\[\]]+)")


@dataclass(frozen=True, slots=True)
class FieldError:
    """A wrong value. ``pointer``: RFC 6901, in the caller's names; a parameter's is its name."""

    pointer: str
    detail: str


@dataclass(eq=False)
class Problem(Exception):
    """A refusal. ``reason`` is one word for programs, ``detail`` a sentence for people.

    ``type`` and ``members`` are for problems that a standard defines; ``metadata`` is what the service told
    besides, for the handler alone.
    """

    status: int
    reason: str
    detail: str
    errors: Sequence[FieldError] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    type: str = ""
    members: Mapping[str, object] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.status} {self.reason}: {self.detail}"

    def document(self, *, instance: str, request_id: str) -> dict[str, object]:
        """The JSON object of RFC 9457, with our members request_id, reason and errors."""
        return {
            "type": self.type or f"urn:twotruths:problem:{self.reason.lower().replace('_', '-')}",
            "title": title(self.status),
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
            "request_id": request_id,
            "reason": self.reason,
            "errors": [{"pointer": e.pointer, "detail": e.detail} for e in self.errors],
        } | dict(self.members)

    def response(self, *, instance: str, request_id: str) -> web.Response:
        """The HTTP answer."""
        body = json.dumps(self.document(instance=instance, request_id=request_id), ensure_ascii=False)
        return web.Response(
            body=body.encode(errors="replace"),
            status=self.status,
            reason=title(self.status),
            headers=dict(self.headers),
            content_type=CONTENT_TYPE,
        )


def title(status: int) -> str:
    """The status in words."""
    return _TITLES.get(status) or HTTPStatus(status).phrase


def invalid(errors: Sequence[FieldError], *, reason: str = "INVALID_ARGUMENT") -> Problem:
    """400 that names every wrong field."""
    return Problem(400, reason, _naming(errors[0]), errors)


def _naming(error: FieldError) -> str:
    return f"{error.pointer.lstrip('/') or 'the body'}: {error.detail}"


def from_error(
    error: ServiceError, *, body_field: str = "", names: Mapping[str, str] = MappingProxyType({})
) -> Problem:
    """The problem that a service's error is. ``body_field``: the field that the HTTP body was, of the request;
    ``names``: fields of the service → what the caller knows them as ("" is the body)."""
    status = STATUS_BY_REASON.get(error.reason) or STATUS_BY_CODE.get(error.code, 500)
    if status == _CLIENT_LEFT:  # not this one: there is somebody to read this, so a service gave the call up
        status = STATUS_BY_CODE["UNAVAILABLE"]
    headers = dict(quota_fields.of_error(error.metadata))
    retry_after = error.retry_after
    if retry_after is None and status == STATUS_BY_CODE["UNAVAILABLE"]:
        retry_after = _DEFAULT_RETRY_SECONDS
    if retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="twotruths", error="invalid_token"'
    elif scope := error.metadata.get("scope") if error.reason == "SCOPE_MISSING" else None:
        headers["WWW-Authenticate"] = f'Bearer realm="twotruths", error="insufficient_scope", scope="{scope}"'
    known = [_known_as(v.field, names) for v in error.violations]
    errors = [
        FieldError(pointer(v.field if name is None else name, body_field), v.description)
        for v, name in zip(error.violations, known, strict=True)
    ]
    detail = _FIXED_TEXT.get(error.code, error.message)
    if known and known[0] is not None:
        detail = _naming(errors[0])
    return Problem(status, error.reason or error.code, detail, errors, headers, metadata=error.metadata)


def _known_as(path: str, names: Mapping[str, str]) -> str | None:
    """What the caller knows a field as, or the one that it is within."""
    return names.get(path, names.get(re.split(r"[.\[]", path, maxsplit=1)[0]))


def internal() -> Problem:
    """Our fault; the log has the rest under the request id."""
    return Problem(500, "INTERNAL", INTERNAL_TEXT)


def pointer(path: str, body_field: str = "") -> str:
    """A proto path (``statements[1].media_file_id``) as a JSON pointer (``/statements/1/media_file_id``)."""
    parts = [subscript or name for subscript, name in _PATH_PART.findall(path)]
    if body_field and parts[:1] == [body_field]:
        parts = parts[1:]
    return "".join(f"/{escape(part)}" for part in parts)


def escape(part: str) -> str:
    """One reference token of a JSON pointer (RFC 6901 section 3)."""
    return part.replace("~", "~0").replace("/", "~1")
