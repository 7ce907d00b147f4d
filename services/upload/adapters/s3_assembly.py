"""Assembling in a bucket: the parts of a manifest, and only those, become one object.

They are read in order, some ahead, and written in pieces of at least 8 MiB, which S3 demands, into a multipart
upload while the whole is hashed. The object appears when that is completed, after the file was checked. A kill
before leaves a multipart upload that is given up later, one afterwards an object that the next call finds. Several
processes that assemble one upload make the same object of the same parts.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any

from services.common.adapters.s3_bucket import S3Bucket, piece_size
from services.common.adapters.s3_objects import S3ObjectStore, object_name
from services.common.errors import DataLoss, NotFound
from services.upload.adapters.s3_folder import Candidate, S3Folder
from services.upload.domain import Whole
from services.upload.grid import Grid, Part
from services.upload.ports import Check
from services.upload.signatures import HEAD_BYTES

_AHEAD = 8 << 20  # bytes of parts that are read ahead while a piece is written

Run = Callable[..., Awaitable[Any]]
"""Runs a blocking call in the store's threads."""


class S3Assembly:
    """Makes objects of the parts in a bucket."""

    def __init__(self, bucket: S3Bucket, objects: S3ObjectStore, run: Run) -> None:
        self._bucket = bucket
        self._objects = objects
        self._run = run

    async def assemble(
        self, folder: S3Folder, grid: Grid, manifest: tuple[Part, ...], object_key: str, check: Check
    ) -> Whole:
        """As :meth:`services.upload.ports.PartStore.assemble`."""
        whole = await self._assembled(object_key, grid)
        if whole is None:
            try:
                return await self._make(folder, grid, manifest, object_key, check)
            except DataLoss:
                # Another process may have assembled the upload meanwhile, and removed its parts.
                whole = await self._assembled(object_key, grid)
                if whole is None:
                    raise
        check(whole)
        return whole

    async def _assembled(self, object_key: str, grid: Grid) -> Whole | None:
        """The file that an earlier call has made, or None."""
        try:
            stored = await self._objects.stat(object_key)
        except NotFound:
            return None
        if stored.size != grid.size:
            raise DataLoss("the assembled file has another size than the upload")
        digest, head = hashlib.sha256(), b""
        async with contextlib.aclosing(self._objects.read(object_key)) as pieces:
            async for piece in pieces:
                head = head if len(head) >= HEAD_BYTES else (head + piece)[:HEAD_BYTES]
                await self._run(digest.update, piece)
        return Whole(grid.size, digest.hexdigest(), head)

    async def _make(
        self, folder: S3Folder, grid: Grid, manifest: tuple[Part, ...], object_key: str, check: Check
    ) -> Whole:
        stored: dict[Part, list[Candidate]] = {}
        async for candidate in folder.candidates():
            stored.setdefault(candidate.part, []).append(candidate)
        # A part may have got a new copy in the place of the old one between two pages of the list.
        sources = [stored.get(part) or await _copies(folder, part) for part in manifest]
        digest, head = hashlib.sha256(), b""
        name, step = object_name(object_key), piece_size(grid.size)
        async with contextlib.AsyncExitStack() as stack:
            pieces = await stack.enter_async_context(contextlib.aclosing(_pieces(folder, sources, step)))
            if grid.size <= step:
                piece = await anext(pieces)
                await self._run(digest.update, piece)
                whole = Whole(grid.size, digest.hexdigest(), piece[:HEAD_BYTES])
                check(whole)
                await self._bucket.put(name, piece)
                return whole
            made = await stack.enter_async_context(self._bucket.multipart(name))
            async for piece in pieces:
                head = head or piece[:HEAD_BYTES]
                await asyncio.gather(self._run(digest.update, piece), made.add(piece))
            whole = Whole(made.size, digest.hexdigest(), head)
            check(whole)
            await made.complete()
            return whole


async def _pieces(
    folder: S3Folder, sources: Sequence[Sequence[Candidate]], step: int
) -> AsyncGenerator[bytes, None]:
    """The file's bytes in pieces of ``step`` bytes, the last one shorter. Raises DataLoss."""
    buffer = bytearray()
    async with contextlib.aclosing(_bodies(folder, sources)) as bodies:
        async for body in bodies:
            buffer += body
            while len(buffer) >= step:
                yield bytes(memoryview(buffer)[:step])
                del buffer[:step]
    if buffer:
        yield bytes(buffer)


async def _bodies(folder: S3Folder, sources: Sequence[Sequence[Candidate]]) -> AsyncGenerator[bytes, None]:
    """The parts' bytes in order. Raises DataLoss."""
    waiting, reading, ahead = deque(sources), deque[tuple[int, asyncio.Task[bytes]]](), 0
    try:
        while waiting or reading:
            while waiting and (not reading or ahead + waiting[0][0].size <= _AHEAD):
                copies = waiting.popleft()
                reading.append((copies[0].size, asyncio.create_task(_body(folder, copies))))
                ahead += copies[0].size
            size, task = reading[0]
            body = await task
            reading.popleft()
            ahead -= size
            yield body
    finally:
        for _, task in reading:
            task.cancel()
        await asyncio.gather(*(task for _, task in reading), return_exceptions=True)


async def _body(folder: S3Folder, copies: Sequence[Candidate]) -> bytes:
    """A part's bytes, of any of its copies: a writer may be taking its own back, or have put one more in the place
    of others. Raises DataLoss."""
    tried: set[str] = set()
    while True:
        for copy in copies:
            with contextlib.suppress(DataLoss):
                return await folder.body(copy)
        tried.update(copy.key for copy in copies)
        copies = await _copies(folder, copies[0].part)
        if all(copy.key in tried for copy in copies):  # there, and yet it cannot be read
            return await folder.body(copies[0])


async def _copies(folder: S3Folder, part: Part) -> list[Candidate]:
    """Those of a part. Raises DataLoss when there is none."""
    copies = [c async for c in folder.candidates(part.number) if c.part == part]
    if not copies:
        raise DataLoss(f"chunk {part.number} of the upload is lost")
    return copies
