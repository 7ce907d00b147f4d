"""The OpenAPI operations of the routes that no annotation describes: chunks, bytes, health."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.common.keys import MEDIA_READ, MEDIA_UPLOAD
from services.gateway.headerfields import DIGEST
from services.gateway.headerfields import SHA256 as _HASH
from services.gateway.statuses import OF_ANSWERS, OF_CHUNKS, OF_FILES, OF_VIDEOS, headers

_ID = {"type": "string", "format": "uuid"}

SCHEMAS: Mapping[str, Any] = {
    "Problem": {
        "type": "object",
        "description": "What went wrong (RFC 9457).",
        "examples": [
            {
                "type": "urn:twotruths:problem:chunk-conflict",
                "title": "Conflict",
                "status": 409,
                "detail": "other bytes are stored for chunk 3",
                "instance": "/api/v1/upload/3f2b8c1e-6d47-4a59-9c0e-7b1d2e5f8a34/chunk/3",
                "request_id": "5f0c6d0a1b2c4d5e8f90a1b2c3d4e5f6",
                "reason": "CHUNK_CONFLICT",
                "errors": [],
            }
        ],
        "required": ["type", "title", "status", "detail", "instance", "request_id", "reason", "errors"],
        "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": {"type": "string", "description": "The status in words."},
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "What went wrong, for a person."},
            "instance": {"type": "string", "description": "The path of the request."},
            "request_id": {"type": "string", "description": "Finds the request in the log."},
            "reason": {"type": "string", "description": "What went wrong, for a program."},
            "errors": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["pointer", "detail"],
                    "properties": {
                        "pointer": {"type": "string", "description": "JSON pointer to the wrong field."},
                        "detail": {"type": "string"},
                    },
                },
            },
        },
    },
    "ChunkAnswer": {
        "type": "object",
        "description": "What is stored of the upload, and of this chunk.",
        "required": [
            "session_id",
            "merge_session_id",
            "video_index",
            "uploaded_chunks",
            "remaining_chunks",
            "progress_percent",
            "chunk_number",
            "status",
            "chunk_hash",
        ],
        "properties": {
            "session_id": _ID,
            "merge_session_id": {"type": "string"},
            "video_index": {"type": ["integer", "null"]},
            "chunk_number": {"type": "integer"},
            "status": {"type": "string", "enum": ["uploaded", "already_exists"]},
            "chunk_hash": _HASH,
            "uploaded_chunks": {"type": "array", "items": {"type": "integer"}},
            "remaining_chunks": {"type": "array", "items": {"type": "integer"}},
            "progress_percent": {"type": "number"},
        },
    },
}


def _chunk(*, in_path: bool, slug: str) -> dict[str, Any]:
    number = {"type": "integer", "format": "int32", "minimum": 0, "maximum": 2**31 - 1}
    return {
        "post": {
            "operationId": f"UploadChunk_{slug}_{'path' if in_path else 'query'}",
            "tags": ["UploadService"],
            "summary": "Stores one chunk.",
            "description": "A form with the file, or the bytes alone with Content-Digest or X-Chunk-SHA256. "
            "Without a digest nobody notices bytes that were damaged on the way. "
            "The same bytes again are already_exists; other bytes at a taken number are 409.",
            "parameters": [
                {"name": "session_id", "in": "path", "required": True, "schema": _ID},
                {
                    "name": "chunk_number",
                    "in": "path" if in_path else "query",
                    "required": True,
                    "schema": number,
                },
                {"name": "X-Chunk-SHA256", "in": "header", "required": False, "schema": _HASH},
                {"name": "Content-Digest", "in": "header", "required": False, "schema": DIGEST},
            ],
            "requestBody": {
                "required": True,
                "content": {
                    "multipart/form-data": {
                        "schema": {
                            "type": "object",
                            "required": ["file"],
                            "properties": {
                                "file": {"type": "string", "contentMediaType": "application/octet-stream"},
                                "chunk_hash": _HASH,
                            },
                        }
                    },
                    "application/octet-stream": {},
                },
            },
            "responses": {
                "200": {
                    "description": "The chunk is stored.",
                    "headers": headers(*OF_ANSWERS),
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ChunkAnswer"}}},
                }
            },
            "security": [{"bearer": [MEDIA_UPLOAD]}],
            "x-problems": OF_CHUNKS,
        }
    }


_MOVED = {"description": "Another delivers the bytes.", "headers": headers(*OF_ANSWERS, "Location")}
_CONDITIONS = {
    "If-Match": "412 unless the file has one of these ETags.",
    "If-None-Match": "304 if the file has one of these ETags.",
    "If-Modified-Since": "304 if the file is no newer (an HTTP date).",
    "If-Unmodified-Since": "412 if the file is newer (an HTTP date).",
}


def _condition(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}


def _part(kind: str, told: tuple[str, ...]) -> dict[str, Any]:
    return {
        "description": "The range asked for; several come as multipart/byteranges.",
        "headers": headers(*told, "Content-Range"),
        "content": {kind: {}, "multipart/byteranges": {}},
    }


def _bytes(
    name: str,
    parameter: str,
    summary: str,
    *,
    signed: bool,
    ranges: bool = True,
    kind: str = "*/*",
    moves: bool = False,
) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [{"name": parameter, "in": "path", "required": True, "schema": _ID}]
    parameters += [_condition(name, text) for name, text in _CONDITIONS.items()]
    told = (*OF_ANSWERS, "ETag", "Last-Modified", "Accept-Ranges", "Content-Disposition")
    if ranges:
        parameters += [
            _condition("Range", "Which bytes: `bytes=0-1`, `bytes=500-`, `bytes=-500`, or several of them."),
            _condition("If-Range", "The range counts for the file of this ETag or date alone; else all comes."),
            {"name": "download", "in": "query", "required": False, "schema": {"type": "string"}},
        ]
    if signed:
        parameters += [
            {"name": query, "in": "query", "required": False, "schema": {"type": "string"}}
            for query in ("expires", "key_id", "public")
        ]
    operation: dict[str, Any] = {
        "tags": ["Media"],
        "summary": summary,
        "parameters": parameters,
        "security": [{"bearer": [MEDIA_READ]}, *([{"signed": []}] if signed else [])],
        "responses": {
            "200": {"description": "The whole file.", "headers": headers(*told), "content": {kind: {}}},
            "304": {"description": "The client's copy is current.", "headers": headers(*OF_ANSWERS, "ETag")},
        },
    }
    problems = OF_VIDEOS if signed else OF_FILES
    # Ranges, and so redirects to where they are served, are for GET alone (RFC 9110 section 14.2).
    of_get = ({"206": _part(kind, told)} if ranges else {}) | ({"302": _MOVED} if moves else {})
    get = operation | {"responses": operation["responses"] | of_get, "x-problems": problems}
    head = operation | {"x-problems": {status: text for status, text in problems.items() if status != 416}}
    return {"get": get | {"operationId": f"{name}_get"}, "head": head | {"operationId": f"{name}_head"}}


def _poster() -> dict[str, Any]:
    operations = _bytes(
        "GetPoster", "video_file_id", "A picture of one statement.", signed=True, kind="image/jpeg"
    )
    statement = {"name": "statement", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 0}}
    return {
        verb: operation | {"parameters": [statement, *operation["parameters"]]}
        for verb, operation in operations.items()
    }


_VIDEO = "/api/v1/media/stream/{video_file_id}"
_BESIDE: Mapping[str, Mapping[str, Any]] = {
    f"{_VIDEO}/posters/{{statement}}.jpg": _poster(),
    **{
        f"{_VIDEO}/{file}": _bytes(name, "video_file_id", summary, signed=True, ranges=ranges, kind=kind)
        for file, name, summary, ranges, kind in (
            ("storyboard.jpg", "GetStoryboard", "Small pictures of the whole video.", True, "image/jpeg"),
            ("storyboard.vtt", "GetStoryboardTimes", "Which part of storyboard.jpg is when.", False, "text/vtt"),
            ("hls.m3u8", "GetPlaylist", "The HLS playlist of hls.mp4.", False, "application/vnd.apple.mpegurl"),
            ("hls.mp4", "StreamRendition", "The video as fragmented MP4.", True, "video/mp4"),
        )
    },
}

_HEALTH = {
    "get": {
        "operationId": "Health",
        "tags": ["Health"],
        "summary": "Whether the gateway and the services behind it serve.",
        "security": [{}],
        "responses": {
            str(status): {
                "description": text,
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "required": ["status", "gateway", "services"],
                            "properties": {
                                "status": {"type": "string", "enum": ["healthy", "unhealthy"]},
                                "gateway": {"type": "string"},
                                "services": {"type": "object", "additionalProperties": {"type": "string"}},
                            },
                        }
                    }
                },
            }
            for status, text in ((200, "All serve."), (503, "Not all serve."))
        },
    }
}

PATHS: Mapping[str, Mapping[str, Any]] = {
    **{
        f"{url}{suffix}": _chunk(in_path=bool(suffix), slug=slug)
        for url, slug in (
            ("/api/v1/challenge-videos/upload/{session_id}/chunk", "challenge_videos"),
            ("/api/v1/upload/{session_id}/chunk", "upload"),
        )
        for suffix in ("", "/{chunk_number}")
    },
    _VIDEO: _bytes(
        "StreamVideo",
        "video_file_id",
        "A merged video, by bearer token or by the signature in the URL.",
        signed=True,
        moves=True,
    ),
    **_BESIDE,
    "/api/v1/files/{file_id}": _bytes("GetFile", "file_id", "An uploaded file.", signed=False),
    "/api/v1/health": _HEALTH,
}
