"""Whether the OpenAPI document knows an answer: its status, and the media type of its body.

An answer belongs to the operation of its method at the most specific path that its path fits. None owns what was
said before there was a route (no such path, a method that the path does not take) or of a head that is no request.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import aiohttp
from multidict import CIMultiDict

from services.gateway import contract, guests, openapi, routes

NO_OPERATION = frozenset(
    {
        "HEAD_TIMEOUT",
        "MALFORMED_REQUEST",
        "METHOD_NOT_ALLOWED",
        "METHOD_NOT_SUPPORTED",
        "ROUTE_NOT_FOUND",
        "TOO_MANY_CONNECTIONS",
        "UNKNOWN_TRANSFER_CODING",
        "VERSION_NOT_SUPPORTED",
    }
)
"""The reasons of problems that are of no operation."""
PROBLEM = "application/problem+json"
_FIELD = re.compile(r"\\\{[^}]*\\\}")


@cache
def document() -> Mapping[str, Any]:
    """That of a gateway that has every route."""
    return openapi.document(routes.bindings(contract.services()), contract.comments(), guests.PATHS)


def operation(method: str, path: str) -> tuple[str, Mapping[str, Any]] | None:
    """The path's template and the operation, if the document has one."""
    for template, pattern in _patterns():
        if pattern.fullmatch(path):
            found = document()["paths"][template].get(method.lower())
            return None if found is None else (template, found)
    return None


def fault(method: str, path: str, status: int, headers: Mapping[str, str], body: bytes) -> str:
    """What the document does not say of this answer; "" if it says all. ``path``: as sent, without its query."""
    found = operation(method, path)
    kind = CIMultiDict(headers).get("Content-Type", "").partition(";")[0]
    if found is None or (kind == PROBLEM and _reason(body) in NO_OPERATION):
        return ""
    template, described = found
    response = described["responses"].get(str(status))
    if response is None:
        return f"{method} {template} answers {status}, which is not documented: {body[:300]!r}"
    kinds = response.get("content", {})
    if method == "HEAD" or "*/*" in kinds or kind in kinds or not (kinds or body):
        return ""
    known = ", ".join(kinds) or "no body"
    return f"{method} {template} answers {status} with {kind or 'no type'}; documented: {known}"


class Guard:
    """Fails every request of a client whose answer the document does not know, save while ``off``: for tests in
    which a service says what no service does."""

    def __init__(self) -> None:
        self.off = False

    def trace(self) -> aiohttp.TraceConfig:
        """What the client is to have."""
        trace = aiohttp.TraceConfig()
        trace.on_request_end.append(self._look)
        return trace

    async def _look(self, _: Any, __: Any, end: aiohttp.TraceRequestEndParams) -> None:
        answer = end.response
        body = await answer.read() if answer.content_type == PROBLEM else b""
        found = fault(end.method, end.url.raw_path, answer.status, answer.headers, body)
        assert self.off or not found, found


@cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    """Every path of the document, those without fields first."""
    paths = sorted(document()["paths"], key=lambda path: path.count("{"))
    return [(path, re.compile(_FIELD.sub("[^/]+", re.escape(path)))) for path in paths]


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body).get("reason", ""))
    except ValueError:  # a HEAD has none
        return ""
