"""One upload's directory: the sparse file, the receipts, and what may go wrong on a disk. Blocking.

The layout and what it promises are told in :mod:`.directory_parts`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from services.common.errors import DataLoss, FailedPrecondition, ResourceExhausted
from services.upload.grid import Grid, Part
from services.upload.ports import Ledger, Staged
from services.upload.reasons import Reason

DATA = "data"
"""The name of the sparse file."""

_RECEIPT = re.compile(r"^(\d+)-([0-9a-f]{64})$")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UploadFolder:
    """An upload's directory, for one writer. It is reached by descriptor: once discarded, what is made later under
    the same name is never touched. Methods raise FailedPrecondition (UPLOAD_CLOSED) when it was discarded,
    ResourceExhausted (STORAGE_FULL)."""

    def __init__(self, path: Path, *, durable: bool) -> None:
        self._path = path
        self._durable = durable
        self._directory = self._data = -1

    def open(self, number: int) -> str | None:
        """Makes what is missing; answers the SHA-256 in hex of the stored part, or None."""
        with _storage_errors():
            with contextlib.suppress(FileExistsError):
                self._path.mkdir()
                if self._durable:
                    _sync_directory(self._path.parent)
            self._directory = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
            self._data = os.open(DATA, os.O_RDWR | os.O_CREAT, 0o644, dir_fd=self._directory)
            for match in map(_RECEIPT.match, os.listdir(self._directory)):
                if match and int(match[1]) == number:
                    return match[2]
        return None

    def close(self) -> None:
        for descriptor in (self._data, self._directory):
            if descriptor >= 0:
                os.close(descriptor)

    def write(self, piece: bytes, offset: int) -> None:
        view = memoryview(piece)
        with _storage_errors():
            while view:
                written = os.pwrite(self._data, view, offset)
                view, offset = view[written:], offset + written

    def acknowledge(self, part: Part) -> None:
        """Lets the part exist."""
        receipt = f"{part.number}-{part.sha256}"
        with _storage_errors():
            if self._durable:
                os.fdatasync(self._data)
            os.close(os.open(receipt, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=self._directory))
            if self._durable:
                os.fsync(self._directory)


def ledger(folder: Path, grid: Grid) -> Ledger:
    try:
        names, changed = os.listdir(folder), folder.stat().st_mtime
    except FileNotFoundError:
        return Ledger()
    found = [(int(m[1]), m[2]) for m in map(_RECEIPT.match, names) if m]
    parts = tuple(Part(number, grid.length(number), digest) for number, digest in found)
    return Ledger(parts, datetime.fromtimestamp(changed, UTC) if parts else None)


def verify(folder: Path, grid: Grid, manifest: tuple[Part, ...]) -> None:
    """Raises DataLoss when the folder does not hold the parts of the manifest."""
    stored = set(ledger(folder, grid).parts)
    for part in manifest:
        if part not in stored:
            raise DataLoss(f"chunk {part.number} of the upload is lost")
    if (folder / DATA).stat().st_size != grid.size:
        raise DataLoss("the upload's bytes are lost")


def staged(root: Path) -> list[Staged]:
    """The upload folders below ``root``."""
    found = []
    for entry in os.scandir(root):
        with contextlib.suppress(FileNotFoundError):
            found.append(Staged(entry.name, datetime.fromtimestamp(entry.stat().st_mtime, UTC)))
    return found


def remove(folder: Path) -> None:
    """Removes an upload's folder. One that a late writer fills again meanwhile is left to the next sweep."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
            raise


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _storage_errors() -> Iterator[None]:
    """Names what can go wrong while a part is written."""
    try:
        yield
    except FileNotFoundError:
        raise discarded() from None
    except OSError as error:
        if error.errno in _FULL:
            raise ResourceExhausted(
                "the store is full; what was acknowledged is kept", reason=Reason.STORAGE_FULL, retry_after=30
            ) from error
        raise


def discarded() -> FailedPrecondition:
    return FailedPrecondition("the upload was given up", reason=Reason.UPLOAD_CLOSED)
