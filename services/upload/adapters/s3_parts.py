"""The part store in an S3 bucket; any number of upload services may use it at once.

What is stored of an upload are the objects of :mod:`.s3_folder`: a part's body is received into a temporary file
while it is hashed, and put when it is whole and confirmed. Within a process the newest writer of a part goes on
(:mod:`.turns`); between processes both go on, and of two that contradict each other at most one is acknowledged. A
late part is in no manifest and goes with the rest when the upload is discarded, or with the sweep.

One process that is killed between its put and its look at the others may leave a part that contradicts one which
was acknowledged. Nothing tells then which one the client meant: completing the upload fails and names the part.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import hashlib
import logging
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import BinaryIO, ParamSpec, TypeVar

from services.common.adapters.s3_bucket import S3Bucket
from services.common.adapters.s3_objects import S3ObjectStore
from services.common.errors import FailedPrecondition, ResourceExhausted, ServiceError
from services.common.wire import Buffer
from services.upload.adapters.s3_appending import S3Append
from services.upload.adapters.s3_assembly import S3Assembly
from services.upload.adapters.s3_folder import ROOT, Draft, S3Folder
from services.upload.adapters.settle import settled
from services.upload.adapters.turns import Turn, Turns
from services.upload.domain import Whole
from services.upload.grid import Grid, Part, Tail
from services.upload.ports import Admit, Check, Confirm, Counting, Ledger, Staged, StoredPart
from services.upload.reasons import Reason

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ASSEMBLIES = 2  # at once: each holds some pieces in memory


class S3PartStore:
    """Implements :class:`services.upload.ports.PartStore` in ``bucket``; a context manager.

    ``objects`` lies in the same bucket. ``threads``: how many parts are hashed and written to the disk at once.
    """

    def __init__(self, bucket: S3Bucket, objects: S3ObjectStore, *, threads: int = 2) -> None:
        self._bucket = bucket
        self._objects = objects
        self._turns = Turns()
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="parts")
        self._assembly = S3Assembly(bucket, objects, self._run)
        self._assembling = asyncio.Semaphore(_ASSEMBLIES)

    def __enter__(self) -> S3PartStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown()

    async def put_part(
        self, upload: str, grid: Grid, number: int, pieces: AsyncIterator[Buffer], confirm: Confirm
    ) -> StoredPart:
        length = grid.length(number)
        async with self._turns.take(upload, number) as turn:
            with _storage_errors(), tempfile.TemporaryFile() as body:
                digest = await self._receive(turn, body, grid, number, pieces)
                part = Part(number, length, digest)
                await confirm(part)
                turn.check()
                draft = Draft(number, body, length, digest)
                return StoredPart(part, existed=await settled(S3Folder(self._bucket, upload).add(draft)))

    async def _receive(
        self, turn: Turn, body: BinaryIO, grid: Grid, number: int, pieces: AsyncIterator[Buffer]
    ) -> str:
        """Reads the part's bytes into ``body``; answers their SHA-256 in hex."""
        length, size, digest = grid.length(number), 0, hashlib.sha256()

        def take(piece: Buffer) -> None:
            digest.update(piece)
            body.write(piece)

        while (piece := await turn.next(pieces)) is not None:
            size += len(piece)
            if size > length:
                raise grid.wrong_size(number, size)
            await self._run(take, piece)
        if size != length:
            raise grid.wrong_size(number, size)
        return digest.hexdigest()

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
            ledger = await self.list_parts(upload, grid)
            offset = ledger.offset(grid)
            grid = await admit(offset)
            folder = S3Folder(self._bucket, upload)
            with _storage_errors(), contextlib.ExitStack() as files:
                append = S3Append(folder, appender, files, self._run, grid, count, at_once=at_once)
                reached = await append.receive(offset, ledger.tail, pieces)
            # Parts that were there already lead further; a longer tail is another writer's, who may take it back.
            parts = replace(await self.list_parts(upload, grid), tail=None)
            return max(reached, parts.offset(grid))

    async def list_parts(self, upload: str, grid: Grid) -> Ledger:
        stored = [c async for c in S3Folder(self._bucket, upload).candidates() if c.number < grid.total]
        parts = dict.fromkeys(c.part for c in stored if c.sha256 and c.size == grid.length(c.number))
        numbers = {part.number for part in parts}
        first = next(n for n in range(grid.total + 1) if n not in numbers)
        length = max((c.size for c in stored if c.number == first and not c.sha256), default=0)
        return Ledger(
            tuple(parts),
            max((c.changed_at for c in stored), default=None),
            Tail(first, length) if length else None,
        )

    async def assemble(
        self, upload: str, grid: Grid, manifest: tuple[Part, ...], object_key: str, check: Check
    ) -> Whole:
        folder = S3Folder(self._bucket, upload)
        async with self._assembling:
            return await self._assembly.assemble(folder, grid, manifest, object_key, check)

    async def discard(self, upload: str) -> None:
        refusal = FailedPrecondition("the upload was given up", reason=Reason.UPLOAD_CLOSED)
        await self._turns.clear(upload, refusal)
        await S3Folder(self._bucket, upload).clear()

    async def remove(self, object_key: str) -> None:
        await self._objects.delete(object_key)

    async def list_uploads(self) -> AsyncIterator[Staged]:
        staged: Staged | None = None
        async for info in self._bucket.list(ROOT):  # in the order of keys, so an upload's are together
            upload = info.key.removeprefix(ROOT).partition("/")[0]
            if staged is not None and staged.upload != upload:
                yield staged
                staged = None
            latest = max(staged.changed_at, info.modified_at) if staged else info.modified_at
            staged = Staged(upload, latest)
        if staged is not None:
            yield staged

    async def tidy_every(self, seconds: float, *, grace: float) -> None:
        """Gives up multipart uploads that are older than ``grace`` seconds, now and again for ever."""
        while True:
            try:
                if given_up := await self._objects.tidy(datetime.now(UTC) - timedelta(seconds=grace)):
                    log.info("gave up %d multipart uploads that nobody completed", given_up)
            except ServiceError:
                log.exception("multipart uploads are left for the next sweep")
            await asyncio.sleep(seconds)

    async def _run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, functools.partial(call, *args, **kwargs))


@contextlib.contextmanager
def _storage_errors() -> Iterator[None]:
    """Names what can go wrong with a temporary file."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise ResourceExhausted(
                "the store is full; what was acknowledged is kept", reason=Reason.STORAGE_FULL, retry_after=30
            ) from error
        raise
