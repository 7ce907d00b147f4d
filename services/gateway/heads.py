"""Heads of requests that aiohttp reads but HTTP/1.1 says to refuse: what another server on the way may read
differently must not be guessed at. The connection ends behind such a request.
"""

from __future__ import annotations

import re
from itertools import chain

from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.http import RawRequestMessage
from aiohttp.web_protocol import ERROR

from services.gateway.interim import RequestFactory
from services.gateway.problems import Problem

MAX_HEAD_BYTES = 64 << 10
_VERSIONS = (HttpVersion11, HttpVersion10)
_FAULT = web.RequestKey("fault", Problem)
# uri-host [ ":" port ], RFC 9112 section 3.2 and RFC 3986 section 3.2.2
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|([A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(:[0-9]*)?")


def judging(make: RequestFactory) -> RequestFactory:
    """``make``, aiohttp's factory of requests, for requests that remember what is wrong with their heads."""

    def new(message: RawRequestMessage, *rest: object) -> web.BaseRequest:
        fault = None if message is ERROR else _fault(message)
        if fault is None:
            return make(message, *rest)
        request = make(message._replace(version=HttpVersion11), *rest)  # else the answer would have its version
        request[_FAULT] = fault
        return request

    return new


def is_faulty(request: web.Request) -> bool:
    """Whether nothing else of this connection should be believed."""
    return _FAULT in request


def check(request: web.Request) -> None:
    """Raises Problem for a head that is to be refused."""
    if (fault := request.get(_FAULT)) is not None:
        raise fault


def too_large() -> Problem:
    """431 for a head as a whole."""
    return Problem(431, "HEADERS_TOO_LARGE", f"the head of a request may have at most {MAX_HEAD_BYTES} bytes")


def _fault(message: RawRequestMessage) -> Problem | None:
    if message.version not in _VERSIONS:
        return Problem(505, "VERSION_NOT_SUPPORTED", "HTTP/1.1 and HTTP/1.0 are understood")
    if message.method == "CONNECT":
        return Problem(501, "METHOD_NOT_SUPPORTED", "this is no proxy")
    if "#" in message.path:
        return _malformed("a fragment is not sent")
    for host in message.headers.getall("Host", ()):
        if not _HOST.fullmatch(host):
            return _malformed("Host is no host")
    if sum(map(len, chain.from_iterable(message.raw_headers))) > MAX_HEAD_BYTES:
        return too_large()
    return _framing_fault(message) if "Transfer-Encoding" in message.headers else None


def _framing_fault(message: RawRequestMessage) -> Problem | None:
    if message.version == HttpVersion10:  # RFC 9112 section 6.1
        return _malformed("HTTP/1.0 has no Transfer-Encoding")
    if message.headers["Transfer-Encoding"].lower() != "chunked":
        return Problem(501, "UNKNOWN_TRANSFER_CODING", "no other transfer coding than chunked is understood")
    return None


def _malformed(detail: str) -> Problem:
    return Problem(400, "MALFORMED_REQUEST", detail)
