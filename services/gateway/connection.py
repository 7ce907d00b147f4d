"""A client's connection: what is no HTTP request that we can read is refused like everything else, by a problem.

aiohttp reads the heads of requests before any of our code runs, and answers those that it cannot read with its own
text and 400. Its log line would quote the head, which may hold a token: there is none but the access log's.

It also waits for the rest of a head as long as for the next request. Here a head that has begun has a time of its
own (408), whatever the connection did before, so that a client that drips its heads holds nothing for long. A body
is bounded where it is read, see :mod:`services.gateway.bodies`; an answer by what its client takes of it.
"""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from services.gateway import cors, heads, problems
from services.gateway.capacity import Capacity
from services.gateway.drain import Drain
from services.gateway.problems import Problem

MAX_LINE_BYTES = 8 << 10
MAX_FIELD_BYTES = 16 << 10
MAX_FIELDS = 128


class Connection(web.RequestHandler):
    """Serves one connection for ``server`` and tells ``drain`` of it; ``options`` as for aiohttp's."""

    __slots__ = ("_answered", "_capacity", "_drain", "_head_begun", "_head_bytes", "_head_timer", "_origins")

    def __init__(self, server: web.Server, capacity: Capacity, drain: Drain, **options: object) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_FIELD_BYTES,
            max_headers=MAX_FIELDS,
            **options,  # type: ignore[arg-type]  # aiohttp's own, as the caller knows them
        )
        self._drain = drain
        self._answered = False
        self._capacity = capacity
        self._head_begun = False
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._origins: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Serves the connection, or refuses it when there are too many."""
        assert isinstance(transport, asyncio.Transport)
        if not self._capacity.enter(self, transport):
            return
        super().connection_made(transport)
        self._drain.opened(self)
        self._time_head()

    def data_received(self, data: bytes) -> None:
        """Starts and stops the clock of a head, and ends a body whose framing breaks."""
        self._capacity.stirs(self)
        super().data_received(data)
        if self._messages and isinstance(self._messages[-1][0], _ErrInfo):
            self._find_origin(data)
            self._end_body()
        if not self._is_idle():  # a whole head came, or an earlier request is still being answered
            self._stop_timing()
        elif data.strip(b"\r\n"):  # empty lines may stand before a request (RFC 9112 section 2.2)
            self._find_origin(data)
            self._head_begun = True
            self._head_bytes += len(data)
            if self._head_bytes > heads.MAX_HEAD_BYTES:
                self._refuse(heads.too_large())
            elif self._head_timer is None:
                self._time_head()

    def _find_origin(self, data: bytes) -> None:
        """For the answer to a head that aiohttp says nothing of. One that packets cut in two is not found."""
        if not self._head_begun:
            self._origins.clear()
        self._origins += cors.origins_in(data)

    def _end_body(self) -> None:
        """Ends a body that cannot be read on: aiohttp would let its reader wait, and answer the rest."""
        if len(self._messages) > 1:
            body = self._messages[-2][1]
        elif self._current_request is not None:
            body = self._current_request.content
        else:
            return  # it is a head that could not be read
        if not body.is_eof():
            body.set_exception(web.RequestPayloadError("the framing is broken"))
            body.feed_eof()  # for whoever would read on to be rid of it
            self._messages.pop()
            self.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is closed, by whomever."""
        self._stop_timing()
        super().connection_lost(exc)
        self._capacity.left(self)
        self._drain.closed(self)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Sends what is left of an answer."""
        sent = await super().finish_response(request, resp, start_time)
        self._answered = True
        if not self._messages:
            self._capacity.idles(self)
        return sent

    def close_if_idle(self, *, also_new: bool) -> bool:
        """Closes it if nothing is being answered; one without a request so far only with ``also_new``. Whether it
        does."""
        if self._is_idle() and (self._answered or also_new):
            self.force_close()
            return True
        return False

    def _time_head(self) -> None:
        self._head_timer = self._loop.call_later(self._capacity.head_seconds, self._head_is_late)

    def _stop_timing(self) -> None:
        self._head_begun, self._head_bytes = False, 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _is_idle(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self._is_idle():
            return
        if not self._head_begun:
            # To a client that has asked nothing an answer would be one to what it asks next: browsers open
            # connections that they may need.
            self.force_close()
            return
        seconds = self._capacity.head_seconds
        self._refuse(Problem(408, "HEAD_TIMEOUT", f"the head did not arrive within {seconds:g} seconds"))

    def _refuse(self, problem: Problem) -> None:
        """Answers what has come of a head, like what cannot be read."""
        self._stop_timing()
        self._messages.append((_ErrInfo(problem.status, problem, problem.detail), EMPTY_PAYLOAD))
        assert self._waiter is not None, "it is idle"
        self._waiter.set_result(None)

    def _process_keepalive(self) -> None:
        """The end of an idle time. A head that has begun by then is timed by itself."""
        if self._head_begun:
            self._keepalive_handle = None
        else:
            super()._process_keepalive()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what could not be read; the connection closes behind it."""
        if request.writer.output_size > 0:
            raise ConnectionError("half an answer is out already")
        if status >= 500:
            self.log_exception("unhandled error", exc_info=exc)
        response = self._capacity.edge.closing(_problem(status, exc), request.path, self._origins)
        response.force_close()
        return response


def _problem(status: int, error: BaseException | None) -> Problem:
    if isinstance(error, Problem):
        return error
    if status >= 500:
        return problems.internal()
    if isinstance(error, BadHttpMessage) and error.args == ("Too many headers received",):
        return Problem(431, "HEADERS_TOO_LARGE", f"a request may have at most {MAX_FIELDS} headers")
    if isinstance(error, LineTooLong):
        limit = error.args[1]
        if limit == MAX_LINE_BYTES:
            return Problem(414, "URI_TOO_LONG", f"the request line may have at most {limit} bytes")
        return Problem(431, "HEADERS_TOO_LARGE", f"a header may have at most {limit} bytes")
    return Problem(400, "MALFORMED_REQUEST", "this is no HTTP request")
