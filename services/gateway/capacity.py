"""Who gets a connection: as many as the gateway has room for; the next is told so and let go, not left to hang."""

from __future__ import annotations

import asyncio
import logging
import uuid

from aiohttp import web

from services.gateway.edge import HEADERS
from services.gateway.problems import Problem

_RETRY_SECONDS = 2
_REFUSED_SECONDS = 2.0
_MOST_REFUSED = 128
_WARN_SECONDS = 60.0

log = logging.getLogger(__name__)


class Capacity:
    """What one server's connections share: how many there may be, and how long a head may take."""

    def __init__(self, *, connections: int, head_seconds: float) -> None:
        self.connections = connections
        self.head_seconds = head_seconds
        self.refused: set[_Refused] = set()
        self._warned = -_WARN_SECONDS

    def refuse(self, transport: asyncio.Transport) -> None:
        """Answers a connection that is one too many, without making it one that serves requests."""
        now = asyncio.get_running_loop().time()
        if now - self._warned >= _WARN_SECONDS:
            self._warned = now
            log.warning("there are %d connections; more are refused", self.connections)
        if len(self.refused) >= _MOST_REFUSED:
            transport.abort()
            return
        protocol = _Refused(self.refused)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)

    def close(self) -> None:
        """Lets go of those that are being refused."""
        for refused in list(self.refused):
            refused.abort()


class _Refused(asyncio.Protocol):
    """A connection too many: 503 to whatever it asks, and the end.

    The answer waits for the first bytes, since clients take one that comes before they asked for a fault; and the
    end for the client's, else the kernel would reset the connection over what is unread and lose the answer.
    """

    def __init__(self, others: set[_Refused]) -> None:
        self._others = others
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._others.add(self)
        self._timer = asyncio.get_running_loop().call_later(_REFUSED_SECONDS, self.abort)

    def data_received(self, data: bytes) -> None:
        if self._answered or self._transport is None:
            return
        self._answered = True
        self._transport.write(_too_many())
        self._transport.write_eof()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._others.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def abort(self) -> None:
        """Ends it now."""
        if self._transport is not None:
            self._transport.abort()


def _too_many() -> bytes:
    problem = Problem(
        503,
        "TOO_MANY_CONNECTIONS",
        "there are too many connections; try again",
        headers={"Retry-After": str(_RETRY_SECONDS)},
    )
    response = closing(problem, "/")
    body = response.body
    assert isinstance(body, bytes)
    fields = "".join(f"{name}: {value}\r\n" for name, value in response.headers.items())
    head = f"HTTP/1.1 {response.status} {response.reason}\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def closing(problem: Problem, path: str) -> web.Response:
    """An answer behind which the connection ends."""
    request_id = uuid.uuid4().hex
    response = problem.response(instance=path, request_id=request_id)
    ends = {"Connection": "close", "Cache-Control": "no-store", "X-Request-Id": request_id}
    response.headers.update(HEADERS | ends)
    return response
