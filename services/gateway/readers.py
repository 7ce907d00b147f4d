"""Turns at reading from a remote store.

Who reads holds one of the store's connections until the client has taken everything. There are not more of them
than the store's client has, and that client waits for a free one without an end; so readers queue here, briefly.
Nobody has more turns than their part, and who takes next to nothing of an answer loses the turn: TCP_USER_TIMEOUT
ends those alone who take nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import sys
import termios
from collections import Counter
from collections.abc import AsyncIterator

from aiohttp import web

from services.gateway.callers import SUBJECT
from services.gateway.clients import counted
from services.gateway.config import GatewaySettings
from services.gateway.edge import CLIENT
from services.gateway.problems import Problem

log = logging.getLogger(__name__)

_RETRY = {"Retry-After": "2"}
_PERIOD_SECONDS = 60.0


class Pace:
    """Cuts off the client of ``request`` when it takes less than ``least`` bytes a second over a minute.

    What it has taken is what its host has acknowledged: the kernel here holds megabytes for it, and takes on more
    of them only now and then.
    """

    def __init__(self, request: web.Request, least: int) -> None:
        self._request = request
        self._least = least
        self._loop = asyncio.get_running_loop()
        self._given = self._before = 0
        self._since = self._loop.time()
        self._timer = self._loop.call_at(self._since + _PERIOD_SECONDS, self._judge)

    def give(self, size: int) -> None:
        """So many bytes go out next. A client that has taken all before waited for us: its time begins anew."""
        if not self._owed():
            self._begin()
        self._given += size

    def stop(self) -> None:
        """The answer is over."""
        self._timer.cancel()

    def _begin(self) -> None:
        self._before, self._since = self._given - self._owed(), self._loop.time()

    def _judge(self) -> None:
        end, transport = self._since + _PERIOD_SECONDS, self._request.transport
        if transport is None:
            return
        if self._loop.time() >= end:
            owed = self._owed()
            taken = self._given - owed - self._before
            if owed and taken < self._least * _PERIOD_SECONDS:
                data = {"path": self._request.path, "bytes": taken, "seconds": _PERIOD_SECONDS}
                log.info("a download was too slow and is cut off", extra={"data": data})
                transport.abort()
                return
            self._begin()
            end = self._since + _PERIOD_SECONDS
        self._timer = self._loop.call_at(end, self._judge)

    def _owed(self) -> int:
        """Bytes that the client has not acknowledged, see tcp(7) on SIOCOUTQ; elsewhere than on Linux those that
        the kernel has not taken."""
        transport = self._request.transport
        if transport is None or transport.is_closing():
            return 0
        owed = transport.get_write_buffer_size()
        if sys.platform == "linux":
            queued = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
            owed += int.from_bytes(queued, sys.byteorder)
        return owed


class Readers:
    """How many may read at once: all together, one player, one address of those without a token."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._turns = asyncio.Semaphore(settings.store_readers)
        self._patience = settings.gateway_store_wait_seconds
        self._of_user = settings.gateway_store_readers_user
        self._of_address = settings.gateway_store_readers_address
        self._least = settings.gateway_store_least_bytes_per_second
        self._reading: Counter[tuple[str, str]] = Counter()

    @contextlib.asynccontextmanager
    async def turn(self, request: web.Request) -> AsyncIterator[Pace]:
        """A turn for ``request``, with what watches over its client. Raises Problem: 429 for one who has their
        part already, 503 when there is none within the time that is waited."""
        subject = request.get(SUBJECT, "")
        reader = ("user", subject) if subject else ("address", counted(request.get(CLIENT)))
        if self._reading[reader] >= (self._of_user if subject else self._of_address):
            detail = f"this {reader[0]} has {self._reading[reader]} downloads; try again when one has ended"
            raise Problem(429, "TOO_MANY_DOWNLOADS", detail, headers=_RETRY)
        self._reading[reader] += 1
        try:
            await self._wait()
            pace = Pace(request, self._least)
            try:
                yield pace
            finally:
                pace.stop()
                self._turns.release()
        finally:
            self._reading[reader] -= 1
            if not self._reading[reader]:
                del self._reading[reader]

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._patience):
                await self._turns.acquire()
        except TimeoutError:
            detail = "too many files are being read; try again"
            raise Problem(503, "TOO_MANY_READERS", detail, headers=_RETRY) from None
