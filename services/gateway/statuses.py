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
# What these mean wherever the gateway itself answers them.
_OURS: Mapping[int, str] = {
    406: "NOT_ACCEPTABLE Accept allows neither kind of stream",
    408: "BODY_TIMEOUT the body came too slowly",
    412: "PRECONDITION_FAILED If-Match or If-Unmodified-Since does not hold",
    413: "BODY_TOO_LARGE the body has more bytes than are taken",
    414: "URI_TOO_LONG the path with its query has more bytes than are taken",
    415: "UNSUPPORTED_MEDIA_TYPE the body is of no kind that is taken here",
    416: "RANGE_NOT_SATISFIABLE the range begins after the end",
    417: "UNKNOWN_EXPECTATION Expect asks for something other than 100-continue",
    429: "TOO_MANY_REQUESTS the player, or the address, asks too often",
    431: "HEADERS_TOO_LARGE a header has more bytes than are taken",
}
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
        texts.setdefault(status, [_meaning(status)])
    return {str(s): problem(s, "; ".join(dict.fromkeys(lines))) for s, lines in sorted(texts.items())}


def titled(found: Iterable[int]) -> dict[str, Schema]:
    """The problems of a hand-written operation by status."""
    return {str(s): problem(s, _meaning(s)) for s in sorted({*found, *EVERYWHERE})}


def _meaning(status: int) -> str:
    return _OURS.get(status) or problems.title(status)


def problem(status: int, description: str) -> Schema:
    """The response object of a problem."""
    return {
        "description": description,
        "headers": headers("X-Request-Id", *_HEADERS.get(status, ())),
        "content": {problems.CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


HEADERS: Mapping[str, Schema] = {
    name: {"description": text, "schema": {"type": "string"}, "example": example}
    for name, text, example in (
        ("Accept-Patch", "The media type of what is appended.", "application/partial-upload"),
        ("Accept-Post", "The media types that a body may have.", "application/json, multipart/form-data"),
        ("Accept-Ranges", "`bytes`, or `none`.", "bytes"),
        ("Allow", "The methods that the path takes.", "GET, HEAD"),
        ("Content-Disposition", "The file's name (RFC 6266).", 'inline; filename="clip.mp4"'),
        ("Content-Range", "Which bytes these are, and of how many.", "bytes 0-1/8100000"),
        ("ETag", "The SHA-256 of the whole file, in quotes.", '"9f86d081884c7d65…"'),
        ("Last-Modified", "When the file was made (an HTTP date).", "Wed, 01 Jul 2026 12:00:00 GMT"),
        ("Location", "Where it is.", "/api/v1/…"),
        ("RateLimit", "What is left of a quota, and for how long.", '"uploads";r=59;t=60'),
        ("RateLimit-Policy", "The quota.", '"uploads";q=60;w=60'),
        ("Retry-After", "Seconds to wait before the request is sent again.", "2"),
        ("Tus-Checksum-Algorithm", "What Upload-Checksum may name.", "sha1,sha256"),
        ("Tus-Extension", "The extensions of tus that are served.", "creation,termination,checksum"),
        ("Tus-Max-Size", "Bytes of the largest file.", "2147483648"),
        ("Tus-Version", "The versions of tus that are served.", "1.0.0"),
        ("Upload-Complete", "Whether all of the file is there.", "?0"),
        ("Upload-Concat", "Whether the upload is a part of another, or made of parts.", "partial"),
        ("Upload-Expires", "When it is given up (an HTTP date).", "Thu, 02 Jul 2026 12:00:00 GMT"),
        ("Upload-Length", "The file's size in bytes.", "8100000"),
        (
            "Upload-Limit",
            "Bytes of the largest file, and seconds that are left.",
            "max-size=2147483648, max-age=86400",
        ),
        ("Upload-Metadata", "What the client told of the file, in base64.", "filename Y2xpcC5tcDQ="),
        ("Upload-Offset", "How many bytes are stored.", "4194304"),
        ("WWW-Authenticate", "What is wrong with the token, or the scope (RFC 6750).", 'Bearer realm="twotruths"'),
        ("X-Request-Id", "Finds the request in the log.", "3f2b8c1e6d474a599c0e7b1d2e5f8a34"),
    )
}


def headers(*names: str) -> Schema:
    """References to headers of a response."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
