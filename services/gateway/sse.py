"""Server-streaming rpcs over HTTP: Server-Sent Events (WHATWG HTML, section 9.2), or JSON lines on request.

An event's id is a digest of its data, so a client that comes back with ``Last-Event-ID`` is spared the state
that it has already. A stream that is over says so with an ``end`` event: whoever reads it must close, because
EventSource takes a plain end for a lost connection and comes back. The end has an id too, that of the last state
and ``.end``; who comes back with it while that is still the state is told 204, which ends an EventSource for good.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
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
    request: web.Request, call: Any, render: Callable[[Message], Any], *, drain: Drain, heartbeat: float
) -> web.StreamResponse:
    """Sends what ``call`` yields until it ends, the client leaves or the gateway drains. Cancels the call.

    An error before the first message is an ordinary answer (raises Problem); a later one is an event.
    """
    try:
        kind = negotiate(",".join(request.headers.getall("Accept", [])))
        messages = aiter(call)
        try:
            first = await anext(messages, None)
        except grpc.aio.AioRpcError as error:
            raise problems.from_error(from_rpc_error(error)) from error
        state = b"" if first is None else encode.dumps(render(first))
        if kind == EVENTS and request.headers.get("Last-Event-ID") == _id(state) + _END:
            return web.Response(status=204)
        response = web.StreamResponse(
            headers={"Content-Type": kind, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        await response.prepare(request)
        writer = _Events(response, request) if kind == EVENTS else _Lines(response)
        await writer.begin()
        if first is None:
            await writer.end()
        else:
            await writer.data(state)
            changes = _changes(messages, drain=drain, heartbeat=heartbeat)
            async with contextlib.aclosing(changes):
                await _follow(request, changes, render, writer)
        return response
    finally:
        call.cancel()


async def _follow(
    request: web.Request,
    changes: AsyncIterator[Message | None],
    render: Callable[[Message], Any],
    writer: _Events | _Lines,
) -> None:
    try:
        async for message in changes:
            if message is None:
                await writer.beat()
            else:
                await writer.data(encode.dumps(render(message)))
    except grpc.aio.AioRpcError as error:
        problem = problems.from_error(from_rpc_error(error))
        document = problem.document(instance=request.path, request_id=request[REQUEST_ID])
        await writer.error(encode.dumps(document))
    except _Draining:
        return  # without an end: the client comes back, to another gateway
    else:
        await writer.end()


class _Draining(Exception):
    """The gateway is on its way out."""


async def _changes(
    messages: AsyncIterator[Message], *, drain: Drain, heartbeat: float
) -> AsyncGenerator[Message | None, None]:
    """The messages, and None whenever ``heartbeat`` seconds passed without one. Raises _Draining."""
    draining = asyncio.ensure_future(drain.draining.wait())
    upcoming = asyncio.ensure_future(_next(messages))
    try:
        while True:
            waiting: set[asyncio.Future[Any]] = {upcoming, draining}
            await asyncio.wait(waiting, timeout=heartbeat, return_when=asyncio.FIRST_COMPLETED)
            if draining.done():
                raise _Draining
            if not upcoming.done():
                yield None
                continue
            message = upcoming.result()
            if message is None:
                return
            yield message
            upcoming = asyncio.ensure_future(_next(messages))
    finally:
        for task in (upcoming, draining):
            task.cancel()
        await asyncio.gather(upcoming, draining, return_exceptions=True)


async def _next(messages: AsyncIterator[Message]) -> Message | None:
    return await anext(messages, None)


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
