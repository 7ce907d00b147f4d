"""The part store in a directory, on one machine.

``<root>/parts/<upload>/data`` is a sparse file in which each part is written once, at its place in the file;
beside it an empty *receipt* ``<n>-<sha256>`` says that part n is there with these bytes. The receipt is made
after the part's digest was verified, so a kill at any moment leaves either a part or bytes that the next
writer of the part overwrites. Assembling verifies, then moves the data file into the object store: one rename
when that has the same root. What was moved before a kill is found there and not asked for again.

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
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Literal, ParamSpec, TypeVar

from services.common.errors import DataLoss, NotFound
from services.common.objects import ObjectStore
from services.upload.adapters import upload_folder
from services.upload.adapters.turns import Turn, Turns
from services.upload.adapters.upload_folder import UploadFolder
from services.upload.domain import Whole
from services.upload.grid import Grid, Part, conflict
from services.upload.ports import Check, Confirm, Ledger, Staged, StoredPart
from services.upload.signatures import HEAD_BYTES

P = ParamSpec("P")
T = TypeVar("T")

_SLICE = 8 << 20  # bytes hashed in one go, so that writers of parts get their turn in the executor


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

    def __enter__(self) -> DirectoryPartStore:
        """Takes the directory. Raises OSError when another process has it."""
        self._root.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise OSError(f"{self._root} is in use by another upload service") from None
        self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="parts")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown()
        os.close(self._lock)

    async def put_part(
        self, upload: str, grid: Grid, number: int, pieces: AsyncIterator[bytes], confirm: Confirm
    ) -> StoredPart:
        grid.bounds(number)
        async with self._turns.take(upload, number) as turn:
            with contextlib.closing(UploadFolder(self._root / upload, durable=self._durable)) as folder:
                stored = await self._run(folder.open, number)
                digest = await self._receive(turn, folder, grid, number, pieces, write=stored is None)
                part = Part(number, grid.length(number), digest)
                await confirm(part)
                if stored is None:
                    await self._run(folder.acknowledge, part)
                elif stored != digest:
                    raise conflict(number)
                return StoredPart(part, existed=stored is not None)

    async def _receive(
        self,
        turn: Turn,
        folder: UploadFolder,
        grid: Grid,
        number: int,
        pieces: AsyncIterator[bytes],
        *,
        write: bool,
    ) -> str:
        """Reads the part's bytes, puts them in their place if ``write``, answers their SHA-256 in hex."""
        start, end = grid.bounds(number)
        digest, place = hashlib.sha256(), start

        def take(piece: bytes, offset: int) -> None:
            digest.update(piece)
            if write:
                folder.write(piece, offset)

        while (piece := await turn.next(pieces)) is not None:
            if place + len(piece) > end:
                raise grid.wrong_size(number, place + len(piece) - start)
            await self._run(take, piece, place)
            place += len(piece)
        if place != end:
            raise grid.wrong_size(number, place - start)
        return digest.hexdigest()

    async def list_parts(self, upload: str, grid: Grid) -> Ledger:
        return await self._run(upload_folder.ledger, self._root / upload, grid)

    async def assemble(
        self, upload: str, grid: Grid, manifest: tuple[Part, ...], object_key: str, check: Check
    ) -> Whole:
        folder = self._root / upload
        if (moved := await self._moved(object_key, grid)) is not None:
            check(moved)
            return moved
        await self._run(upload_folder.verify, folder, grid, manifest)
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
        whole = Whole(grid.size, digest.hexdigest(), head)
        check(whole)
        await self._objects.put_file(object_key, folder / upload_folder.DATA)  # syncs before it renames
        return whole

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
        await self._run(upload_folder.remove, self._root / upload)

    async def remove(self, object_key: str) -> None:
        await self._objects.delete(object_key)

    async def list_uploads(self) -> AsyncIterator[Staged]:
        for staged in await self._run(upload_folder.staged, self._root):
            yield staged

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
