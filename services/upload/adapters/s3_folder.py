"""One upload's objects in a bucket: candidates for its parts and its tail, which never contradict each other.

A part is ``parts/<upload>/<n>-<sha256>-<writer>``, the beginning of one is ``parts/<upload>/<n>-tail-<writer>``.
The writer's token makes every key new, so no write replaces another, not even one of the same bytes. After a put
the candidates of n are listed: when one contradicts what was put, the writer removes its own object, which is
nobody else's, and is refused. So of contradicting writers, in whatever process, at most one is acknowledged.

What another writer has put may still be taken back by it, so nobody is acknowledged for that: who stores the same
bytes again puts an object too. Once a writer has looked and is content, its object only goes for another of the
same kind, which holds the same bytes or, of a tail, more.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO

from services.common.adapters.s3_bucket import S3Bucket
from services.common.errors import DataLoss, NotFound, ServiceError
from services.upload.grid import Part, conflict

ROOT = "parts/"

_NAME = re.compile(r"^(\d{1,9})-([0-9a-f]{64}|tail)-[0-9a-f]{16}$")
_DELETES = 8  # at once


@dataclass(frozen=True, slots=True)
class Candidate:
    """An object that holds the first ``size`` bytes of part ``number``: all of them, with this SHA-256 in hex, or
    a tail ("")."""

    key: str
    number: int
    size: int
    sha256: str
    changed_at: datetime

    @property
    def part(self) -> Part:
        return Part(self.number, self.size, self.sha256)


@dataclass(slots=True)
class Draft:
    """Bytes of a part in a temporary file; ``sha256`` in hex if they are all of it. ``within``: the keys of tails
    that they are known to begin with."""

    number: int
    body: BinaryIO
    length: int
    sha256: str = ""
    within: Collection[str] = ()

    def same(self, other: Candidate) -> bool:
        """Whether one that does not contradict this draft has the same bytes, and is a part or a tail as it is."""
        return (other.size, other.sha256) == (self.length, self.sha256)

    def replaces(self, other: Candidate) -> bool:
        """Whether one that does not contradict this draft is a tail that it makes needless."""
        return not other.sha256 and other.size <= self.length and not self.same(other)


class S3Folder:
    """The objects of ``upload``. Methods raise Unavailable and ResourceExhausted."""

    def __init__(self, bucket: S3Bucket, upload: str) -> None:
        self._bucket = bucket
        self._path = f"{ROOT}{upload}/"

    async def candidates(self, number: int | None = None) -> AsyncIterator[Candidate]:
        """Those of one part, or of all."""
        async for info in self._bucket.list(self._path + ("" if number is None else f"{number}-")):
            if match := _NAME.match(info.key.removeprefix(self._path)):
                sha256 = "" if match[2] == "tail" else match[2]
                yield Candidate(info.key, int(match[1]), info.size, sha256, info.modified_at)

    async def add(self, draft: Draft) -> bool:
        """Stores a part or a tail, in the place of the tails that it begins with; answers whether it is a part
        that was there already. Raises AlreadyExists (CHUNK_CONFLICT)."""
        others = await self._agreeing(draft)
        existed = any(c.sha256 for c in others)
        key = f"{self._path}{draft.number}-{draft.sha256 or 'tail'}-{secrets.token_hex(8)}"
        try:
            await asyncio.to_thread(draft.body.seek, 0)
            await self._bucket.put(key, draft.body, sha256=draft.sha256)
            draft.within = {key, *draft.within, *(c.key for c in others)}
            others = await self._agreeing(draft)
        except BaseException:
            with contextlib.suppress(ServiceError):
                await self._bucket.delete(key)
            raise
        # From here on nobody takes this one back. Of several of the same bytes that one stays whose key is the
        # least: else two writers would each remove the other's.
        await self._delete([c.key for c in others if draft.replaces(c) or (draft.same(c) and c.key > key)])
        return existed

    async def _agreeing(self, draft: Draft) -> list[Candidate]:
        """The candidates beside the draft. Raises AlreadyExists (CHUNK_CONFLICT) when one contradicts it."""
        found = [c async for c in self.candidates(draft.number)]
        for candidate in found:
            if candidate.key in draft.within or (candidate.sha256 and candidate.sha256 == draft.sha256):
                continue
            if (candidate.sha256 and draft.sha256) or not await self._same(candidate, draft):
                raise conflict(draft.number)
        return found

    async def _same(self, candidate: Candidate, draft: Draft) -> bool:
        """Whether one begins with the other."""
        length = min(candidate.size, draft.length)
        try:
            stored = await self._read(candidate.key, length)
        except NotFound:
            return True  # taken back by its writer, or replaced by what it was a part of
        await asyncio.to_thread(draft.body.seek, 0)
        return stored == await asyncio.to_thread(draft.body.read, length)

    async def body(self, candidate: Candidate) -> bytes:
        """A candidate's bytes. Raises DataLoss."""
        try:
            body = await self._read(candidate.key, candidate.size)
        except NotFound:
            body = b""
        if len(body) != candidate.size:
            raise DataLoss(f"chunk {candidate.number} of the upload is lost")
        return body

    async def _read(self, key: str, length: int) -> bytes:
        async with contextlib.aclosing(self._bucket.read(key, 0, length)) as pieces:
            return b"".join([piece async for piece in pieces])

    async def clear(self) -> None:
        """Removes everything."""
        await self._delete([info.key async for info in self._bucket.list(self._path)])

    async def _delete(self, keys: list[str]) -> None:
        for start in range(0, len(keys), _DELETES):
            await asyncio.gather(*map(self._bucket.delete, keys[start : start + _DELETES]))
