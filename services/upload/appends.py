"""Appending to an upload: bytes at its end, stored as they come.

Where the end is, is asked and held by the part store, so that of two clients that go on with one upload only one
can. The length of an upload that was made without is told there too, before a byte that it would forbid is taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from services.common.clock import Clock
from services.common.errors import Aborted
from services.common.progress import Progress
from services.common.wire import Buffer
from services.upload import domain
from services.upload.domain import Upload
from services.upload.grid import Grid
from services.upload.limits import Limits
from services.upload.ports import Hints, PartStore
from services.upload.quotas import Quotas
from services.upload.reasons import Reason
from services.upload.records import UploadRecords, record_key
from services.upload.stream import AppendStream

_STEP = 1 << 20


class Appends:
    """Takes the streams of AppendUpload. Methods raise what ``upload_service.proto`` names, and Unavailable."""

    def __init__(
        self,
        records: UploadRecords,
        parts: PartStore,
        hints: Hints,
        quotas: Quotas,
        *,
        limits: Limits,
        clock: Clock,
    ) -> None:
        self._records = records
        self._parts = parts
        self._hints = hints
        self._quotas = quotas
        self._limits = limits
        self._clock = clock

    async def take(self, stream: AppendStream) -> Upload:
        """Stores the stream's bytes; answers the upload's record."""
        start = await stream.begin()
        upload = await self._records.owned(start.session_id)
        upload.require_bytes(self._clock())

        async def admit(reached: int) -> Grid:
            nonlocal upload
            upload = await self._still_open(upload)
            if start.offset != reached:
                raise domain.wrong_offset(reached)
            if start.upload_length is not None:
                upload = await self._tell_length(upload, start.upload_length, reached)
            return upload.grid

        async def count() -> None:
            stream.verify()
            if (await self._still_open(upload)).grid != upload.grid:  # so this stream cut its bytes wrongly
                raise Aborted("the upload's length was told meanwhile", reason=Reason.CHUNK_SUPERSEDED)

        async def pieces() -> AsyncIterator[Buffer]:
            place = start.offset
            async for piece in stream.body():
                if upload.length_deferred:
                    await self._let_grow(upload, place, place + len(piece))
                place += len(piece)
                yield piece

        key = record_key(upload)
        try:
            await self._parts.append_tail(key, upload.grid, admit, pieces(), count, at_once=stream.has_checksum)
        finally:
            await self._hints.publish(Progress("upload", upload.id))
        return upload

    async def _still_open(self, upload: Upload) -> Upload:
        """The record as it is now: it may have been completed, cancelled or given up meanwhile."""
        latest = await self._records.owned(upload.id)
        latest.require_bytes(self._clock())
        return latest

    async def _let_grow(self, upload: Upload, place: int, end: int) -> None:
        """Counts bytes whose number nobody has announced."""
        if end > self._limits.max_file_size:
            self._limits.check_size(end, "data")
        await self._quotas.grow(upload.owner, upload.id, self._counted(place), self._counted(end))

    def _counted(self, place: int) -> int:
        """How many bytes count when this many are there: whole steps, so that not each piece writes a record."""
        return min(-(-place // _STEP) * _STEP, self._limits.max_file_size)

    async def _tell_length(self, upload: Upload, length: int, reached: int) -> Upload:
        told = upload.tell_length(length, reached, self._clock())
        if told is upload:
            return upload
        self._limits.check_size(length, "upload_length")
        await self._quotas.grow(upload.owner, upload.id, self._counted(reached), length)
        return await self._records.change(upload, lambda u: u.tell_length(length, reached, self._clock()))


async def seal(parts: PartStore, upload: Upload) -> None:
    """Lets a tail that is all of the last part become the part: the length may have been told after its bytes."""

    async def admit(reached: int) -> Grid:
        return upload.grid

    async def nothing() -> AsyncIterator[bytes]:
        pieces: tuple[bytes, ...] = ()
        for piece in pieces:
            yield piece

    await parts.append_tail(record_key(upload), upload.grid, admit, nothing(), lambda: asyncio.sleep(0))
