"""The HTTP server: listens, serves and drains, in the shape that :mod:`services.common.lifecycle` runs."""

from __future__ import annotations

import logging

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from services.gateway.config import GatewaySettings
from services.gateway.drain import Drain
from services.gateway.edge import AccessLogger

_READ_BUFFER = 256 << 10

log = logging.getLogger(__name__)


def _worth_a_line(record: logging.LogRecord) -> bool:
    """Whoever sends what is no HTTP gets a 400 and a line in the access log. aiohttp would add a traceback
    that quotes the header, which may be a token."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError)


class HttpServer:
    """Serves ``app`` at ``settings.gateway_listen``; :attr:`port` tells where once started."""

    def __init__(self, app: web.Application, settings: GatewaySettings, drain: Drain) -> None:
        self.port = 0
        self._drain = drain
        self._listen = settings.gateway_listen
        log.addFilter(_worth_a_line)
        self._runner = web.AppRunner(
            app,
            logger=log,
            access_log_class=AccessLogger,
            keepalive_timeout=settings.gateway_keepalive_seconds,
            # A client that goes away cancels its handler: downloads and event streams stop at once.
            handler_cancellation=True,
            # Compressed bodies are refused (415): a bomb would be unpacked before any bound applies.
            auto_decompress=False,
            read_bufsize=_READ_BUFFER,
            shutdown_timeout=1.0,
        )

    async def start(self) -> None:
        """Listens. Raises OSError when the address is taken, ValueError when it is none."""
        host, colon, port = self._listen.rpartition(":")
        if not colon or not port.isdigit():
            raise ValueError(f"gateway_listen {self._listen!r} is not host:port")
        await self._runner.setup()
        site = web.TCPSite(self._runner, host.strip("[]") or None, int(port), backlog=1024)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def set_serving(self, ok: bool) -> None:
        """Whether /api/v1/health says that requests are welcome."""
        self._drain.serving = ok

    async def stop(self, grace: float) -> None:
        """Takes no new connections, lets running requests end for ``grace`` seconds, then cuts them off."""
        self._drain.draining.set()
        for site in list(self._runner.sites):
            await site.stop()
        await self._drain.wait_idle(grace)
        await self._runner.cleanup()
