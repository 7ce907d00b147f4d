"""Puts a file of random bytes on the server under measurement."""

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


def _call(server: Server, path: str, body: bytes, kind: str) -> dict[str, Any]:
    headers = server.headers | {"Content-Type": kind}
    if kind == "application/octet-stream":
        headers["X-Chunk-SHA256"] = hashlib.sha256(body).hexdigest()
    request = urllib.request.Request(f"http://{HOST}:{server.port}{path}", body, headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        found: dict[str, Any] = json.loads(answer.read())
        return found
