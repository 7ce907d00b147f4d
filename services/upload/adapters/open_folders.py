"""The upload folders that stay open: those in use, and those used last.

Opening a folder costs a listing of its names, which would cost every chunk more than its hash. One process owns
the directory and makes every name itself, so what it read once stays true.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.upload.adapters.upload_folder import Stored, UploadFolder

Run = Callable[..., Awaitable[Any]]
"""Runs a blocking call in the store's threads."""


@dataclass
class _Entry:
    folder: UploadFolder
    users: int = 0
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)


class OpenFolders:
    """The folders below ``root``; ``most``: how many stay open that nobody uses."""

    def __init__(self, root: Path, run: Run, *, durable: bool, most: int = 128) -> None:
        self._root = root
        self._run = run
        self._durable = durable
        self._most = most
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    @asynccontextmanager
    async def use(self, upload: str) -> AsyncIterator[UploadFolder]:
        """The upload's folder, open. Raises what :meth:`UploadFolder.open` raises."""
        entry = self._entries.get(upload)
        if entry is None:
            entry = self._entries[upload] = _Entry(UploadFolder(self._root / upload, durable=self._durable))
        self._entries.move_to_end(upload)
        entry.users += 1
        try:
            if entry.folder.stored is None:
                async with entry.opening:
                    if entry.folder.stored is None:
                        await self._run(entry.folder.open)
            yield entry.folder
        finally:
            entry.users -= 1
            self._settle(upload, entry)

    def stored(self, upload: str) -> Stored | None:
        """What an open folder holds, or None: nobody has it open."""
        entry = self._entries.get(upload)
        return None if entry is None else entry.folder.stored

    def forget(self, upload: str) -> None:
        """Closes a folder that was moved or removed, once its users have let go; whoever uses the upload next
        opens what there is then."""
        entry = self._entries.pop(upload, None)
        if entry is not None and not entry.users:
            entry.folder.close()

    def close(self) -> None:
        """Closes all."""
        for upload in list(self._entries):
            self.forget(upload)

    def _settle(self, upload: str, entry: _Entry) -> None:
        if entry.users:
            return
        if self._entries.get(upload) is not entry:
            entry.folder.close()
        idle = [name for name, other in self._entries.items() if not other.users] if self._full else []
        for name in idle[: len(self._entries) - self._most]:
            self.forget(name)

    @property
    def _full(self) -> bool:
        return len(self._entries) > self._most
