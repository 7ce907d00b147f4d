"""A client's connection: what is no HTTP request that we can read is refused like everything else, by a problem.

aiohttp reads the heads of requests before any of our code runs, and answers those that it cannot read with its own
text and 400. Its log line would quote the head, which may hold a token: there is none but the access log's.
"""

from __future__ import annotations

import asyncio
import uuid

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from services.gateway import problems
from services.gateway.drain import Drain
from services.gateway.edge import HEADERS
from services.gateway.problems import Problem

MAX_LINE_BYTES = 8 << 10
MAX_FIELD_BYTES = 16 << 10


class Connection(web.RequestHandler):
    """Serves one connection for ``server`` and tells ``drain`` of it; ``options`` as for aiohttp's."""

    __slots__ = ("_answered", "_drain")

    def __init__(self, server: web.Server, drain: Drain, **options: object) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_FIELD_BYTES,
            **options,  # type: ignore[arg-type]  # aiohttp's own, as the caller knows them
        )
        self._drain = drain
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody connected."""
        super().connection_made(transport)
        self._drain.opened(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is closed, by whomever."""
        super().connection_lost(exc)
        self._drain.closed(self)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Sends what is left of an answer."""
        sent = await super().finish_response(request, resp, start_time)
        self._answered = True
        return sent

    def close_if_idle(self, *, also_new: bool) -> None:
        """Closes it if nothing is being answered; one without a request so far only with ``also_new``."""
        if self._is_idle() and (self._answered or also_new):
            self.force_close()

    def _is_idle(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

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
        request_id = uuid.uuid4().hex
        response = _problem(status, exc).response(instance=request.path, request_id=request_id)
        response.headers.update(HEADERS | {"X-Request-Id": request_id})
        response.force_close()
        return response


def _problem(status: int, error: BaseException | None) -> Problem:
    if status >= 500:
        return problems.internal()
    if isinstance(error, LineTooLong):
        limit = error.args[1]
        if limit == MAX_LINE_BYTES:
            return Problem(414, "URI_TOO_LONG", f"the request line may have at most {limit} bytes")
        return Problem(431, "HEADERS_TOO_LARGE", f"a header may have at most {limit} bytes")
    return Problem(400, "MALFORMED_REQUEST", "this is no HTTP request")
