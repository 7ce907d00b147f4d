"""Turns at a part, or at an upload's tail: one writer at a time, and the newest goes next.

A client whose connection broke tries again while its first stream may still look alive. So a new writer
interrupts the one before, also when that waits for bytes that never come, and begins once it has let go.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from services.common.errors import Aborted, ServiceError
from services.common.wire import Buffer
from services.upload.reasons import Reason

TAIL = -1
"""Stands for the end of an upload where a part's number would stand: those who append to it."""


class Turn:
    """One writer's turn, at one thing or at several. It may be interrupted only between pieces, never while a
    piece is written."""

    def __init__(self) -> None:
        self._refusal: ServiceError | None = None
        self._reading: asyncio.Timeout | None = None

    def interrupt(self, refusal: ServiceError) -> None:
        """Lets the writer end with ``refusal`` at its next piece, and not wait for that."""
        if self._refusal is None:
            self._refusal = refusal
            if self._reading is not None:
                self._reading.reschedule(0)

    def check(self) -> None:
        """Raises the refusal if the turn was interrupted."""
        if self._refusal is not None:
            raise self._refusal

    async def next(self, pieces: AsyncIterator[Buffer]) -> Buffer | None:
        """The next piece, or None at the end. Raises the refusal if the turn is interrupted."""
        self.check()
        try:
            async with asyncio.timeout(None) as self._reading:
                return await anext(pieces, None)
        except TimeoutError:
            self.check()
            raise
        finally:
            self._reading = None


class _Line:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.newest: Turn | None = None
        self.members = 0


class Turns:
    """The turns at all parts of a store."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, int], _Line] = {}

    @asynccontextmanager
    async def take(self, upload: str, number: int, turn: Turn | None = None) -> AsyncIterator[Turn]:
        """Waits for the part (or TAIL) and holds it within the block; ``turn``: as one more thing of a writer that
        holds others. Raises Aborted (CHUNK_SUPERSEDED) when a newer writer came meanwhile."""
        key = (upload, number)
        line = self._lines.setdefault(key, _Line())
        turn = turn or Turn()
        if line.newest is not None:
            what = "the upload's end" if number == TAIL else f"chunk {number}"
            line.newest.interrupt(Aborted(f"a newer writer of {what} took over", reason=Reason.CHUNK_SUPERSEDED))
        line.newest = turn
        line.members += 1
        try:
            async with line.lock:
                turn.check()
                yield turn
        finally:
            line.members -= 1
            if line.members == 0:
                del self._lines[key]

    @asynccontextmanager
    async def append(self, upload: str, *, keep: bool) -> AsyncIterator[Appender]:
        """The turn at the upload's end, with the parts that are reached; ``keep``: all of them until the end of
        the block, and not only the last."""
        async with self.take(upload, TAIL) as turn, AsyncExitStack() as parts:
            yield Appender(self, upload, turn, parts, keep=keep)

    async def clear(self, upload: str, refusal: ServiceError) -> None:
        """Interrupts every writer of the upload and waits until they have let go."""
        for (key, _), line in list(self._lines.items()):
            if key == upload and line.newest is not None:
                line.newest.interrupt(refusal)
                async with line.lock:
                    pass


class Appender:
    """One that appends: it holds the upload's end and the part it is at, as one turn."""

    def __init__(self, turns: Turns, upload: str, turn: Turn, parts: AsyncExitStack, *, keep: bool) -> None:
        self.turn = turn
        self._turns = turns
        self._upload = upload
        self._parts = parts
        self._keep = keep
        self._at: int | None = None

    async def reach(self, number: int) -> bool:
        """Holds this part, which is not before the last one; answers whether it was not held yet. Raises Aborted
        (CHUNK_SUPERSEDED) when a newer writer came meanwhile."""
        if number == self._at:
            return False
        self.turn.check()
        if not self._keep:
            await self._parts.aclose()
        await self._parts.enter_async_context(self._turns.take(self._upload, number, self.turn))
        self._at = number
        return True
