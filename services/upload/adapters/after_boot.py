"""What a loss of power left of the uploads in a directory, when chunks are not synced one by one.

Then a receipt may have reached the disk and its bytes may not. So each upload's folder says under which boot of
the machine all that it holds was written or looked at: the empty file ``boot.<boot id>``. Where that of the
present boot is missing, the folder is looked at before anything else is done with it: receipts whose bytes do not
have that digest are removed, and so are tails, of which nobody can tell. What is gone is missing like any chunk
that never came, and sent again.

One look a boot and an upload; a process that is killed and started again finds the file. While it cannot be made,
on a full disk say, nothing is taken for the upload: the next process would remove tails that were acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from services.common.errors import ServiceError
from services.common.wire import Buffer
from services.upload.adapters import upload_folder
from services.upload.domain import Whole
from services.upload.grid import Grid, Part
from services.upload.ports import Admit, Check, Confirm, Counting, Ledger, PartStore, StoredPart

log = logging.getLogger(__name__)

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SLICE = 1 << 20


def boot_id() -> str:
    """Names the present boot of this machine; "" where it has no such name."""
    try:
        return _BOOT_ID.read_text().strip().replace("-", "")
    except OSError:
        return ""


class SoundParts:
    """A :class:`services.upload.ports.PartStore` in the directory ``root`` whose folders were looked at in the
    boot named ``boot`` before ``inner`` touches them."""

    def __init__(self, inner: PartStore, root: Path, *, boot: str) -> None:
        self._inner = inner
        self._root = root / "parts"
        self._boot = boot
        self._sound: set[str] = set()
        self._looks: dict[str, asyncio.Task[bool]] = {}
        self.remove = inner.remove
        self.list_uploads = inner.list_uploads

    async def put_part(
        self, upload: str, grid: Grid, number: int, pieces: AsyncIterator[Buffer], confirm: Confirm
    ) -> StoredPart:
        await self._look(upload, grid, make=True)
        return await self._inner.put_part(upload, grid, number, pieces, confirm)

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
        await self._look(upload, grid, make=True)
        return await self._inner.append_tail(upload, grid, admit, pieces, count, at_once=at_once)

    async def list_parts(self, upload: str, grid: Grid) -> Ledger:
        await self._look(upload, grid)
        return await self._inner.list_parts(upload, grid)

    async def assemble(
        self, upload: str, grid: Grid, manifest: tuple[Part, ...], object_key: str, check: Check
    ) -> Whole:
        await self._look(upload, grid)
        return await self._inner.assemble(upload, grid, manifest, object_key, check)

    async def discard(self, upload: str) -> None:
        await self._inner.discard(upload)
        self._sound.discard(upload)

    async def _look(self, upload: str, grid: Grid, *, make: bool = False) -> None:
        while upload not in self._sound:
            if upload not in self._looks:
                looking = self._look_once(upload, grid, make=make)
                self._looks[upload] = asyncio.create_task(looking, name=f"look at {upload}")
            if not await asyncio.shield(self._looks[upload]) and not make:
                return

    async def _look_once(self, upload: str, grid: Grid, *, make: bool) -> bool:
        try:
            found = await asyncio.to_thread(look, self._root / upload, grid, self._boot, make=make)
        finally:
            del self._looks[upload]
        if found:
            self._sound.add(upload)
        return found


def look(folder: Path, grid: Grid, boot: str, *, make: bool) -> bool:
    """Removes what a boot before this one left wrong in the folder, which is made if it is missing and ``make``
    says so. False when there is none, or it cannot be marked; with ``make`` that raises ResourceExhausted
    (STORAGE_FULL). Blocking."""
    mark = folder / f"boot.{boot}"
    if mark.exists():
        return True
    if make:
        with upload_folder.storage_errors(), contextlib.suppress(FileExistsError):
            folder.mkdir()
    if not folder.exists():
        return False
    for part in upload_folder.ledger(folder, grid).parts:
        if not _holds(folder / upload_folder.DATA, grid, part):
            log.warning("chunk lost", extra={"data": {"upload": folder.name, "chunk": part.number}})
            (folder / f"{part.number}-{part.sha256}").unlink(missing_ok=True)
    for left in (*folder.glob("tail-*"), *folder.glob("boot.*")):
        left.unlink(missing_ok=True)
    try:
        with upload_folder.storage_errors():
            mark.touch()
    except (ServiceError, OSError):
        if make:
            raise
        return False
    return True


def _holds(data: Path, grid: Grid, part: Part) -> bool:
    try:
        with data.open("rb") as file:
            file.seek(grid.bounds(part.number)[0])
            return _sha256(file, part.length) == part.sha256
    except FileNotFoundError:
        return False


def _sha256(file: BinaryIO, length: int) -> str:
    digest = hashlib.sha256()
    while length and (piece := file.read(min(_SLICE, length))):
        digest.update(piece)
        length -= len(piece)
    return digest.hexdigest()
