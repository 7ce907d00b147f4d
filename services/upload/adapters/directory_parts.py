"""The part store in a directory, on one machine.

``<root>/parts/<upload>/data`` is a sparse file in which each part is written once, at its place in the file;
beside it an empty *receipt* ``<n>-<sha256>`` says that part n is there with these bytes. The receipt is made
after the part's digest was verified, so a kill at any moment leaves either a part or bytes that the next
writer of the part overwrites. Bytes that are appended go to the same places (:mod:`.appending`). Assembling
verifies, then moves the data file into the object store: one rename when that has the same root. What was moved
before a kill is found there and not asked for again.

One process owns the directory (flock), and one writer at a time a part (:mod:`.turns`). The kernel keeps what
was written when a process is killed; for a loss of power too, ``fsync="part"`` syncs data and receipt before
a part is acknowledged, ``"complete"`` only the finished file.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import hashlib
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, ParamSpec, TypeVar

from services.common.errors import DataLoss, NotFound
from services.common.objects import ObjectStore
from services.common.wire import Buffer
from services.upload.adapters import upload_folder
from services.upload.adapters.appending import Append, Known
from services.upload.adapters.open_folders import OpenFolders
from services.upload.adapters.turns import Turn, Turns
from services.upload.adapters.upload_folder import Stored, UploadFolder
from services.upload.domain import Whole
from services.upload.grid import Grid, Part, conflict
from services.upload.ports import Admit, Check, Confirm, Counting, Ledger, Staged, StoredPart
from services.upload.signatures import HEAD_BYTES

P = ParamSpec("P")
T = TypeVar("T")

_NICENESS = 5
_SLICE = 8 << 20  # bytes hashed in one go, so that writers of parts get their turn in the executor


def _give_way() -> None:
    """Lets the event loop go before this thread: whoever asks for a status does not wait for others' bytes. (Linux
    has priorities for threads.)"""
    if sys.platform == "linux":
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


@dataclass(frozen=True, slots=True)
class _Target:
    """Where a part's bytes go: the first ``tail`` of them are there already, and others are refused."""

    folder: UploadFolder
    number: int
    start: int
    tail: int

    def put(self, piece: Buffer, offset: int) -> None:
        there = min(max(self.start + self.tail - offset, 0), len(piece))
        if there and not self.folder.same(piece[:there], offset):
            raise conflict(self.number)
        if there < len(piece):
            self.folder.write(memoryview(piece)[there:], offset + there)


