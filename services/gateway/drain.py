"""What is being answered, and whether the gateway is on its way out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Drain:
    """Counts requests. Once :attr:`draining` is set, event streams end and connections close."""

    def __init__(self) -> None:
        self.serving = False
        self.draining = asyncio.Event()
        self._ending: set[asyncio.Future[Any]] = set()
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

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

    @contextmanager
    def request(self) -> Iterator[None]:
        """Around the answering of a request."""
        self._running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._running -= 1
            if self._running == 0:
                self._idle.set()

    async def wait_idle(self, timeout: float) -> bool:
        """Waits until nothing is being answered; False when that took more than ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
