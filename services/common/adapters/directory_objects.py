"""The object store in a directory: object ``a/b`` is the file ``<root>/objects/a/b``.

An object appears by rename, so it is whole or not there; the file and its directory are synced before the
call returns, so that it survives a loss of power.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from services.common.errors import NotFound, ResourceExhausted
from services.common.objects import ObjectInfo, require_key

_PIECE = 1 << 20
_ATTEMPTS = 20  # while others delete the last object beside ours, and the folder with it


class DirectoryObjectStore:
    """Implements :class:`services.common.objects.ObjectStore` below ``root``, which is made if missing."""

    def __init__(self, root: Path) -> None:
        self._objects = root / "objects"
        self._incoming = root / "incoming"  # the same file system, outside of what list() sees

    async def tidy(self, before: datetime) -> int:
        """Removes what was being copied in when its process died, if nothing was written to it since ``before``;
        how many files it was."""
        return await asyncio.to_thread(self._tidy, before.timestamp())

    def _tidy(self, before: float) -> int:
        removed = 0
        for staged in self._incoming.glob("*"):
            with contextlib.suppress(FileNotFoundError):  # another process is as tidy
                if staged.stat().st_mtime < before:
                    staged.unlink()
                    removed += 1
        return removed

    async def put_file(self, key: str, source: Path) -> ObjectInfo:
        return await asyncio.to_thread(self._put, key, source)

    def _put(self, key: str, source: Path) -> ObjectInfo:
        target = self._path(key)
        try:
            _sync(source)
            self._place(source, target)
            for folder in (target.parent, *target.parent.parents):  # any of them may be new
                _sync(folder)
                if folder == self._objects.parent:
                    break
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ResourceExhausted(
                    "the object store is full", reason="STORAGE_FULL", retry_after=60
                ) from error
            raise
        return self._info(key, target)

    def _place(self, source: Path, target: Path) -> None:
        for _ in range(_ATTEMPTS):
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                source.replace(target)
            except (FileNotFoundError, FileExistsError):  # the latter: removed between mkdir and its own look
                if not source.exists():
                    raise
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                self._copy(source, target)
                return
            else:
                return
        raise FileNotFoundError(errno.ENOENT, "its folder was removed again and again", str(target))

    def _copy(self, source: Path, target: Path) -> None:
        self._incoming.mkdir(parents=True, exist_ok=True)
        staged = self._incoming / uuid.uuid4().hex
        try:
            shutil.copyfile(source, staged)
            _sync(staged)
            staged.replace(target)
        finally:
            staged.unlink(missing_ok=True)
        source.unlink()

    async def stat(self, key: str) -> ObjectInfo:
        return await asyncio.to_thread(self._info, key, self._path(key))

    @staticmethod
    def _info(key: str, path: Path) -> ObjectInfo:
        try:
            stat = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"no object {key}") from None
        return ObjectInfo(key, stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC))

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        try:
            file = await asyncio.to_thread(self._path(key).open, "rb")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFound(f"no object {key}") from None
        with file:
            await asyncio.to_thread(file.seek, start)
            left = None if end is None else end - start
            while left is None or left > 0:
                piece = await asyncio.to_thread(file.read, _PIECE if left is None else min(_PIECE, left))
                if not piece:
                    return
                left = None if left is None else left - len(piece)
                yield piece

    async def delete(self, key: str) -> None:
        path = self._path(key)
        await asyncio.to_thread(self._delete, path)

    def _delete(self, path: Path) -> None:
        """Removes the file and the folders that are empty without it: there is one for each session."""
        path.unlink(missing_ok=True)
        for folder in path.parents:
            if folder == self._objects:
                return
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError:  # not empty
                return

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        for info in await asyncio.to_thread(self._below, prefix):
            yield info

    def _below(self, prefix: str) -> Sequence[ObjectInfo]:
        found = []
        # The last "/" of the prefix is as deep as the walk may begin.
        for folder, _, names in os.walk(self._objects / prefix.rpartition("/")[0]):
            for name in names:
                path = Path(folder, name)
                key = path.relative_to(self._objects).as_posix()
                if key.startswith(prefix):
                    with contextlib.suppress(NotFound):  # deleted since
                        found.append(self._info(key, path))
        return found

    def local_path(self, key: str) -> Path | None:
        path = self._path(key)
        return path if path.is_file() else None

    def _path(self, key: str) -> Path:
        return self._objects / require_key(key)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
