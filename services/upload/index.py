"""The index of uploads that are not over: what lists, searches and sweeps read instead of all records.

The record of a completed upload stays as long as its file, so most records are such. The index names the uploads
that are not over, at the keys ``open.<record key>`` and, from before the manifest is fixed,
``assembling.<record key>``. An entry is written before the record that it tells of and removed after that is over:
what is cut off in between leaves an entry too many, never one too few, and the sweep, which reads the record of
each entry that is due, takes it away. Entries are listed as they were written, in which order uploads expire; so
the sweep reads up to the first that is not due. (When the expiry is set shorter, the newer wait for the older.)

At ``request.<record key>`` stands which upload answered a request that did not make one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeAlias

from services.common.clock import Clock
from services.common.errors import Aborted, ServiceError
from services.common.state import Entry, RevisionConflict, StateStore, owner_prefix
from services.upload.domain import Upload, UploadState
from services.upload.ports import UploadStore

log = logging.getLogger(__name__)

_OPEN, _ASSEMBLING, _REQUEST = "open", "assembling", "request"
_SETTLING = timedelta(minutes=10)  # for which what is announced may still be on its way
_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class Noted:
    """An entry, field by field ``twotruths.upload.v1.UploadIndexRecord``, which says what each is."""

    upload_id: str
    created_at: datetime
    look_at: datetime
    promised_sha256: str = ""
    request_fingerprint: str = ""


IndexStore: TypeAlias = StateStore[Noted]
"""The entries, at the keys that the module names."""


class UploadIndex:
    """The index in ``entries``. Methods raise Unavailable."""

    def __init__(self, entries: IndexStore, *, clock: Clock) -> None:
        self._entries = entries
        self._clock = clock

    async def enter(self, key: str, upload: Upload) -> None:
        """The upload with this record key is about to be made."""
        if upload.state is UploadState.ASSEMBLING or upload.gathers:
            await self.mark(key, upload)
        noted = Noted(upload.id, upload.created_at, upload.expires_at, upload.promised_sha256)
        await self._put(f"{_OPEN}.{key}", noted)

    async def mark(self, key: str, upload: Upload) -> None:
        """The upload is about to be assembled: from now on each sweep looks at it."""
        await self._put(f"{_ASSEMBLING}.{key}", Noted(upload.id, upload.created_at, self._clock()))

    async def leave(self, key: str) -> None:
        """The upload is over. Never raises: the sweep comes by what is left here."""
        await asyncio.gather(self.unmark(key), self._drop_quietly(f"{_OPEN}.{key}"))

    async def unmark(self, key: str) -> None:
        """The upload was assembled. Never raises."""
        await self._drop_quietly(f"{_ASSEMBLING}.{key}")

    async def of(self, owner: str) -> list[Noted]:
        """The owner's uploads, newest first: all that are open, and some that have just ended."""
        found = [entry.value async for entry in self._entries.list(f"{_OPEN}.{owner_prefix(owner)}")]
        return sorted(found, key=lambda noted: (noted.created_at, noted.upload_id), reverse=True)

    async def due(self, now: datetime) -> list[str]:
        """The record keys of the uploads that are being assembled and of those past their time."""
        marked = [_record_key(entry) async for entry in self._entries.list(_ASSEMBLING)]
        return list(dict.fromkeys(marked + [key async for key in self._past(now)]))

    async def _past(self, now: datetime) -> AsyncGenerator[str, None]:
        async with contextlib.aclosing(self._entries.list(_OPEN)) as entries:
            async for entry in entries:
                if entry.value.look_at > now:
                    return
                yield _record_key(entry)

    async def repair(self, key: str, upload: Upload | None) -> None:
        """Makes the entries say what the record says, which was read just now and of which nothing is due."""
        settled_before = self._clock() - _SETTLING
        mark = await self._entries.get(f"{_ASSEMBLING}.{key}")
        if mark is not None and (
            (upload is not None and upload.state not in {UploadState.OPEN, UploadState.ASSEMBLING})
            or mark.value.look_at < settled_before
        ):
            await self._drop(mark)
        entry = await self._entries.get(f"{_OPEN}.{key}")
        if entry is None:
            return
        if upload is None:
            if entry.value.created_at < settled_before:
                await self._drop(entry)
        elif upload.final:
            await self._drop(entry)
        elif entry.value.look_at != upload.expires_at:
            with contextlib.suppress(RevisionConflict):
                later = replace(entry.value, look_at=upload.expires_at)
                await self._entries.update(entry.key, later, entry.revision)

    async def answered(self, key: str) -> Noted | None:
        """What answered the request whose upload would have this record key; None unless it was another upload."""
        entry = await self._entries.get(f"{_REQUEST}.{key}")
        return None if entry is None else entry.value

    async def answer(self, key: str, asked: Upload, given: Upload, *, ttl: float) -> bool:
        """Remembers for ``ttl`` seconds that the request for ``asked`` was answered with ``given``. False when
        another answer is there."""
        noted = Noted(given.id, asked.created_at, asked.created_at, request_fingerprint=asked.request_fingerprint)
        try:
            await self._entries.create(f"{_REQUEST}.{key}", noted, ttl=ttl)
        except RevisionConflict:
            return False
        return True

    async def _put(self, key: str, noted: Noted) -> None:
        """Writes the entry anew, so that nobody takes away what was there before for it."""
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(RevisionConflict):
                await self._entries.create(key, noted)
                return
            entry = await self._entries.get(key)
            if entry is not None:
                with contextlib.suppress(RevisionConflict):
                    await self._entries.update(key, noted, entry.revision)
                    return
        raise Aborted("too many calls for one upload at once; try again")

    async def _drop_quietly(self, key: str) -> None:
        try:
            entry = await self._entries.get(key)
            if entry is not None:
                await self._drop(entry)
        except ServiceError as error:
            log.warning("index entry left for the sweep: %s", error, extra={"data": {"key": key}})

    async def _drop(self, entry: Entry[Noted]) -> None:
        with contextlib.suppress(RevisionConflict):  # written anew meanwhile
            await self._entries.delete(entry.key, entry.revision)


class IndexedUploads:
    """An :class:`UploadStore` that keeps the index."""

    def __init__(self, inner: UploadStore, index: UploadIndex) -> None:
        self._inner = inner
        self._index = index
        self.get = inner.get
        self.list = inner.list

    async def create(self, key: str, value: Upload, *, ttl: float | None = None) -> Entry[Upload]:
        if not value.final:
            await self._index.enter(key, value)
        return await self._inner.create(key, value, ttl=ttl)

    async def update(self, key: str, value: Upload, revision: int, *, ttl: float | None = None) -> Entry[Upload]:
        if value.state is UploadState.ASSEMBLING:
            await self._index.mark(key, value)
        entry = await self._inner.update(key, value, revision, ttl=ttl)
        if value.final:
            await self._index.leave(key)
        elif value.state is UploadState.COMPLETED:
            await self._index.unmark(key)
        return entry

    async def delete(self, key: str, revision: int) -> None:
        await self._inner.delete(key, revision)
        await self._index.leave(key)


def _record_key(entry: Entry[Noted]) -> str:
    return entry.key.partition(".")[2]
