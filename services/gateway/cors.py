"""Which other sites' pages may read our answers: CORS, as the Fetch standard has it (https://fetch.spec.whatwg.org).

Off by default. Credentials in its sense are never allowed: tokens come in Authorization, which a page sets itself.
A preflight carries no token, so it is answered here, from the routes alone, and reaches no handler.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from aiohttp import web

_ANY = "*"
_MAX_AGE_SECONDS = 600
_ORIGIN = re.compile(r"https?://(\[[0-9a-f:]+\]|[a-z0-9.-]+)(:[0-9]{1,5})?")
_ORIGIN_FIELD = re.compile(rb"\norigin:[ \t]*([!-~]{1,300})[ \t]*\r?\n", re.IGNORECASE)
_HINT = re.compile(r"x-[a-z0-9-]{1,64}")
# Of a path whose route takes every method and sorts them out itself: tus and RUFH.
_RESUMABLE = frozenset({"DELETE", "HEAD", "PATCH", "POST"})
ALLOWED_HEADERS = (
    "Accept, Authorization, Content-Digest, Content-Disposition, Content-Type, Idempotency-Key, If-Match, "
    "If-Modified-Since, If-None-Match, If-Range, If-Unmodified-Since, Last-Event-ID, Range, Repr-Digest, "
    "Tus-Resumable, Upload-Checksum, Upload-Complete, Upload-Concat, Upload-Defer-Length, "
    "Upload-Draft-Interop-Version, Upload-Length, Upload-Metadata, Upload-Offset"
)
EXPOSED_HEADERS = (
    "Accept-Patch, Accept-Post, Accept-Ranges, Allow, Content-Disposition, Content-Length, Content-Range, ETag, "
    "Last-Modified, Location, RateLimit, RateLimit-Policy, Retry-After, Tus-Checksum-Algorithm, Tus-Extension, "
    "Tus-Max-Size, Tus-Resumable, Tus-Version, Upload-Complete, Upload-Concat, Upload-Draft-Interop-Version, "
    "Upload-Expires, Upload-Length, Upload-Limit, Upload-Metadata, Upload-Offset, WWW-Authenticate, X-Request-Id"
)


class Cors:
    """The pages of ``origins``: exact ones, separated by commas, or ``*``; none if empty. Raises ValueError."""

    def __init__(self, origins: str) -> None:
        self._origins = frozenset(origin.strip() for origin in origins.split(",") if origin.strip())
        for origin in self._origins - {_ANY}:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"gateway_cors_origins: {origin!r} is not scheme://host or scheme://host:port")

    def preflight(self, request: web.Request) -> web.Response | None:
        """The answer to a preflight for a path that there is; None for every other request."""
        asked = request.headers
        if not self._origins or request.method != "OPTIONS" or "Origin" not in asked:
            return None
        if "Access-Control-Request-Method" not in asked:
            return None  # OPTIONS as tus has it
        methods = _methods(request)
        if methods is None:
            return None
        more = _hints(asked.get("Access-Control-Request-Headers", ""))
        headers = {"Allow": ", ".join(sorted({*methods, "OPTIONS"}))}
        if self._allowed(asked.getall("Origin")):
            headers |= {
                "Access-Control-Allow-Methods": ", ".join(sorted(methods)),
                "Access-Control-Allow-Headers": ", ".join([ALLOWED_HEADERS, *more]),
                "Access-Control-Max-Age": str(_MAX_AGE_SECONDS),
            }
        return web.Response(status=204, headers=headers)

    def add_to(self, response: web.StreamResponse, origins: Sequence[str]) -> None:
        """Lets the page that asked read ``response``, a problem too. ``origins``: the request's Origin fields."""
        if not self._origins:
            return
        if _ANY not in self._origins:  # so that a cache keeps the answers to different pages apart
            vary = response.headers.get("Vary")
            response.headers["Vary"] = f"{vary}, Origin" if vary else "Origin"
        if allowed := self._allowed(origins):
            response.headers["Access-Control-Allow-Origin"] = allowed
            response.headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS

    def _allowed(self, origins: Sequence[str]) -> str:
        if _ANY in self._origins:
            return _ANY
        return origins[0] if len(origins) == 1 and origins[0] in self._origins else ""


def origins_in(head: bytes) -> list[str]:
    """The Origin fields of a head that is not read any further, or that cannot be. Whatever it says, the answer
    may be read by the named sites alone."""
    return [found.decode("ascii") for found in _ORIGIN_FIELD.findall(head)]


def _methods(request: web.Request) -> frozenset[str] | None:
    """What the path takes; None if there is no such path."""
    error = request.match_info.http_exception
    if isinstance(error, web.HTTPMethodNotAllowed):
        return frozenset(error.allowed_methods)
    return _RESUMABLE if error is None else None


def _hints(names: str) -> Iterator[str]:
    """The page's own X- headers: whatever they say, they permit nothing."""
    return (name for name in map(str.strip, names.lower().split(",")) if _HINT.fullmatch(name))
