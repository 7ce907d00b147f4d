"""Which statuses an operation may answer, for the OpenAPI document: those of the error codes and reasons that the
comment of its rpc names, and those that the gateway itself has for every request of its shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from services.gateway import problems

Schema = dict[str, Any]
_CODE_LINE = re.compile(r"\b([A-Z]{3}[A-Z_]+): ([^.]*)")
_WORD = re.compile(r"\b[A-Z]+(?:_[A-Z]+)+\b")
_EVERY_RPC = (400, 401, 403, 500, 503, 504)
# Whatever the path: its length, an Expect that nobody knows, limits of the player or address, long headers.
EVERYWHERE = (414, 417, 429, 431)
OF_BODIES = (400, 408, 413, 415)
OF_STREAMS = (406,)
OF_ANSWERS = ("X-Request-Id", "RateLimit", "RateLimit-Policy")
# What these mean wherever nothing else is said of them: the reason, and what it is about.
_OURS: Mapping[int, str] = {
    400: "INVALID_ARGUMENT a field breaks its rule",
    401: "UNAUTHENTICATED there is no token, or one that does not count",
    403: "SCOPE_MISSING the token lacks a scope",
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
    500: "INTERNAL our fault",
    503: "UNAVAILABLE a service is away",
    504: "DEADLINE_EXCEEDED a service is too slow; whether the request took effect is unknown",
    507: "STORAGE_FULL there is no room; what was acknowledged is kept",
}
# Of hand-written operations: status → the reasons and what they mean; "" is what the status means everywhere.
_OF_UPLOADS: dict[int, str] = dict.fromkeys((400, 401, 403, 408, 413, 415, 500, 503, 504, 507), "") | {
    404: "UPLOAD_NOT_FOUND the player has no such upload",
    410: "UPLOAD_EXPIRED its time is over",
    429: "TOO_MANY_REQUESTS the player, or the address, asks too often; TOO_MANY_STREAMS too many bodies come",
}
OF_CHUNKS = _OF_UPLOADS | {
    400: "CHUNK_DIGEST_MISMATCH the bytes have another digest; CHUNK_SIZE_MISMATCH there are more or fewer; "
    "BODY_CUT_SHORT the connection broke; CHUNK_OUT_OF_RANGE the upload has no such chunk",
    409: "CHUNK_CONFLICT other bytes are stored under the number, and stay; UPLOAD_CLOSED it takes no more; "
    "CHUNK_SUPERSEDED a newer request sends the same chunk",
}
_OF_BYTES: dict[int, str] = dict.fromkeys((400, 401, 403, 412, 416, 500, 504), "") | {
    429: "TOO_MANY_REQUESTS the player, or the address, asks too often; TOO_MANY_DOWNLOADS so many run already",
    503: "TOO_MANY_READERS too many bodies are sent at once; UNAVAILABLE a service is away",
}
OF_FILES = _OF_BYTES | {
    404: "UPLOAD_NOT_FOUND the player has no such upload",
    409: "FILE_NOT_READY the upload is not completed",
}
OF_VIDEOS = _OF_BYTES | {
    403: "SIGNATURE_EXPIRED ask for a new URL; SIGNATURE_INVALID the URL was changed; "
    "VIDEO_WITHDRAWN it is not public any more; SCOPE_MISSING the token lacks a scope",
    404: "VIDEO_NOT_FOUND the player may see no such video; SIDECAR_NOT_FOUND it has nothing like this beside it",
}
OF_APPENDS = _OF_UPLOADS | {
    409: "OFFSET_MISMATCH the upload goes on elsewhere: ask with HEAD; UPLOAD_CLOSED it takes no more; "
    "CHUNK_CONFLICT other bytes are stored there; CHUNK_SUPERSEDED a newer request goes on with it",
    413: "FILE_TOO_LARGE the file is larger than is taken; LENGTH_EXCEEDED there are more bytes than told",
}
OF_TUS = OF_APPENDS | {
    412: "TUS_VERSION_UNSUPPORTED Tus-Resumable is not 1.0.0",
    460: "CHUNK_DIGEST_MISMATCH the bytes do not have their Upload-Checksum: send them again",
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
    for code, text in _CODE_LINE.findall(comment):
        if code in problems.STATUS_BY_CODE:
            status, meaning = _meaning(code, " ".join(text.split()))
            texts.setdefault(status, []).append(meaning)
    for status in (*_EVERY_RPC, *EVERYWHERE, *(OF_BODIES if body else ()), *(OF_STREAMS if stream else ())):
        texts.setdefault(status, []).append(_OURS[status])
    return {str(s): problem(s, "; ".join(dict.fromkeys(lines))) for s, lines in sorted(texts.items())}


def _meaning(code: str, text: str) -> tuple[int, str]:
    """The status and the meaning of ``CODE: text`` in a comment. Where the text has reasons, a phone is told these
    instead of the code, and the first of them decides about the status."""
    status = problems.STATUS_BY_CODE[code]
    reasons = [word for word in _WORD.findall(text) if word not in problems.STATUS_BY_CODE]
    if not reasons:
        return status, f"{code} {text}"
    return problems.STATUS_BY_REASON.get(reasons[0], status), text


def of_handwritten(meanings: Mapping[int, str]) -> dict[str, Schema]:
    """The problems of a hand-written operation by status. A meaning that is empty is the common one."""
    found = dict.fromkeys(EVERYWHERE, "") | dict(meanings)
    return {str(s): problem(s, text or _OURS[s]) for s, text in sorted(found.items())}


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
        ("RateLimit", "What is left of each quota, and the seconds until there is more.", '"user";r=1999;t=1'),
        ("RateLimit-Policy", "The quotas: how many in how many seconds.", '"user";q=2000;w=10'),
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
