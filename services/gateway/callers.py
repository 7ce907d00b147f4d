"""What the gateway passes on of a caller: the Authorization header, which services verify; the key by
which a request may be sent again; what the phone tells of itself.

Idempotency-Key is a string of structured fields (draft-ietf-httpapi-idempotency-key-header-07: ``"8e03"``); the
bare words that most clients send are taken for the same.
"""

from __future__ import annotations

import re
from typing import cast

from aiohttp import web
from buf.validate import validate_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from services.common.errors import Unauthenticated
from services.gateway import problems
from services.gateway.problems import FieldError, Problem, invalid

_KEY = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"|([\x21\x23-\x7e]*)')
_MAX_KEY = 128
_HINTS = {"network_type": "X-Network-Type", "device_type": "X-Device-Type"}
_MAX_HINT = 32

Metadata = tuple[tuple[str, str], ...]
SUBJECT = web.RequestKey("subject", str)
"""The subject of the request's token, where that was verified."""


def unauthenticated() -> Problem:
    """401 for a request without a usable token."""
    return Problem(
        401,
        "UNAUTHENTICATED",
        "a bearer token is required",
        headers={"WWW-Authenticate": 'Bearer realm="twotruths"'},
    )


def invalid_token() -> Problem:
    """401 for a token that cannot be one: word for word what the services say of one that does not count."""
    return problems.from_error(Unauthenticated("the bearer token is not valid"))


def bearer(request: web.Request, *, max_token: int) -> str | None:
    """The token of a request, not verified; None when there is none. Raises Problem 401 for what cannot be one."""
    values = request.headers.getall("Authorization", [])
    scheme, _, token = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    if scheme.lower() != "bearer" or not token:
        return None
    if not token.isascii() or not token.isprintable() or len(token) > max_token:
        raise invalid_token()
    return token


def metadata(request: web.Request, *, max_token: int) -> Metadata:
    """The call metadata of a request. Raises Problem 401 when no token came, or one that cannot be one."""
    token = bearer(request, max_token=max_token)
    if token is None:
        raise unauthenticated()
    return (("authorization", f"Bearer {token}"),)


def request_id(request: web.Request) -> str:
    """The Idempotency-Key, or "". Raises Problem 400."""
    values = request.headers.getall("Idempotency-Key", [])
    if not values:
        return ""
    found = _KEY.fullmatch(values[0].strip()) if len(values) == 1 else None
    if found is None:
        raise invalid([FieldError("/Idempotency-Key", "must be one string, as 8e03978e-40d5-43dd or in quotes")])
    key = re.sub(r"\\(.)", r"\1", found.group(1)) if found.group(1) is not None else found.group(2)
    if not 0 < len(key) <= _MAX_KEY:
        raise invalid([FieldError("/Idempotency-Key", f"must have 1 to {_MAX_KEY} characters")])
    return key


def hint(request: web.Request, field: str) -> str:
    """What the phone says of its network_type or device_type, or "". It decides nothing that a phone may not
    choose, so one that makes no sense is left out and a long one cut."""
    value = request.headers.get(_HINTS[field], "").strip()
    return value[:_MAX_HINT] if value.isascii() and value.isprintable() else ""


def fill(request: web.Request, message: Message) -> None:
    """Gives ``message`` from the headers what it has a field for and the body did not say. Raises Problem 400."""
    fields = message.DESCRIPTOR.fields_by_name
    for name in ("request_id", *_HINTS):
        field = fields.get(name)
        if field is None or field.type != field.TYPE_STRING or field.is_repeated:
            continue
        value = request_id(request) if name == "request_id" else hint(request, name)
        if getattr(message, name):
            continue
        if name == "request_id" or _is_taken(cast(FieldDescriptor, field), value):
            setattr(message, name, value)


def _is_taken(field: FieldDescriptor, value: str) -> bool:
    """Whether the field is free, or this is one of the words that it takes."""
    words = getattr(field.GetOptions().Extensions[validate_pb2.field].string, "in")
    return not words or value in words
