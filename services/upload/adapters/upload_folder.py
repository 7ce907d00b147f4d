"""One upload's directory: the sparse file, the receipts, and what may go wrong on a disk. Blocking.

The layout and what it promises are told in :mod:`.directory_parts`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from services.common.errors import DataLoss, FailedPrecondition, ResourceExhausted
from services.common.wire import Buffer
from services.upload.grid import Grid, Part, Tail
from services.upload.ports import Ledger, Staged
from services.upload.reasons import Reason

DATA = "data"
"""The name of the sparse file."""

_RECEIPT = re.compile(r"^(\d+)-([0-9a-f]{64})$")
_TAIL = re.compile(r"^tail-(\d+)-(\d+)$")
_SLICE = 1 << 20
_EMPTY = "empty"
_NO_LINKS = (errno.EMLINK, errno.EPERM, errno.ENOTSUP, errno.EXDEV)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(slots=True)
class Stored:
    """What the names in a folder say: the SHA-256 in hex of each part by its number, the tail, and when the last
    bytes came (None without any)."""

    digests: dict[int, str] = field(default_factory=dict)
    tail: Tail | None = None
    changed_at: datetime | None = None

    @classmethod
    def read(cls, names: list[str], changed: float) -> Stored:
        digests = {int(m[1]): m[2] for m in map(_RECEIPT.match, names) if m}
        # A tail whose part became whole may have been left behind by a kill: the part counts.
        tails = [Tail(int(m[1]), int(m[2])) for m in map(_TAIL.match, names) if m and int(m[1]) not in digests]
        tail = max(tails, key=lambda tail: (tail.number, tail.length), default=None)
        return cls(digests, tail, datetime.fromtimestamp(changed, UTC) if digests or tail else None)

    def tail_of(self, number: int) -> int:
        """How many bytes of this part are stored as the tail."""
        return self.tail.length if self.tail is not None and self.tail.number == number else 0

    def ledger(self, grid: Grid) -> Ledger:
        """The parts and the tail, also while a thread makes more of them."""
        tail, digests = self.tail, self.digests.copy()  # in this order: a tail becomes a part
        last = grid.total - 1
        parts = tuple(
            Part(number, grid.chunk_size if number < last else grid.length(number), digest)
            for number, digest in digests.items()
        )
        return Ledger(parts, self.changed_at, None if tail is None or tail.number in digests else tail)


class UploadFolder:
    """An upload's directory, for one writer of each part. It is reached by descriptor: once discarded, what is
    made later under the same name is never touched. Methods raise FailedPrecondition (UPLOAD_CLOSED) when it was
    discarded, ResourceExhausted (STORAGE_FULL)."""

    def __init__(self, path: Path, *, durable: bool) -> None:
        self.stored: Stored | None = None
        """What is stored; None before :meth:`open`, and after a name could not be made: then open it again."""
        self._path = path
        self._durable = durable
        self._directory = self._data = -1
        self._names = threading.Lock()

    def open(self) -> Stored:
        """Makes what is missing; answers what is stored."""
        with self._names, storage_errors():
            if self._directory < 0:
                with contextlib.suppress(FileExistsError):
                    self._path.mkdir()
                    if self._durable:
                        _sync_directory(self._path.parent)
                self._directory = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
            if self._data < 0:
                self._data = os.open(DATA, os.O_RDWR | os.O_CREAT, 0o644, dir_fd=self._directory)
            return self._read()

    def _read(self) -> Stored:
        self.stored = Stored.read(os.listdir(self._directory), os.fstat(self._directory).st_mtime)
        return self.stored

    def close(self) -> None:
        for descriptor in (self._data, self._directory):
            if descriptor >= 0:
                os.close(descriptor)
        self._data = self._directory = -1
        self.stored = None

    def write(self, piece: Buffer, offset: int) -> None:
        view = memoryview(piece)
        with storage_errors():
            while view:
                written = os.pwrite(self._data, view, offset)
                view, offset = view[written:], offset + written

    def same(self, piece: Buffer, offset: int) -> bool:
        """Whether these bytes are in the file at this place."""
        return os.pread(self._data, len(piece), offset) == piece

    def digest(self, offset: int, length: int) -> hashlib._Hash:
        """The SHA-256 of bytes of the file."""
        digest, end = hashlib.sha256(), offset + length
        while offset < end:
            piece = os.pread(self._data, min(_SLICE, end - offset), offset)
            if not piece:
                raise DataLoss("the upload's bytes are lost")
            digest.update(piece)
            offset += len(piece)
        return digest

    def acknowledge(self, part: Part, tail: int) -> None:
        """Lets the part exist, of which the first ``tail`` bytes were the tail."""
        with storage_errors():
            if self._durable:
                os.fdatasync(self._data)
            with self._naming() as stored:
                self._make(f"{part.number}-{part.sha256}")
                stored.digests[part.number] = part.sha256
                if tail:
                    stored.tail = None
            if self._durable:
                os.fsync(self._directory)
            if tail:
                os.unlink(f"tail-{part.number}-{tail}", dir_fd=self._directory)

    @contextlib.contextmanager
    def _naming(self) -> Iterator[Stored]:
        """One thread at a time makes names and tells what it made; when that fails, the names are read again."""
        with self._names:
            stored = self.stored or self._read()
            try:
                yield stored
            except BaseException:
                self.stored = None
                raise
            stored.changed_at = datetime.now(UTC)

    def _make(self, receipt: str) -> None:
        """An empty file of this name that must not exist: one more name for the same empty file, where the file
        system lets us, for a new inode costs ext4 a third of a millisecond."""
        directory = self._directory
        for _ in range(2):
            try:
                os.link(_EMPTY, receipt, src_dir_fd=directory, dst_dir_fd=directory)
            except FileNotFoundError:
                os.close(os.open(_EMPTY, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=directory))
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                break
            else:
                return
        os.close(os.open(receipt, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=directory))

    def extend(self, number: int, before: int, length: int) -> None:
        """Lets the first ``length`` bytes of this part be the tail, of which ``before`` bytes were."""
        with storage_errors():
            if self._durable:
                os.fdatasync(self._data)
            name = f"tail-{number}-{length}"
            with self._naming() as stored:
                if before:
                    os.rename(
                        f"tail-{number}-{before}", name, src_dir_fd=self._directory, dst_dir_fd=self._directory
                    )
                else:
                    os.close(os.open(name, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=self._directory))
                stored.tail = Tail(number, length)
            if self._durable:
                os.fsync(self._directory)


def ledger(folder: Path, grid: Grid) -> Ledger:
    """What is stored in a folder that nobody has open."""
    try:
        names, changed = os.listdir(folder), folder.stat().st_mtime
    except FileNotFoundError:
        return Ledger()
    return Stored.read(names, changed).ledger(grid)


def verify(folder: Path, grid: Grid, manifest: tuple[Part, ...]) -> None:
    """Raises DataLoss when the folder does not hold the parts of the manifest."""
    stored = set(ledger(folder, grid).parts)
    for part in manifest:
        if part not in stored:
            raise DataLoss(f"chunk {part.number} of the upload is lost")
    size = (folder / DATA).stat().st_size
    if size < grid.size:
        raise DataLoss("the upload's bytes are lost")
    if size > grid.size:  # bytes that never counted, from before the upload's length was told
        os.truncate(folder / DATA, grid.size)


def sync(folder: Path) -> None:
    """Has the disk take the bytes."""
    with storage_errors(), (folder / DATA).open("rb") as file:
        os.fdatasync(file.fileno())


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
def storage_errors() -> Iterator[None]:
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
