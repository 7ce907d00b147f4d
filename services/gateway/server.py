"""The HTTP server: listens, serves and drains, in the shape that :mod:`services.common.lifecycle` runs."""

from __future__ import annotations

import functools
import logging
import resource

from aiohttp import web

from services.gateway.capacity import Capacity
from services.gateway.config import GatewaySettings
from services.gateway.connection import Connection
from services.gateway.drain import Drain
from services.gateway.edge import AccessLogger, Edge
from services.gateway.heads import judging
from services.gateway.interim import keeping_expect
from services.gateway.listening import Listener, listen
from services.gateway.member import Member
from services.gateway.metering import RouteMetrics

_READ_BUFFER = 256 << 10
_FILES_PER_CONNECTION = 2
"""A download holds its socket and its file."""
_OTHER_FILES = 256
"""Listening, calls to services, connections to the store, files that stay open between requests."""

log = logging.getLogger(__name__)


class HttpServer:
    """Serves ``app`` at ``settings.gateway_listen``, or as ``member`` of those that do; :attr:`port` tells where
    once started."""

    def __init__(
        self,
        app: web.Application,
        settings: GatewaySettings,
        edge: Edge,
        drain: Drain,
        metrics: RouteMetrics,
        member: Member | None = None,
    ) -> None:
        self.port = 0
        self._edge = edge
        self._drain = drain
        self._member = member
        self._address = settings.gateway_listen
        self._most = settings.gateway_max_connections
        self._most_of_one = settings.gateway_max_connections_address
        self._head_seconds = settings.gateway_head_seconds
        self._capacity: Capacity | None = None
        self._listener: Listener | None = None
        # A client that goes away cancels its handler: downloads and event streams stop at once.
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0)
        self._options = {
            "logger": log,
            "access_log_class": functools.partial(AccessLogger, metrics=metrics),
            "keepalive_timeout": settings.gateway_keepalive_seconds,
            # Compressed bodies are refused (415): a bomb would be unpacked before any bound applies.
            "auto_decompress": False,
            "read_bufsize": _READ_BUFFER,
        }

    async def start(self) -> None:
        """Listens. Raises OSError when the address is taken, ValueError when it is none."""
        sockets = self._member.sockets if self._member else await listen(self._address)
        self.port = sockets[0].getsockname()[1]
        await self._runner.setup()
        server = self._runner.server
        assert server is not None, "it was set up"
        server.request_factory = judging(keeping_expect(server.request_factory))
        most = connections_allowed(self._most)
        of_one = max(1, self._most_of_one * most // self._most)  # where all are fewer, nobody's part grows
        self._capacity = Capacity(
            self._edge, connections=most, per_address=of_one, head_seconds=self._head_seconds
        )
        new = functools.partial(Connection, server, self._capacity, self._drain, **self._options)
        self._listener = Listener(sockets, new)

    async def set_serving(self, ok: bool) -> None:
        """Whether /api/v1/health says that requests are welcome."""
        self._drain.serving = ok
        if ok and self._member is not None:
            self._member.serves()

    async def stop(self, grace: float) -> None:
        """Takes no new connections but those that wait already, gives each an answer and the running requests
        ``grace`` seconds to end, then cuts them off."""
        self._drain.begin()
        if self._listener is not None:
            await self._listener.leave()
        if self._capacity is not None:
            self._capacity.close()
        await self._drain.wait_empty(grace)
        await self._runner.cleanup()


def connections_allowed(wanted: int) -> int:
    """How many connections there may be, at most ``wanted``: as many as this process may have files open for, see
    getrlimit(2). Without this the next socket or file would fail somewhere else, in the midst of an answer."""
    need = wanted * _FILES_PER_CONNECTION + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= need:
        return wanted
    may = need if hard == resource.RLIM_INFINITY or hard >= need else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (may, hard))
    if may >= need:
        return wanted
    most = max(1, (may - _OTHER_FILES) // _FILES_PER_CONNECTION)
    log.warning(
        "only %d connections instead of %d: no more than %d files may be open (ulimit -n)", most, wanted, may
    )
    return most
