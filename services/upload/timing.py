"""Times the part store: what it takes itself, without waiting for the client's bytes or for who admits them."""

from __future__ import annotations

from collections.abc import AsyncIterator

from services.common.metering import Stopwatch, StoreMetrics
from services.common.wire import Buffer
from services.upload.domain import Whole
from services.upload.grid import Grid, Part
from services.upload.ports import Admit, Check, Confirm, Counting, Ledger, PartStore, Staged, StoredPart


class TimedParts:
    """A :class:`PartStore` whose operations are timed."""

    def __init__(self, inner: PartStore, metrics: StoreMetrics) -> None:
        self._inner = inner
        self._timed = metrics.timed

    async def put_part(
        self, upload: str, grid: Grid, number: int, pieces: AsyncIterator[Buffer], confirm: Confirm
    ) -> StoredPart:
        with self._timed("put_part") as watch:

            async def confirmed(part: Part) -> None:
                with watch.paused():
                    await confirm(part)

            return await self._inner.put_part(upload, grid, number, _Awaited(pieces, watch), confirmed)

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
        with self._timed("append_tail") as watch:

            async def admitted(offset: int) -> Grid:
                with watch.paused():
                    return await admit(offset)

            async def counted() -> None:
                with watch.paused():
                    await count()

            bytes_ = _Awaited(pieces, watch)
            return await self._inner.append_tail(upload, grid, admitted, bytes_, counted, at_once=at_once)

    async def list_parts(self, upload: str, grid: Grid) -> Ledger:
        with self._timed("list_parts"):
            return await self._inner.list_parts(upload, grid)

    async def assemble(
        self, upload: str, grid: Grid, manifest: tuple[Part, ...], object_key: str, check: Check
    ) -> Whole:
        with self._timed("assemble"):
            return await self._inner.assemble(upload, grid, manifest, object_key, check)

    async def discard(self, upload: str) -> None:
        with self._timed("discard"):
            await self._inner.discard(upload)

    async def remove(self, object_key: str) -> None:
        with self._timed("remove"):
            await self._inner.remove(object_key)

    async def list_uploads(self) -> AsyncIterator[Staged]:
        with self._timed("list_uploads") as watch:
            async for staged in self._inner.list_uploads():
                with watch.paused():
                    yield staged


class _Awaited(AsyncIterator[Buffer]):
    """Not a generator, so that nothing but the bytes' own iterator has to be closed."""

    def __init__(self, pieces: AsyncIterator[Buffer], watch: Stopwatch) -> None:
        self._pieces = pieces
        self._watch = watch

    async def __anext__(self) -> Buffer:
        with self._watch.paused():
            return await anext(self._pieces)
