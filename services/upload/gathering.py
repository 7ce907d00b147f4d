"""Files made of partial uploads: their bytes are gathered, and what they leave is cleared.

A partial upload is *held* while the file is gathered: its ``expires_at`` is moved to the file's, if that is later.
Several files may be made of one partial upload at once; it goes with the last of them. Whoever removes it writes
that down first, by compare-and-set on what it was before it was held: of a holder and a remover one gives way.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable

from services.common.clock import Clock
from services.common.errors import DataLoss, NotFound
from services.common.objects import ObjectStore
from services.common.state import Entry, RevisionConflict, mutate, owned_key
from services.upload.domain import Upload, UploadState
from services.upload.grid import Grid, Part
from services.upload.index import UploadIndex
from services.upload.ports import PartStore, UploadStore


class PartialGone(Exception):
    """A partial upload was given up, or has expired, before its file could be used."""

    def __init__(self, id_: str) -> None:
        super().__init__(f"partial upload {id_} is gone")


class Gathering:
    """Methods raise Unavailable; ``ttl`` says how long a record is kept, in seconds."""

    def __init__(
        self,
        uploads: UploadStore,
        index: UploadIndex,
        parts: PartStore,
        objects: ObjectStore,
        *,
        ttl: Callable[[Upload], float | None],
        clock: Clock,
    ) -> None:
        self._uploads = uploads
        self._index = index
        self._parts = parts
        self._objects = objects
        self._ttl = ttl
        self._clock = clock

    async def gather(self, key: str, upload: Upload) -> tuple[Part, ...]:
        """Puts the files of the partial uploads into the upload that is made of them, from where an earlier call
        was cut off; answers its manifest. Raises PartialGone, DataLoss, and what PartStore.append_tail raises."""
        sources = {id_: await self._hold(upload, id_) for id_ in dict.fromkeys(upload.source_ids)}
        begin = 0

        async def admit(reached: int) -> Grid:
            nonlocal begin
            begin = reached
            return upload.grid

        async def files() -> AsyncGenerator[bytes, None]:
            place = 0
            for source in map(sources.__getitem__, upload.source_ids):
                if begin < place + source.size:
                    async with contextlib.aclosing(self._file(source, max(begin - place, 0))) as pieces:
                        async for piece in pieces:
                            yield piece
                place += source.size

        async def count() -> None:
            """Its own bytes always count."""

        async with contextlib.aclosing(files()) as pieces:
            await self._parts.append_tail(key, upload.grid, admit, pieces, count)
        return upload.grid.manifest((await self._parts.list_parts(key, upload.grid)).parts)

    async def _hold(self, upload: Upload, id_: str) -> Upload:
        held = await mutate(
            self._uploads,
            owned_key(upload.owner, id_),
            lambda u: u.hold(upload.expires_at, self._clock()),
            ttl=self._ttl,
        )
        if held is None or held.value.state_at(self._clock()) is not UploadState.COMPLETED:
            raise PartialGone(id_)
        return held.value

    async def _file(self, source: Upload, start: int) -> AsyncGenerator[bytes, None]:
        try:
            async with contextlib.aclosing(self._objects.read(source.object_key, start)) as pieces:
                async for piece in pieces:
                    yield piece
        except NotFound:
            now = await self._get(source.owner, source.id)
            if now is None or now.value.state is not UploadState.COMPLETED:
                raise PartialGone(source.id) from None
            raise DataLoss(f"the file of partial upload {source.id} is lost") from None

    async def release(self, upload: Upload) -> None:
        """Removes the partial uploads that the file was made of, but those of which others are being made: they go
        with those. What a kill leaves of them expires."""
        if not upload.source_ids:
            return
        # In this order: who holds one after it was read, changes it.
        sources = [await self._get(upload.owner, id_) for id_ in dict.fromkeys(upload.source_ids)]
        others = [await self._get(upload.owner, noted.upload_id) for noted in await self._index.of(upload.owner)]
        held = {id_ for other in others if other and other.value.gathers for id_ in other.value.source_ids}
        for source in sources:
            if source is None or source.value.state is not UploadState.COMPLETED or source.value.id in held:
                continue
            ended = source.value.cancel(self._clock())
            with contextlib.suppress(RevisionConflict):
                await self._uploads.update(source.key, ended, source.revision, ttl=self._ttl(ended))
                await self._parts.remove(ended.object_key)

    async def _get(self, owner: str, id_: str) -> Entry[Upload] | None:
        return await self._uploads.get(owned_key(owner, id_))
