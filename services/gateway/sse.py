"""Server-streaming rpcs over HTTP: Server-Sent Events (WHATWG HTML, section 9.2), or JSON lines on request.

An event's id is a digest of its data, so a client that comes back with ``Last-Event-ID`` is spared the state
that it has already. A stream that is over says so with an ``end`` event: whoever reads it must close, because
EventSource takes a plain end for a lost connection and comes back. The end has an id too, that of the last state
and ``.end``; who comes back with it while that is still the state is told 204, which ends an EventSource for good.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from aiohttp import web
from google.protobuf.message import Message

from services.common.status import from_rpc_error
from services.gateway import encode, problems
from services.gateway.drain import Drain
from services.gateway.edge import REQUEST_ID
from services.gateway.problems import Problem

EVENTS, LINES = "text/event-stream", "application/x-ndjson"
_RETRY_MILLISECONDS = 2000
_END = ".end"

log = logging.getLogger(__name__)


def negotiate(accept: str) -> str:
    """The media type for an Accept header. Raises Problem 406."""
    if not accept.strip():
        return EVENTS
    given = [part.partition(";") for part in accept.lower().split(",")]
    wanted = {name.strip(): _quality(parameters) for name, _, parameters in given}
    # The range that names a type most closely counts (RFC 9110 section 12.5.1).
    quality = {
        kind: next((wanted[name] for name in (kind, f"{kind.split('/')[0]}/*", "*/*") if name in wanted), 0.0)
        for kind in (EVENTS, LINES)
    }
    best = max(quality, key=lambda kind: quality[kind])  # the first of equals
    if not quality[best]:
        raise Problem(406, "NOT_ACCEPTABLE", f"this stream comes as {EVENTS} or {LINES}")
    return best


def _quality(parameters: str) -> float:
    """The weight among the parameters of a media range, 1 where there is none or none that is a number."""
    found = re.search(r"(?:^|;)\s*q\s*=\s*([01](?:\.\d{0,3})?)\s*(?:;|$)", parameters)
    return float(found[1]) if found else 1.0


async def stream(
    request: web.Request,
    start: Callable[[], Any],
    render: Callable[[Message], Any],
    *,
    drain: Drain,
    heartbeat: float,
    pauses: Sequence[float] = (),
) -> web.StreamResponse:
    """Sends what the call that ``start`` makes yields until it ends, the client leaves or the gateway drains, and
    cancels it. While its service is away it is made again after each of the ``pauses``, in seconds.

    An error before the first message is an ordinary answer (raises Problem); a later one is an event.
    """
    kind = negotiate(",".join(request.headers.getall("Accept", [])))
    try:
        call, first = await _begun(start, pauses)
    except grpc.aio.AioRpcError as error:
        raise problems.from_error(from_rpc_error(error)) from error
    try:
        state = b"" if first is grpc.aio.EOF else encode.dumps(render(first))
        if kind == EVENTS and request.headers.get("Last-Event-ID") == _id(state) + _END:
            return web.Response(status=204)
        response = web.StreamResponse(
            headers={"Content-Type": kind, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        await response.prepare(request)
        writer = _Events(response, request) if kind == EVENTS else _Lines(response)
        await writer.begin()
        if first is grpc.aio.EOF:
            await writer.end()
        else:
            await writer.data(state)
            await _follow(request, call, render, writer, drain, heartbeat)
        return response
    finally:
        call.cancel()


async def _begun(start: Callable[[], Any], pauses: Sequence[float]) -> tuple[Any, Any]:
    """The call, and its first message, or EOF if it ended without one. Raises AioRpcError."""
    for pause in (*pauses, None):
        call = start()
        try:
            return call, await call.read()
        except grpc.aio.AioRpcError as error:
            if pause is None or error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        except asyncio.CancelledError:
            call.cancel()
            raise
        await asyncio.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


async def _follow(
    request: web.Request,
    call: Any,
    render: Callable[[Message], Any],
    writer: _Events | _Lines,
    drain: Drain,
    heartbeat: float,
) -> None:
    """The messages after the first, a sign of life whenever ``heartbeat`` seconds passed without one, the end."""
    upcoming = _upcoming(call, drain)
    try:
        while True:
            await asyncio.wait({upcoming}, timeout=heartbeat)
            if drain.draining.is_set():
                return  # without an end: the client comes back, to another gateway
            if not upcoming.done():
                await writer.beat()
                continue
            message = upcoming.result()
            if message is grpc.aio.EOF:
                await writer.end()
                return
            await writer.data(encode.dumps(render(message)))
            upcoming = _upcoming(call, drain)
    except grpc.aio.AioRpcError as error:
        problem = problems.from_error(from_rpc_error(error))
        document = problem.document(instance=request.path, request_id=request[REQUEST_ID])
        await writer.error(encode.dumps(document))
    finally:
        upcoming.cancel()
        await asyncio.gather(upcoming, return_exceptions=True)


def _upcoming(call: Any, drain: Drain) -> asyncio.Future[Any]:
    """The next message. A task, since a read that is cancelled ends the call."""
    reading: asyncio.Future[Any] = asyncio.ensure_future(call.read())
    drain.cancels(reading)
    return reading


def _id(state: bytes) -> str:
    return hashlib.sha256(state).hexdigest()[:16] if state else ""


class _Events:
    """Server-Sent Events."""

    def __init__(self, response: web.StreamResponse, request: web.Request) -> None:
        self._response = response
        self._last_id = request.headers.get("Last-Event-ID", "").removesuffix(_END)

    async def begin(self) -> None:
        await self._response.write(f"retry: {_RETRY_MILLISECONDS}\n\n".encode())

    async def data(self, data: bytes) -> None:
        id_ = _id(data)
        if id_ != self._last_id:
            self._last_id = id_
            await self._response.write(b"id: %s\ndata: %s\n\n" % (id_.encode(), data))

    async def beat(self) -> None:
        await self._response.write(b": \n\n")

    async def error(self, problem: bytes) -> None:
        await self._response.write(b"event: error\ndata: %s\n\n" % problem)

    async def end(self) -> None:
        await self._response.write(b"id: %s\nevent: end\ndata: {}\n\n" % (self._last_id + _END).encode())


class _Lines:
    """JSON lines: ``{"result": …}`` or, at last, ``{"error": problem}``; blank lines are heartbeats."""

    def __init__(self, response: web.StreamResponse) -> None:
        self._response = response

    async def begin(self) -> None:
        """Lines need no beginning."""

    async def data(self, data: bytes) -> None:
        await self._response.write(b'{"result":%s}\n' % data)

    async def beat(self) -> None:
        await self._response.write(b"\n")

    async def error(self, problem: bytes) -> None:
        await self._response.write(b'{"error":%s}\n' % problem)

    async def end(self) -> None:
        """The end of the body is the end."""
