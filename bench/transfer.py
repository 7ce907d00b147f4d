"""Puts files of random bytes on the server under measurement, and makes the merge session of three."""

from __future__ import annotations

import hashlib
import json
import os
import urllib.request
from typing import Any

from bench.servers import Server
from mesh.ports import HOST

_CHUNK = 8_000_000


def put(server: Server, size: int, *, complete: bool = True) -> str:
    """The id of an upload with all its bytes; not ``complete``: without any."""
    document = {"filename": "a.mp4", "file_size": size, "mime_type": "video/mp4", "chunk_size": _CHUNK}
    made = _call(server, "/api/v1/upload/initiate", json.dumps(document).encode(), "application/json")
    id_ = str(made["session_id"])
    if complete:
        # A file that passes for an MP4 begins with a box "ftyp".
        first = b"\0\0\0\x18ftypisom\0\0\0\0isommp42"
        for number, start in enumerate(range(0, size, _CHUNK)):
            length = min(_CHUNK, size - start)
            body = (first if number == 0 else b"") + os.urandom(length)
            _call(server, f"/api/v1/upload/{id_}/chunk/{number}", body[:length], "application/octet-stream")
        _call(server, f"/api/v1/upload/{id_}/complete", b"{}", "application/json")
    return id_


def begin_merge(server: Server) -> str:
    """The id of a merge session whose three clips have not come."""
    document = {
        "video_count": 3,
        "video_filenames": ["a.mp4", "b.mp4", "c.mp4"],
        "video_file_sizes": [1_000_000] * 3,
        "video_durations": [5, 5, 5],
        "video_mime_types": ["video/mp4"] * 3,
    }
    path = "/api/v1/challenge-videos/upload-for-merge/initiate"
    return str(_call(server, path, json.dumps(document).encode(), "application/json")["merge_session_id"])


def _call(server: Server, path: str, body: bytes, kind: str) -> dict[str, Any]:
    headers = server.headers | {"Content-Type": kind}
    if kind == "application/octet-stream":
        headers["X-Chunk-SHA256"] = hashlib.sha256(body).hexdigest()
    request = urllib.request.Request(f"http://{HOST}:{server.port}{path}", body, headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        found: dict[str, Any] = json.loads(answer.read())
        return found
