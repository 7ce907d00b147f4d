"""Which statuses an operation may answer, for the OpenAPI document: those of the error codes and reasons that the
comment of its rpc names, and those that the gateway itself has for every request of its shape."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from services.gateway import problems

Schema = dict[str, Any]
_CODE_LINE = re.compile(r"\b([A-Z]{3}[A-Z_]+): ([^.]*)")
_WORD = re.compile(r"\b[A-Z]+(?:_[A-Z]+)+\b")
_EVERY_RPC = (
    "INVALID_ARGUMENT",
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "INTERNAL",
)
# Whatever the path: its length, an Expect that nobody knows, limits of the player or address, long headers.
EVERYWHERE = (414, 417, 429, 431)
OF_BODIES = (400, 408, 413, 415)
OF_STREAMS = (406,)
OF_ANSWERS = ("X-Request-Id", "RateLimit", "RateLimit-Policy")
_HEADERS: Mapping[int, tuple[str, ...]] = {
    401: ("WWW-Authenticate",),
    403: ("WWW-Authenticate",),
    405: ("Allow",),
    415: ("Accept-Post",),
    416: ("Content-Range",),
    429: ("Retry-After", "RateLimit", "RateLimit-Policy"),
    503: ("Retry-After",),
    507: ("Retry-After",),
}


def of_rpc(comment: str, *, body: bool, stream: bool) -> dict[str, Schema]:
    """The problems of an annotated rpc by status."""
    texts: dict[int, list[str]] = {}
    for code, text in [*_CODE_LINE.findall(comment), *((code, "") for code in _EVERY_RPC)]:
        status = problems.STATUS_BY_CODE.get(code)
        if status is not None:
            texts.setdefault(status, []).append(" ".join(f"{code} {text}".split()))
    for reason in _WORD.findall(comment):
        if reason in problems.STATUS_BY_REASON:
            texts.setdefault(problems.STATUS_BY_REASON[reason], []).append(reason)
    ours = (*EVERYWHERE, *(OF_BODIES if body else ()), *(OF_STREAMS if stream else ()))
    for status in ours:
        texts.setdefault(status, [problems.title(status)])
    return {str(s): problem(s, "; ".join(dict.fromkeys(lines))) for s, lines in sorted(texts.items())}


def titled(found: Iterable[int]) -> dict[str, Schema]:
    """The problems of a hand-written operation by status."""
    return {str(s): problem(s, problems.title(s)) for s in sorted({*found, *EVERYWHERE})}


def problem(status: int, description: str) -> Schema:
    """The response object of a problem."""
    return {
        "description": description,
        "headers": headers("X-Request-Id", *_HEADERS.get(status, ())),
        "content": {problems.CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


HEADERS: Mapping[str, Schema] = {
    name: {"description": text, "schema": {"type": kind}}
    for name, kind, text in (
        ("Accept-Post", "string", "The media types that a body may have."),
        ("Accept-Ranges", "string", "bytes."),
        ("Allow", "string", "The methods that the path takes."),
        ("Content-Disposition", "string", "The file's name (RFC 6266)."),
        ("Content-Range", "string", "Which bytes these are, and of how many."),
        ("ETag", "string", "The SHA-256 of the whole file, in quotes."),
        ("Last-Modified", "string", "When the file was made (an HTTP date)."),
        ("RateLimit", "string", "What is left of a quota, and for how long."),
        ("RateLimit-Policy", "string", "The quota."),
        ("Retry-After", "integer", "Seconds to wait before the request is sent again."),
        ("WWW-Authenticate", "string", "What is wrong with the token, or which scope is missing (RFC 6750)."),
        ("X-Request-Id", "string", "Finds the request in the log."),
    )
}


def headers(*names: str) -> Schema:
    """References to headers of a response."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
