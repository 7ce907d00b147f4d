"""Objects' files that stay open between requests: a player's next range costs neither a thread nor a look-up.

An object never changes, so its file may be shared: sendfile(2) names its offsets. A file that was removed or
replaced since it was opened has no name any more, and is closed when that is seen: at its next use, or by the
sweep, because an open file keeps its place on the disk.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO

MOST = 128
_SWEEP_SECONDS = 10.0


class OpenFile:
    """An open file and its size when it was opened. Use it as a context, within which it is not closed."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self._users = 0
        self._dropped = False

    def __enter__(self) -> OpenFile:
        self._users += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        self._close()

    @property
    def gone(self) -> bool:
        """Whether the file has no name any more."""
        return os.fstat(self.file.fileno()).st_nlink == 0

    def drop(self) -> None:
        """Closes it once nobody uses it."""
        self._dropped = True
        self._close()

    def _close(self) -> None:
        if self._dropped and not self._users:
            self.file.close()


class OpenFiles:
    """At most ``most`` idle files, the last used ones."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._files: OrderedDict[str, OpenFile] = OrderedDict()
        self._sweeping: asyncio.TimerHandle | None = None

    def known(self, key: str) -> OpenFile | None:
        """The file of an object that is open already and still there."""
        found = self._files.get(key)
        if found is None:
            return None
        if found.gone:
            del self._files[key]
            found.drop()
            return None
        self._files.move_to_end(key)
        return found

    async def open(self, key: str, path: Path) -> OpenFile:
        """Opens the file of an object. Raises FileNotFoundError."""
        opened = OpenFile(await asyncio.to_thread(path.open, "rb"))
        if other := self._files.pop(key, None):  # opened meanwhile
            other.drop()
        self._files[key] = opened
        while len(self._files) > self._most:
            self._files.popitem(last=False)[1].drop()
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._sweep_again)
        return opened

    def sweep(self) -> None:
        """Lets go of the files of objects that are gone."""
        for key in [key for key, file in self._files.items() if file.gone]:
            self._files.pop(key).drop()

    def _sweep_again(self) -> None:
        self.sweep()
        loop = asyncio.get_running_loop()
        self._sweeping = loop.call_later(_SWEEP_SECONDS, self._sweep_again) if self._files else None

    def close(self) -> None:
        """Closes all that nobody uses; the rest goes when its users have."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        while self._files:
            self._files.popitem()[1].drop()
