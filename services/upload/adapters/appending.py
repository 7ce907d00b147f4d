"""Appending to an upload in a directory: the bytes go to their place in the sparse file, a name says how far.

The tail is the empty file ``tail-<n>-<length>``: the first ``length`` bytes of part n are there. Renaming it is
what lets more bytes count, after they were written; so a kill leaves the old length or the new one. The SHA-256
of a tail is carried on in memory from piece to piece and from append to append, so that its part's digest is
there when the last byte is; only after a restart is what there is of the part read once more.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from services.common.wire import Buffer
from services.upload.adapters.turns import Appender
from services.upload.adapters.upload_folder import Stored, UploadFolder
from services.upload.grid import Grid, Part, Tail, conflict
from services.upload.ports import Counting

Run = Callable[..., Coroutine[Any, Any, Any]]
"""Runs a blocking call in the store's threads."""


@dataclass
class Known:
    """The SHA-256 of the first ``length`` bytes of part ``number``, and how many of them ``count`` as the tail."""

    number: int
    length: int
    count: int
    sha256: hashlib._Hash


class Append:
    """One append to a folder. ``durable``: the tail grows at the end alone, once its bytes are synced;
    ``at_once``: nothing counts before the end; ``known``: what the append before knew of the tail, and afterwards
    what the next may know."""

    def __init__(
        self,
        folder: UploadFolder,
        appender: Appender,
        run: Run,
        grid: Grid,
        count: Counting,
        *,
        known: Known | None,
        durable: bool,
        at_once: bool,
    ) -> None:
        self._folder, self._appender, self._run, self._grid, self._count = folder, appender, run, grid, count
        self.known: Known | None = None
        self._before = known
        self._at_once = at_once
        self._lazy = durable or at_once
        self._stored = Stored()
        # With at_once: the parts that are received and wait for the end, and how much of each was a tail before.
        self._whole: list[tuple[Part, int]] = []

    async def receive(self, offset: int, tail: Tail | None, pieces: AsyncIterator[Buffer]) -> None:
        """Takes the pieces, which begin at ``offset``, where the tail ends if there is one."""
        if tail is not None:
            await self._reach(tail.number)
            await self._make_part()  # as it may be when the length was told only now
        try:
            while (piece := await self._appender.turn.next(pieces)) is not None:
                for number, view in self._grid.cut(offset, piece):
                    await self._take(number, view, offset)
                    offset += len(view)
            if self._at_once:
                await self._count_all()
        finally:
            if not self._at_once:
                await self._count_tail()

    async def _take(self, number: int, view: memoryview, offset: int) -> None:
        """Stores bytes of one part, or compares them when it is stored."""
        known = await self._reach(number)
        if number in self._stored.digests:
            if not await self._run(self._folder.same, view, offset):
                raise conflict(number)
            return
        await self._run(self._write, known, view, offset)
        await self._make_part()

    def _write(self, known: Known, view: memoryview, offset: int) -> None:
        self._folder.write(view, offset)
        known.sha256.update(view)
        known.length += len(view)
        if not self._lazy and known.length < self._grid.length(known.number):  # a whole part gets its receipt
            self._extend(known)

    def _extend(self, known: Known) -> None:
        self._folder.extend(known.number, known.count, known.length)
        known.count = known.length

    async def _reach(self, number: int) -> Known:
        """Holds the part, and knows what is stored of it."""
        known = self.known
        if await self._appender.reach(number) or known is None:
            self._stored = self._folder.stored or await self._run(self._folder.open)
            tail, before = self._stored.tail_of(number), self._before
            if before is not None and (before.number, before.length, before.count) == (number, tail, tail):
                digest = before.sha256
            else:
                digest = await self._run(self._folder.digest, self._grid.bounds(number)[0], tail)
            self.known = known = Known(number, tail, tail, digest)
        return known

    async def _make_part(self) -> None:
        """Makes a part of what is received, if that is the whole part."""
        known = self.known
        if known is None or known.number in self._stored.digests:
            return
        if known.length == self._grid.length(known.number):
            part = Part(known.number, known.length, known.sha256.hexdigest())
            if self._at_once:
                self._whole.append((part, known.count))
            else:
                await self._count()
                await self._run(self._folder.acknowledge, part, known.count)
            self.known = None

    async def _count_all(self) -> None:
        await self._count()
        for part, tail in self._whole:
            await self._run(self._folder.acknowledge, part, tail)
        await self._count_tail()

    async def _count_tail(self) -> None:
        known = self.known
        if known is not None and known.length > known.count:
            await self._run(self._extend, known)
