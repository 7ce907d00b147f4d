"""Interim responses, written before the answer proper: 100 (Continue) and 104 (Upload Resumption Supported).

aiohttp answers ``Expect`` before any of our code runs: a body without a token, or of any length, would be asked
for, and an unknown expectation refused in aiohttp's own text. So the field is kept from it. 100 is what the first
read of a body sends, thus after all that is refused without one; a client that was refused first need not send its
body, so its connection ends: what comes next on it could be either (RFC 9110 section 10.1.1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import HttpVersion11, web
from aiohttp.http import RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy

from services.gateway.problems import Problem

_CONTINUE = "100-continue"
_EXPECT = web.RequestKey("expect", str)

RequestFactory = Callable[..., web.BaseRequest]


def keeping_expect(make: RequestFactory) -> RequestFactory:
    """``make``, aiohttp's factory of requests, for requests whose Expect is ours to answer."""

    def new(message: RawRequestMessage, *rest: Any) -> web.BaseRequest:
        if "Expect" not in message.headers:
            return make(message, *rest)
        headers = CIMultiDict(message.headers)
        expected = ",".join(headers.popall("Expect")).lower()
        request = make(message._replace(headers=CIMultiDictProxy(headers)), *rest)
        if request.version >= HttpVersion11:  # older clients cannot expect anything
            request[_EXPECT] = expected
        return request

    return new


def check_expect(request: web.Request) -> None:
    """Raises Problem 417 for an expectation that cannot be met."""
    if _EXPECT not in request:
        return
    expected = {member.strip() for member in request[_EXPECT].split(",")}
    if expected - {_CONTINUE, ""}:
        raise Problem(417, "UNKNOWN_EXPECTATION", f"no other expectation than {_CONTINUE} is met")


def waits_for_100(request: web.Request) -> bool:
    """Whether the client may be holding its body back."""
    return _CONTINUE in request.get(_EXPECT, "") and not request.content.is_eof()


async def send_100(request: web.Request) -> None:
    """Asks for the body, if the client waits for that."""
    if waits_for_100(request):
        del request[_EXPECT]
        await _send(request, "100 Continue", {})


async def send_104(request: web.Request, headers: Mapping[str, str]) -> None:
    """Writes a 104. Nothing goes to HTTP/1.0 clients: they know no interim responses (RFC 9110 section 15.2)."""
    if request.version >= HttpVersion11:
        await _send(request, "104 Upload Resumption Supported", headers)


async def _send(request: web.Request, status: str, headers: Mapping[str, str]) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer = request.writer
    await writer.write(f"HTTP/1.1 {status}\r\n{lines}\r\n".encode("ascii"))
    writer.output_size = 0  # the answer has not begun
