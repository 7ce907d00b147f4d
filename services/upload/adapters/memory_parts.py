"""The part store in memory: the twin of the others for tests, as strict as they are."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from services.common.clock import Clock, utc_now
from services.common.errors import DataLoss, FailedPrecondition
from services.common.objects import ObjectStore
from services.common.wire import Buffer
from services.upload.adapters.turns import Turns
from services.upload.domain import Whole
from services.upload.grid import Grid, Part, Tail, conflict
from services.upload.ports import Admit, Check, Confirm, Counting, Ledger, Staged, StoredPart
from services.upload.reasons import Reason
from services.upload.signatures import HEAD_BYTES


@dataclass
class _Bytes:
    """What is stored of one upload; ``tail`` belongs to the first part that is missing."""

    changed_at: datetime
    parts: dict[int, tuple[Part, bytes]] = field(default_factory=dict)
    tail: bytes = b""

    def first_missing(self) -> int:
        return next(n for n in range(len(self.parts) + 1) if n not in self.parts)

    def put(self, part: Part, body: bytes) -> None:
        if part.number == self.first_missing():
            self.tail = b""
        self.parts[part.number] = (part, body)

    def ledger(self) -> Ledger:
        tail = Tail(self.first_missing(), len(self.tail)) if self.tail else None
        stored = bool(self.parts or self.tail)
        return Ledger(tuple(p for p, _ in self.parts.values()), self.changed_at if stored else None, tail)


class MemoryPartStore:
    """Implements :class:`services.upload.ports.PartStore`; finished files go to ``objects``."""

    def __init__(self, objects: ObjectStore, *, clock: Clock = utc_now) -> None:
        self._objects = objects
        self._clock = clock
        self._turns = Turns()
        self._uploads: dict[str, _Bytes] = {}

    async def put_part(
        self, upload: str, grid: Grid, number: int, pieces: AsyncIterator[Buffer], confirm: Confirm
    ) -> StoredPart:
        length = grid.length(number)
        async with self._turns.take(upload, number) as turn:
            stored = self._uploads.setdefault(upload, _Bytes(self._clock()))
            tail = stored.tail if number == stored.first_missing() else b""
            body = bytearray()
            while (piece := await turn.next(pieces)) is not None:
                if len(body) + len(piece) > length:
                    raise grid.wrong_size(number, len(body) + len(piece))
                body += piece
                if not body.startswith(tail[: len(body)]):
                    raise conflict(number)
            if len(body) != length:
                raise grid.wrong_size(number, len(body))
            part = Part(number, length, hashlib.sha256(body).hexdigest())
            await confirm(part)
            if number in stored.parts:
                if stored.parts[number][0] != part:
                    raise conflict(number)
                return StoredPart(part, existed=True)
            self._require(upload, stored)
            stored.put(part, bytes(body))
            stored.changed_at = self._clock()
            return StoredPart(part, existed=False)

    async def append_tail(
        self,
        upload: str,
        grid: Grid,
        admit: Admit,
        pieces: AsyncIterator[Buffer],
        count: Counting,
        *,
        at_once: bool = False,
    ) -> int:
        async with self._turns.append(upload, keep=at_once) as appender:
            stored = self._uploads.setdefault(upload, _Bytes(self._clock()))
            offset = stored.ledger().offset(grid)
            grid = await admit(offset)
            waiting: list[bytes] = []
            if stored.tail and not at_once:
                await appender.reach(stored.first_missing())
                await self._extend(upload, stored, grid, b"", count)
            while (piece := await appender.turn.next(pieces)) is not None:
                for number, view in grid.cut(offset, piece):
                    await appender.reach(number)
                    self._require(upload, stored)
                    if number in stored.parts:
                        within = offset - number * grid.chunk_size
                        if stored.parts[number][1][within : within + len(view)] != view:
                            raise conflict(number)
                    elif at_once:
                        waiting.append(bytes(view))
                    else:
                        await self._extend(upload, stored, grid, view, count)
                    offset += len(view)
            if at_once:
                await count()
                for rest in [b"", *waiting]:  # first what may be a whole part already
                    await self._extend(upload, stored, grid, rest, _agree)
            return stored.ledger().offset(grid)

    async def _extend(
        self, upload: str, stored: _Bytes, grid: Grid, view: bytes | memoryview, count: Counting
    ) -> None:
        """Adds bytes of one part to the tail, and makes the part of it when it is whole."""
        self._require(upload, stored)
        number = stored.first_missing()
        stored.tail += view
        stored.changed_at = self._clock()
        if stored.tail and len(stored.tail) >= grid.length(number):
            await count()
            self._require(upload, stored)
            stored.put(Part(number, len(stored.tail), hashlib.sha256(stored.tail).hexdigest()), stored.tail)

    def _require(self, upload: str, stored: _Bytes) -> None:
        if self._uploads.get(upload) is not stored:
            raise FailedPrecondition("the upload was given up", reason=Reason.UPLOAD_CLOSED)

    async def list_parts(self, upload: str, grid: Grid) -> Ledger:
        stored = self._uploads.get(upload)
        return Ledger() if stored is None else stored.ledger()

    async def assemble(
        self, upload: str, grid: Grid, manifest: tuple[Part, ...], object_key: str, check: Check
    ) -> Whole:
        stored = self._uploads[upload].parts if upload in self._uploads else {}
        for part in manifest:
            if part.number not in stored or stored[part.number][0] != part:
                raise DataLoss(f"chunk {part.number} of the upload is lost")
        body = b"".join(stored[part.number][1] for part in manifest)
        whole = Whole(len(body), hashlib.sha256(body).hexdigest(), body[:HEAD_BYTES])
        check(whole)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "data")
            await asyncio.to_thread(file.write_bytes, body)
            await self._objects.put_file(object_key, file)
        return whole

    async def discard(self, upload: str) -> None:
        await self._turns.clear(upload, FailedPrecondition("the upload was given up", reason=Reason.UPLOAD_CLOSED))
        self._uploads.pop(upload, None)

    async def remove(self, object_key: str) -> None:
        await self._objects.delete(object_key)

    async def list_uploads(self) -> AsyncIterator[Staged]:
        for upload, stored in list(self._uploads.items()):
            yield Staged(upload, stored.changed_at)


async def _agree() -> None:
    """What was agreed to already."""
