"""Appending to an upload in a bucket: bytes gather in a temporary file until their part is whole.

What was received of a part that is not whole is stored as a tail when the append ends, however it ends, short of a
kill: the next append reads it back, and a longer tail or the part takes its place. So a tail costs at most one
part's bytes to read and to write for each append, and what an append was told has been stored, was.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from typing import Any

from services.common.errors import Aborted, DataLoss
from services.common.wire import Buffer
from services.upload.adapters.s3_folder import Candidate, Draft, S3Folder
from services.upload.adapters.settle import settled
from services.upload.adapters.turns import Appender
from services.upload.grid import Grid, Tail, conflict
from services.upload.ports import Counting
from services.upload.reasons import Reason

Run = Callable[..., Awaitable[Any]]
"""Runs a blocking call in the store's threads."""


class S3Append:
    """One append; ``at_once``: nothing counts before the end. Closes its temporary files with ``files``."""

    def __init__(
        self,
        folder: S3Folder,
        appender: Appender,
        files: ExitStack,
        run: Run,
        grid: Grid,
        count: Counting,
        *,
        at_once: bool,
    ) -> None:
        self._folder, self._appender, self._files, self._run = folder, appender, files, run
        self._grid, self._count, self._at_once = grid, count, at_once
        self._draft: Draft | None = None
        self._sha256 = hashlib.sha256()
        self._tail = 0  # how much of the draft is stored
        self._stored = b""  # the part that the append is at, when it is stored already
        self._whole: list[Draft] = []  # with at_once: parts that wait for the end

    async def receive(self, offset: int, tail: Tail | None, pieces: AsyncIterator[Buffer]) -> int:
        """Takes the pieces, which begin at ``offset``, where the tail ends if there is one. Answers where they
        end."""
        if tail is not None:
            await self._reach(tail.number, tail.length)
            await self._make_part()  # as it may be when the length was told only now
        try:
            while (piece := await self._appender.turn.next(pieces)) is not None:
                for number, view in self._grid.cut(offset, piece):
                    await self._take(number, view, offset)
                    offset += len(view)
            if self._at_once:
                await self._count()
                await settled(self._store_all())
        finally:
            if not self._at_once:
                await settled(self._store_tail())
        return offset

    async def _take(self, number: int, view: memoryview, offset: int) -> None:
        """Gathers bytes of one part, or compares them when it is stored."""
        within = offset - number * self._grid.chunk_size
        draft = await self._reach(number, within)
        if draft is None:
            if view != memoryview(self._stored)[within : within + len(view)]:
                raise conflict(number)
            return
        await self._run(self._write, draft, view)
        await self._make_part()

    def _write(self, draft: Draft, piece: Buffer | memoryview) -> None:
        self._sha256.update(piece)
        draft.body.write(piece)
        draft.length += len(piece)

    async def _reach(self, number: int, within: int) -> Draft | None:
        """Holds the part; answers where its bytes gather, or None when it is stored. Raises Aborted
        (CHUNK_SUPERSEDED) when the tail does not end ``within`` it: another process appended meanwhile."""
        if await self._appender.reach(number):
            try:
                await self._open(number)
            except DataLoss:  # replaced or taken back between the list and the read
                raise _superseded() from None
        if self._draft is not None and self._draft.length != within:
            self._draft = None
            raise _superseded()
        return self._draft

    async def _open(self, number: int) -> None:
        """Reads what is stored of the part. Raises DataLoss when that is gone meanwhile."""
        found = [c async for c in self._folder.candidates(number)]
        part = next((c for c in found if c.sha256), None)
        if part is None:
            self._draft = await self._begin(number, found)
            return
        self._draft, self._stored = None, await self._folder.body(part)
        # Its writer may take it back; what this append is acknowledged for needs an object of its own.
        copy = Draft(number, io.BytesIO(self._stored), part.size, part.sha256)
        await settled(self._folder.add(copy))

    async def _begin(self, number: int, tails: list[Candidate]) -> Draft:
        file = self._files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - closed with the others
        draft = Draft(number, file, 0, within={tail.key for tail in tails})
        self._sha256 = hashlib.sha256()
        bodies = [await self._folder.body(tail) for tail in tails]
        longest = max(bodies, key=len, default=b"")
        if not all(map(longest.startswith, bodies)):
            raise conflict(number)
        await self._run(self._write, draft, longest)
        self._tail = len(longest)
        return draft

    async def _make_part(self) -> None:
        """Makes a part of what is received, if that is the whole part."""
        draft = self._draft
        if draft is None or draft.length < self._grid.length(draft.number):
            return
        draft.sha256, self._draft = self._sha256.hexdigest(), None
        if self._at_once:
            self._whole.append(draft)
            return
        await self._count()
        await settled(self._folder.add(draft))
        draft.body.close()

    async def _store_tail(self) -> None:
        if self._draft is not None and self._draft.length > self._tail:
            await self._count()  # whoever appended through another process may have told the length
            await self._folder.add(self._draft)

    async def _store_all(self) -> None:
        for draft in self._whole:
            await self._folder.add(draft)
        if self._draft is not None and self._draft.length > self._tail:
            await self._folder.add(self._draft)


def _superseded() -> Aborted:
    return Aborted("a newer writer of the upload's end took over", reason=Reason.CHUNK_SUPERSEDED)
