"""Which connections there are, and how they end when the gateway is on its way out."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

# How long whoever has just connected may take to send a request that is still answered.
_FIRST_REQUEST_SECONDS = 2.0
_SWEEP_SECONDS = 0.1


class Leaving(Protocol):
    """A connection that can be told to go."""

    def close_if_idle(self, *, also_new: bool) -> bool:
        """Closes it if nothing is being answered; one without a request so far only with ``also_new``. Whether it
        does."""


class Drain:
    """Keeps the connections. Once :attr:`draining` is set, event streams end and every answer is the last."""

    def __init__(self) -> None:
        self.serving = False
        self.draining = asyncio.Event()
        self._ending: set[asyncio.Future[Any]] = set()
        self._open: set[Leaving] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    def begin(self) -> None:
        """Sets :attr:`draining`."""
        self.draining.set()
        for waiting in tuple(self._ending):
            waiting.cancel()

    def cancels(self, waiting: asyncio.Future[Any]) -> None:
        """Draining cancels ``waiting``, unless it is done by then. A stream may last for hours: a task for each,
        to wait for the one event, would be a tenth of what it costs."""
        if self.draining.is_set():
            waiting.cancel()
        else:
            self._ending.add(waiting)
            waiting.add_done_callback(self._ending.discard)

    def opened(self, connection: Leaving) -> None:
        """Somebody connected."""
        self._open.add(connection)
        self._empty.clear()

    def closed(self, connection: Leaving) -> None:
        """The connection is over, its answers sent or given up."""
        self._open.discard(connection)
        if not self._open:
            self._empty.set()

    async def wait_empty(self, timeout: float) -> bool:
        """Closes every connection once it has had its answer; False when that took more than ``timeout`` seconds.
        Those that are idle are closed at once, those without a request so far a little later: one may be on its
        way."""
        now = asyncio.get_running_loop().time
        began = now()
        while self._open and (left := began + timeout - now()) > 0:
            late = now() - began >= _FIRST_REQUEST_SECONDS
            for connection in tuple(self._open):
                connection.close_if_idle(also_new=late)
            try:
                # Again and again, since between two requests there are moments in which a connection is not idle.
                await asyncio.wait_for(self._empty.wait(), min(left, _SWEEP_SECONDS))
            except TimeoutError:
                continue
        return not self._open