class DirectoryPartStore:
    """Implements :class:`services.upload.ports.PartStore` below ``root``; a context manager.

    ``objects`` takes the finished files. ``threads``: how many parts are hashed and written at once.
    """

    def __init__(
        self,
        root: Path,
        objects: ObjectStore,
        *,
        fsync: Literal["part", "complete"] = "complete",
        threads: int = 2,
    ) -> None:
        self._root = root / "parts"
        self._lock_path = root / "parts.lock"
        self._objects = objects
        self._durable = fsync == "part"
        self._threads = threads
        self._turns = Turns()
        self._known: dict[str, Known] = {}
        self._folders = OpenFolders(self._root, self._run, durable=self._durable)

    def __enter__(self) -> DirectoryPartStore:
        """Takes the directory. Raises OSError when another process has it."""
        self._root.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise OSError(f"{self._root} is in use by another upload service") from None
        self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="parts", initializer=_give_way)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown()
        self._folders.close()
        os.close(self._lock)

    async def put_part(
        self, upload: str, grid: Grid, number: int, pieces: AsyncIterator[Buffer], confirm: Confirm
    ) -> StoredPart:
        grid.bounds(number)
        async with self._turns.take(upload, number) as turn, self._folders.use(upload) as folder:
            stored = await self._stored(folder)
            before, tail = stored.digests.get(number), stored.tail_of(number)
            target = None if before else _Target(folder, number, grid.bounds(number)[0], tail)
            digest = await self._receive(turn, grid, number, pieces, target)
            part = Part(number, grid.length(number), digest)
            await confirm(part)
            if before is None:
                await self._run(folder.acknowledge, part, tail)
            elif before != digest:
                raise conflict(number)
            return StoredPart(part, existed=before is not None)

    async def _receive(
        self, turn: Turn, grid: Grid, number: int, pieces: AsyncIterator[Buffer], target: _Target | None
    ) -> str:
        """Reads the part's bytes, puts them in their place if there is a target, answers their SHA-256 in hex."""
        start, end = grid.bounds(number)
        digest, place = hashlib.sha256(), start

        def take(piece: Buffer, offset: int) -> None:
            digest.update(piece)
            if target is not None:
                target.put(piece, offset)

        while (piece := await turn.next(pieces)) is not None:
            if place + len(piece) > end:
                raise grid.wrong_size(number, place + len(piece) - start)
            await self._run(take, piece, place)
            place += len(piece)
        if place != end:
            raise grid.wrong_size(number, place - start)
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
        async with self._turns.append(upload, keep=at_once) as appender, self._folders.use(upload) as folder:
            stored = await self._stored(folder)
            offset, tail = grid.offset(stored.digests, stored.tail), stored.tail
            grid = await admit(offset)
            append = Append(
                folder,
                appender,
                self._run,
                grid,
                count,
                known=self._known.pop(upload, None),
                durable=self._durable,
                at_once=at_once,
            )
            try:
                await append.receive(offset, tail, pieces)
            finally:
                if append.known is not None:
                    self._known[upload] = append.known
            stored = await self._stored(folder)
            return grid.offset(stored.digests, stored.tail)

    async def list_parts(self, upload: str, grid: Grid) -> Ledger:
        if (stored := self._folders.stored(upload)) is not None:
            return stored.ledger(grid)
        return await self._run(upload_folder.ledger, self._root / upload, grid)

    async def assemble(
        self, upload: str, grid: Grid, manifest: tuple[Part, ...], object_key: str, check: Check
    ) -> Whole:
        folder = self._root / upload
        if (moved := await self._moved(object_key, grid)) is not None:
            check(moved)
            return moved
        await self._run(upload_folder.verify, folder, grid, manifest)
        # The disk has its work while the processor has its own; put_file then finds little left to sync.
        whole, _ = await asyncio.gather(self._hash(folder, grid), asyncio.to_thread(upload_folder.sync, folder))
        check(whole)
        try:
            await self._objects.put_file(object_key, folder / upload_folder.DATA)  # syncs before it renames
        finally:
            self._folders.forget(upload)
        return whole

    async def _hash(self, folder: Path, grid: Grid) -> Whole:
        digest, head = hashlib.sha256(), b""

        def take(offset: int) -> bytes:
            with (folder / upload_folder.DATA).open("rb") as file:
                file.seek(offset)
                piece = file.read(_SLICE)
            digest.update(piece)
            return piece[:HEAD_BYTES]

        for offset in range(0, grid.size, _SLICE):
            first = await self._run(take, offset)
            head = head or first
        return Whole(grid.size, digest.hexdigest(), head)

    async def _moved(self, object_key: str, grid: Grid) -> Whole | None:
        """The file that a call which was cut off has moved already, or None."""
        try:
            stored = await self._objects.stat(object_key)
        except NotFound:
            return None
        if stored.size != grid.size:
            raise DataLoss("the assembled file has another size than the upload")
        digest, head = hashlib.sha256(), b""
        async for piece in self._objects.read(object_key):
            head = head or piece[:HEAD_BYTES]
            await self._run(digest.update, piece)
        return Whole(grid.size, digest.hexdigest(), head)

    async def discard(self, upload: str) -> None:
        await self._turns.clear(upload, upload_folder.discarded())
        self._known.pop(upload, None)
        self._folders.forget(upload)  # closed first: the last to let go of a large file frees it, here a thread
        try:
            await self._run(upload_folder.remove, self._root / upload)
        finally:
            self._folders.forget(upload)

    async def remove(self, object_key: str) -> None:
        await self._objects.delete(object_key)

    async def list_uploads(self) -> AsyncIterator[Staged]:
        for staged in await self._run(upload_folder.staged, self._root):
            yield staged

    async def _stored(self, folder: UploadFolder) -> Stored:
        return folder.stored if folder.stored is not None else await self._run(folder.open)

    async def _run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs ``call`` in the executor. A cancelled caller waits for it to end first, so that no thread still
        touches a file whose descriptor was closed or whose turn was given away."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._executor, functools.partial(call, *args, **kwargs))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            while not future.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([future])
            future.exception()  # seen, so that it is not logged as forgotten
            raise
