"""Scratch folders: where a job's files lie while it runs. What a killed worker left is removed by the next."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path


class Scratch:
    """Folders of one worker below ``root``. The worker holds a lock on its own; a folder nobody locks is left
    from a worker that died. The root's lock keeps workers that start together from taking a folder that its owner
    has yet to lock for such a one."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root):
            _remove_abandoned(root)
            self._own = root / uuid.uuid4().hex
            self._own.mkdir()
            self._lock = os.open(self._own, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    @asynccontextmanager
    async def folder(self) -> AsyncIterator[Path]:
        """A new folder, removed with all that is in it at the end."""
        path = self._own / uuid.uuid4().hex
        path.mkdir()
        try:
            yield path
        finally:
            await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)

    def close(self) -> None:
        """Removes the worker's folder."""
        shutil.rmtree(self._own, ignore_errors=True)
        os.close(self._lock)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    descriptor = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(root: Path) -> None:
    for folder in root.iterdir():
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)
