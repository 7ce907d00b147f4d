"""Documents that are made once at the start: ``/openapi.json`` and ``/docs``. They need no token."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import MappingProxyType

from aiohttp import web

from services.gateway import conditions
from services.gateway.problems import Problem


class Document:
    """Serves one text to GET and HEAD. Caches may keep it and ask whether it holds: its ETag is its digest."""

    def __init__(self, body: bytes, content_type: str, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        self._body = body
        self._etag = hashlib.sha256(body).hexdigest()
        self._headers = {
            "Content-Type": content_type,
            "ETag": f'"{self._etag}"',
            "Cache-Control": "no-cache",
            **headers,
        }

    async def get(self, request: web.Request) -> web.Response:
        """The document. Raises Problem: 412."""
        status = conditions.evaluate(request.headers, self._etag, None)
        if status == 412:
            raise Problem(412, "PRECONDITION_FAILED", "the document is not the one that the request names")
        if status == 304:
            return web.Response(status=304, headers=self._headers)
        return web.Response(body=self._body, headers=self._headers)
