"""The virus scan of an assembled file. Until it is done the upload stays *assembling*, so nobody can read it.

It fails closed: a file of which the scanner does not say in so many words that it is clean stays where it is, and
complete, called again, or the sweep has it scanned again.
"""

from __future__ import annotations

from contextlib import aclosing

from services.common.errors import DataLoss, NotFound
from services.common.objects import ObjectStore
from services.upload.ports import Scanner


class Infected(Exception):
    """The scanner found this in the file."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Quarantine:
    """Holds assembled files back until ``scanner`` has seen them; without one it lets all pass."""

    def __init__(self, objects: ObjectStore, scanner: Scanner | None) -> None:
        self._objects = objects
        self._scanner = scanner

    async def inspect(self, object_key: str) -> None:
        """Raises Infected, Unavailable (SCANNER_UNAVAILABLE), DataLoss when the file is gone."""
        if self._scanner is None:
            return
        try:
            async with aclosing(self._objects.read(object_key)) as pieces:
                found = await self._scanner.scan(pieces)
        except NotFound:
            raise DataLoss("the assembled file is lost") from None
        if found:
            raise Infected(found)
