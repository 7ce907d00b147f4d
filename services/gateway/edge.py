"""What happens around every request: request id, bounds, problems for errors, security headers, one log line."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import socket
import sys
import time
import weakref
from collections.abc import Sequence
from urllib.parse import quote, unquote

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger
from aiohttp.typedefs import Handler

from services.common import context, tracing
from services.common.errors import ServiceError
from services.gateway import heads, interim, problems
from services.gateway.clients import Clients
from services.gateway.config import GatewaySettings
from services.gateway.cors import Cors
from services.gateway.drain import Drain
from services.gateway.metering import BROKEN_OFF, CUT_OFF, RouteMetrics
from services.gateway.problems import Problem
from services.gateway.traces import TRACE_ID

log = logging.getLogger(__name__)

REQUEST_ID = web.RequestKey("request_id", str)
CLIENT = web.RequestKey("client", object)  # Address | None
_RESPONSE = web.RequestKey("response", web.StreamResponse)
_COUNTED_AS = web.RequestKey("counted_as", int)  # instead of the status that went out
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
# Parameters that are permissions: whoever reads them in a log could use them.
_SECRET = re.compile(
    r"((?:[a-z_-]*token|signature|policy|authorization|jwt|x-amz-[a-z-]+)\s*=)[^&;]+", re.ASCII | re.IGNORECASE
)
_MAX_ENCODINGS = 3  # of what was encoded once more on its way
HEADERS = {
    "Server": "twotruths",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
}


class Edge:
    """The outermost middleware, and what every answer carries."""

    def __init__(self, settings: GatewaySettings, drain: Drain, metrics: RouteMetrics) -> None:
        """Raises ValueError for settings that name no networks or origins."""
        self.clients = Clients(settings.gateway_trusted_proxies)
        self._drain = drain
        self._metrics = metrics
        self._cors = Cors(settings.gateway_cors_origins)
        self._headers = HEADERS | ({"Strict-Transport-Security": settings.hsts} if settings.hsts else {})
        self._max_path = settings.gateway_max_path_bytes
        self._write_timeout = settings.gateway_write_timeout_seconds
        self._limited: weakref.WeakSet[asyncio.BaseTransport] = weakref.WeakSet()

    def install(self, app: web.Application) -> None:
        """Puts itself around every handler of ``app``."""

        @web.middleware
        async def around(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._around(request, handler)

        app.middlewares.append(around)
        app.on_response_prepare.append(self._prepare)

    async def _around(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answers every request, whatever the handler does."""
        started = time.monotonic()
        given = request.headers.get("X-Request-Id", "")
        request_id = request[REQUEST_ID] = given if _SANE_ID.fullmatch(given) else _new_id()
        request[CLIENT] = self.clients.address(request)
        with context.serving(context.CallContext(None, request_id)):
            try:
                heads.check(request)
                if len(request.raw_path) > self._max_path:
                    raise Problem(414, "URI_TOO_LONG", f"the path may have at most {self._max_path} bytes")
                interim.check_expect(request)
                return self._cors.preflight(request) or await handler(request)
            except asyncio.CancelledError:  # its access is not logged
                begun = request.get(_RESPONSE)
                sent = (begun.body_length if begun is not None else 0) or request.writer.output_size
                self._metrics.count(request, CUT_OFF, time.monotonic() - started, sent)
                raise
            except Exception as error:
                return self._answer(request, error)

    def _answer(self, request: web.Request, error: Exception) -> web.StreamResponse:
        started: web.StreamResponse | None = request.get(_RESPONSE)
        if request.method == "OPTIONS" and isinstance(error, web.HTTPMethodNotAllowed):
            allowed = ", ".join(sorted({*error.allowed_methods, "OPTIONS"}))
            return web.Response(status=204, headers={"Allow": allowed})
        if request.method == "OPTIONS" and request.raw_path == "*":  # the server as a whole: nothing to say of it
            return web.Response(status=204)
        if started is None:
            problem = _problem(request, error)
            return problem.response(instance=request.path, request_id=request[REQUEST_ID])
        # Half an answer is out: only a broken connection can tell the client that the rest will not come.
        request[_COUNTED_AS] = CUT_OFF
        if not isinstance(error, ConnectionError | TimeoutError):
            log.error("an answer broke off", exc_info=error, extra={"data": {"path": redacted(request.raw_path)}})
            request[_COUNTED_AS] = BROKEN_OFF
            tracing.current().fail("broken_off")
        if request.transport is not None:
            request.transport.abort()
        return started

    async def _prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        request[_RESPONSE] = response
        for name, value in self._headers.items():
            response.headers.setdefault(name, value)
        response.headers.setdefault("Cache-Control", "no-store")
        self._cors.add_to(response, request.headers.getall("Origin", []))
        response.headers["X-Request-Id"] = request.get(REQUEST_ID, "")
        if self._drain.draining.is_set() or interim.waits_for_100(request) or heads.is_faulty(request):
            response.force_close()
            response.headers["Connection"] = "close"  # aiohttp has written its own already
        self._limit_silence(request)

    def closing(self, problem: Problem, path: str, origins: Sequence[str]) -> web.Response:
        """The answer to what never became a request; the connection ends behind it. ``origins``: its Origin
        fields, as far as they could be read."""
        request_id = _new_id()
        response = problem.response(instance=path, request_id=request_id)
        ends = {"Connection": "close", "Cache-Control": "no-store", "X-Request-Id": request_id}
        response.headers.update(self._headers | ends)
        self._cors.add_to(response, origins)
        return response

    def _limit_silence(self, request: web.Request) -> None:
        """Lets the kernel cut off a client that takes nothing, see tcp(7): we would wait for ever."""
        transport = request.transport
        if transport is None or transport in self._limited:
            return
        self._limited.add(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in {socket.AF_INET, socket.AF_INET6} and sys.platform == "linux":
            milliseconds = round(self._write_timeout * 1000)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


def _new_id() -> str:
    return f"{random.getrandbits(128):032x}"  # no secret, and asking the kernel for each costs a percent


def _problem(request: web.Request, error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, ServiceError):
        return problems.from_error(error)
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return Problem(405, "METHOD_NOT_ALLOWED", f"this path takes {allowed}", headers={"Allow": allowed})
    if isinstance(error, web.HTTPNotFound):
        return Problem(404, "ROUTE_NOT_FOUND", "there is no such path")
    if isinstance(error, web.HTTPException) and error.status < 500:
        return Problem(error.status, error.reason.upper().replace(" ", "_"), error.reason)
    data = {"path": redacted(request.raw_path), "method": request.method}
    log.error("unhandled error", exc_info=error, extra={"data": data})
    return problems.internal()


class AccessLogger(AbstractAccessLogger):
    """One line for each request, without the parameters that are permissions; and it is counted."""

    def __init__(self, logger: logging.Logger, log_format: str, metrics: RouteMetrics) -> None:
        super().__init__(logger, log_format)
        self._metrics = metrics

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Counts it and writes the line."""
        self._metrics.count(request, request.get(_COUNTED_AS, response.status), time, response.body_length)
        data = {
            "method": request.method,
            "path": redacted(request.raw_path),
            "status": response.status,
            "bytes": response.body_length,
            "ms": round(time * 1000, 1),
            "request_id": request.get(REQUEST_ID, ""),
            "client": str(request.get(CLIENT) or request.remote or ""),
        }
        if tracing.on() and (trace_id := request.get(TRACE_ID)):
            data["trace_id"] = trace_id
        self.logger.info("request", extra={"data": data})


def redacted(raw_path: str) -> str:
    """A path with query whose secrets are hidden, also where the query is part of the path: clients that encode
    its question mark send it so."""
    if "=" not in raw_path and "%" not in raw_path:
        return raw_path
    plain = raw_path
    for _ in range(_MAX_ENCODINGS):
        plain = unquote(plain)
    hidden = _SECRET.sub(r"\1***", plain)
    return raw_path if hidden == plain else quote(hidden, safe="/?&;=*:,")
