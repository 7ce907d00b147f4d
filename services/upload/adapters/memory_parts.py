"""The part store in memory: the twin of the others for tests, as strict as they are."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

from services.common.clock import Clock, utc_now
from services.common.errors import DataLoss, FailedPrecondition
from services.common.objects import ObjectStore
from services.upload.adapters.turns import Turns
from services.upload.domain import Whole
from services.upload.grid import Grid, Part, conflict
from services.upload.ports import Check, Confirm, Ledger, Staged, StoredPart
from services.upload.reasons import Reason
from services.upload.signatures import HEAD_BYTES


class MemoryPartStore:
    """Implements :class:`services.upload.ports.PartStore`; finished files go to ``objects``."""

    def __init__(self, objects: ObjectStore, *, clock: Clock = utc_now) -> None:
        self._objects = objects
        self._clock = clock
        self._turns = Turns()
        self._parts: dict[str, dict[int, tuple[Part, bytes]]] = {}
        self._changed: dict[str, datetime] = {}

    async def put_part(
        self, upload: str, grid: Grid, number: int, pieces: AsyncIterator[bytes], confirm: Confirm
    ) -> StoredPart:
        length = grid.length(number)
        async with self._turns.take(upload, number) as turn:
            parts = self._parts.setdefault(upload, {})
            self._changed.setdefault(upload, self._clock())
            body = bytearray()
            while (piece := await turn.next(pieces)) is not None:
                if len(body) + len(piece) > length:
                    raise grid.wrong_size(number, len(body) + len(piece))
                body += piece
            if len(body) != length:
                raise grid.wrong_size(number, len(body))
            part = Part(number, length, hashlib.sha256(body).hexdigest())
            await confirm(part)
            if number in parts:
                if parts[number][0] != part:
                    raise conflict(number)
                return StoredPart(part, existed=True)
            if self._parts.get(upload) is not parts:
                raise FailedPrecondition("the upload was given up", reason=Reason.UPLOAD_CLOSED)
            parts[number] = (part, bytes(body))
            self._changed[upload] = self._clock()
            return StoredPart(part, existed=False)

    async def list_parts(self, upload: str, grid: Grid) -> Ledger:
        parts = tuple(part for part, _ in self._parts.get(upload, {}).values())
        return Ledger(parts, self._changed[upload] if parts else None)

    async def assemble(
        self, upload: str, grid: Grid, manifest: tuple[Part, ...], object_key: str, check: Check
    ) -> Whole:
        stored = self._parts.get(upload, {})
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
        self._parts.pop(upload, None)
        self._changed.pop(upload, None)

    async def remove(self, object_key: str) -> None:
        await self._objects.delete(object_key)

    async def list_uploads(self) -> AsyncIterator[Staged]:
        for upload, changed in list(self._changed.items()):
            yield Staged(upload, changed)
