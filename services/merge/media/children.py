"""Children that wait for a job with everything imported, so that a job need not wait for a child.

A few children are started ahead, each of which does one job and ends: none ever sees two players' bytes. One that
waits ends when its worker does, however that ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from services.merge.media.forked import Child

log = logging.getLogger(__name__)

_REFILL_SECONDS = 0.1  # the job that has just begun goes first


class Children:
    """Starts children with ``start``, ``spare`` of them ahead; ends with ``end`` those that got no job."""

    def __init__(
        self, start: Callable[[], Awaitable[Child]], end: Callable[[Child], Awaitable[None]], spare: int
    ) -> None:
        self._start = start
        self._end = end
        self._spare = spare
        self._waiting: list[Child] = []
        self._refilling: asyncio.Task[None] | None = None

    async def take(self) -> Child:
        """A child that has done nothing yet, for one job; the caller ends it."""
        try:
            while self._waiting:
                child = self._waiting.pop(0)
                if child.returncode is None:
                    return child
                await self._end(child)
            return await self._start()
        finally:
            if self._spare and (self._refilling is None or self._refilling.done()):
                self._refilling = asyncio.create_task(self._refill())

    async def _refill(self) -> None:
        await asyncio.sleep(_REFILL_SECONDS)
        try:
            await self.fill()
        except OSError as error:  # whoever takes one next tries again, and tells
            log.warning("no child could be started ahead: %s", error)

    async def fill(self) -> None:
        """Starts those that are missing."""
        while len(self._waiting) < self._spare:
            self._waiting.append(await self._start())

    async def close(self) -> None:
        """Ends those that wait. No child is taken any more."""
        self._spare = 0
        if self._refilling is not None:
            await asyncio.gather(self._refilling, return_exceptions=True)
        while self._waiting:
            await self._end(self._waiting.pop())
