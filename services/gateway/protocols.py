"""The OpenAPI operations of tus and of the IETF's resumable uploads, beside those of :mod:`handwritten`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.common.keys import MEDIA_UPLOAD
from services.gateway import handwritten, headerfields
from services.gateway.statuses import OF_ANSWERS, OF_APPENDS, OF_TUS
from services.gateway.statuses import headers as told

_ID = {"name": "session_id", "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}
_OPTIONS_PROBLEMS: Mapping[int, str] = {503: ""}


def _header(name: str, schema: Mapping[str, Any] = headerfields.TEXT, *, required: bool = False) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": required, "schema": schema}


_VERSION = _header("Tus-Resumable", headerfields.TUS_VERSION, required=True)
_KEY = _header("Idempotency-Key", headerfields.IDEMPOTENCY_KEY)
_CHECKSUM = _header("Upload-Checksum", headerfields.TUS_CHECKSUM)
_INTEROP = _header("Upload-Draft-Interop-Version") | {
    "description": "8 asks for a 104 with the Location, before the content is taken.",
    "example": "8",
}


def _operation(
    name: str,
    tag: str,
    summary: str,
    status: int,
    headers: Sequence[str],
    parameters: Sequence[Mapping[str, Any]],
    *,
    body: str = "",
    problems: Mapping[int, str] = OF_APPENDS,
) -> dict[str, Any]:
    response = {"description": "Done.", "headers": told(*headers, *OF_ANSWERS)}
    content = {"required": name.endswith("Patch"), "content": {body: {}}}
    return {
        "operationId": name,
        "tags": [tag],
        "summary": summary,
        "security": [{"bearer": [MEDIA_UPLOAD]}],
        "parameters": list(parameters),
        "responses": {str(status): response},
        "x-problems": problems,
    } | ({"requestBody": content} if body else {})


def _tus() -> dict[str, Any]:
    body = "application/offset+octet-stream"
    problems = OF_TUS
    create = _operation(
        "TusCreate",
        "tus",
        "Makes an upload (creation, creation-with-upload, creation-defer-length, concatenation).",
        201,
        ("Location", "Upload-Offset", "Upload-Expires"),
        (
            _VERSION,
            _header("Upload-Length", headerfields.SIZE) | {"example": 8100000},
            _header("Upload-Defer-Length", {"type": "string", "const": "1"}),
            _header("Upload-Metadata") | {"example": "filename Y2xpcC5tcDQ=,filetype dmlkZW8vbXA0"},
            _header("Upload-Concat", headerfields.TUS_CONCAT),
            _CHECKSUM,
            _KEY,
        ),
        body=body,
        problems=problems,
    )
    patch = _operation(
        "TusPatch",
        "tus",
        "Appends bytes; the last one completes the upload.",
        204,
        ("Upload-Offset", "Upload-Expires"),
        (
            _ID,
            _VERSION,
            _header("Upload-Offset", headerfields.BYTES, required=True),
            _header("Upload-Length", headerfields.BYTES),
            _CHECKSUM,
        ),
        body=body,
        problems=problems,
    )
    state = ("Upload-Offset", "Upload-Length", "Upload-Metadata", "Upload-Expires", "Upload-Concat")
    head = _operation("TusHead", "tus", "How far an upload is.", 200, state, (_ID, _VERSION), problems=problems)
    delete = _operation("TusDelete", "tus", "Gives an upload up.", 204, (), (_ID, _VERSION), problems=problems)
    told = ("Tus-Version", "Tus-Extension", "Tus-Max-Size", "Tus-Checksum-Algorithm")
    options = _operation("TusOptions", "tus", "What of tus is served.", 204, told, (), problems=_OPTIONS_PROBLEMS)
    return {
        "/api/v1/tus/": {"post": create, "options": options | {"security": [{}]}},
        "/api/v1/tus/{session_id}": {"head": head, "patch": patch, "delete": delete},
    }


def _rufh() -> dict[str, Any]:
    tag = "Resumable Uploads for HTTP"
    digest = _header("Content-Digest", headerfields.DIGEST)
    completes = _header("Upload-Complete", headerfields.FLAG, required=True)
    state = ("Upload-Complete", "Upload-Offset", "Upload-Length", "Upload-Limit")
    create = _operation(
        "RufhCreate",
        tag,
        "Makes an upload of the content; with Upload-Complete ?1 the content is all of it (answer 200).",
        201,
        ("Location", *state),
        (
            completes | {"example": "?1"},
            _header("Upload-Length", headerfields.STRUCTURED_SIZE),
            _header("Content-Disposition") | {"example": 'attachment; filename="clip.mp4"'},
            _header("Repr-Digest", headerfields.DIGEST),
            digest,
            _INTEROP,
            _KEY,
        ),
        body="*/*",
    )
    offset = _header("Upload-Offset", headerfields.STRUCTURED_BYTES, required=True)
    length = _header("Upload-Length", headerfields.STRUCTURED_BYTES)
    summary = "Appends content; Upload-Complete ?1 makes the file (answer 200 with the upload)."
    patch = _operation(
        "RufhPatch",
        tag,
        summary,
        204,
        state,
        (_ID, offset, completes, length, digest),
        body="application/partial-upload",
    )
    whole: dict[str, Any] = {
        "description": "The content was the last: the file is made.",
        "headers": told("Upload-Complete", "Upload-Offset", *OF_ANSWERS),
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Upload"}}},
    }
    create["responses"]["200"] = whole | {"headers": told("Location") | whole["headers"]}
    patch["responses"]["200"] = whole
    head = _operation("RufhHead", tag, "How far an upload is.", 204, state, (_ID,))
    delete = _operation("RufhDelete", tag, "Gives an upload up.", 204, (), (_ID,))
    limits = ("Accept-Patch", "Upload-Limit")
    options = _operation(
        "RufhOptions", tag, "What is served and its limits.", 204, limits, (), problems=_OPTIONS_PROBLEMS
    )
    return {
        "/api/v1/rufh/": {"post": create, "options": options | {"security": [{}]}},
        "/api/v1/rufh/{session_id}": {"head": head, "patch": patch, "delete": delete},
    }


PATHS: Mapping[str, Mapping[str, Any]] = {**handwritten.PATHS, **_tus(), **_rufh()}
