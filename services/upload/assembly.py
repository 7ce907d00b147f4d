"""Finishing what was begun: assembling uploads whose manifest is fixed.

An upload that is made of partial uploads is first filled from their files (:mod:`.gathering`). Every step may be
cut off by a kill and is simply done again, by the next complete call or by the sweep: the manifest in the record
says what the file is made of, the part store knows whether the object is there.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from services.common.clock import Clock
from services.common.errors import DataLoss, Unavailable
from services.common.objects import ObjectStore
from services.common.progress import Progress
from services.common.state import Entry, mutate, owned_key
from services.upload.analytics import Analytics
from services.upload.domain import (
    DATA_LOST,
    INFECTED,
    NOT_SCANNED,
    PARTIAL_GONE,
    TYPE_MISMATCH,
    DigestRefused,
    TypeRefused,
    Upload,
    UploadState,
    Whole,
)
from services.upload.gathering import Gathering, PartialGone
from services.upload.index import UploadIndex
from services.upload.ports import Hints, PartStore, UploadStore
from services.upload.reasons import Reason
from services.upload.scanning import Infected, Quarantine

log = logging.getLogger(__name__)

FILES = "uploads/"
"""What the keys of uploaded files begin with."""

FORGOTTEN = {UploadState.FAILED, UploadState.CANCELLED, UploadState.EXPIRED}
"""States of uploads that came to nothing."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How long ended things are kept: records of uploads that came to nothing (seconds), and bytes in the stores
    without a record (seconds; long, lest a wrong database address costs somebody's files)."""

    records: float
    orphans: float


class Assembly:
    """Takes uploads through *assembling*, one task for each however many calls wait for it."""

    def __init__(
        self,
        uploads: UploadStore,
        index: UploadIndex,
        parts: PartStore,
        objects: ObjectStore,
        hints: Hints,
        quarantine: Quarantine,
        analytics: Analytics,
        *,
        retention: Retention,
        clock: Clock,
    ) -> None:
        self._uploads = uploads
        self._parts = parts
        self._hints = hints
        self._quarantine = quarantine
        self._analytics = analytics
        self._retention = retention
        self._clock = clock
        self._gathering = Gathering(uploads, index, parts, objects, ttl=self.ttl, clock=clock)
        self._running: dict[str, asyncio.Task[str | None]] = {}

    def ttl(self, upload: Upload) -> float | None:
        """How long a record is kept, in seconds; None is for ever."""
        return self._retention.records if upload.state in FORGOTTEN else None

    async def finish(self, key: str) -> str | None:
        """Ends *assembling* if that is where the upload is. Answers the file's SHA-256 in hex when the upload is
        open again because the file has another one than it was claimed to have, else None.

        A caller that goes away does not stop it. Raises what PartStore.assemble and the state store raise.
        """
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._finish(key), name=f"assemble {key}")
            task.add_done_callback(lambda done: self._ended(key, done))
        return await asyncio.shield(task)

    def _ended(self, key: str, task: asyncio.Task[str | None]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # seen: every caller may have gone away

    async def close(self) -> None:
        """Waits for what is being assembled."""
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _finish(self, key: str) -> str | None:
        entry = await self._uploads.get(key)
        if entry is not None and entry.value.gathers:
            entry = await self._gather(key, entry.value)
        if entry is None or entry.value.state is not UploadState.ASSEMBLING:
            return None
        upload, actual = entry.value, None
        stored_as = object_key(upload)
        try:
            whole = await self._parts.assemble(key, upload.grid, upload.manifest, stored_as, upload.check)
            await self._quarantine.inspect(stored_as)
        except DigestRefused as refusal:
            actual = refusal.actual
            await mutate(self._uploads, key, lambda u: u.reopen(self._clock(), upload.claimed_sha256))
        except TypeRefused:
            await self._fail(key, TYPE_MISMATCH, f"the file does not begin like a file of type {upload.mime_type}")
        except Infected as found:
            await self._refuse(key, INFECTED, f"the virus scanner found {found.name}")
        except DataLoss as error:
            log.exception("upload lost", extra={"data": {"upload": upload.id}})
            await self._fail(key, DATA_LOST, error.message)
        except Unavailable as error:
            if error.reason != Reason.SCANNER_UNAVAILABLE or self._clock() < upload.expires_at:
                raise
            await self._refuse(key, NOT_SCANNED, "the virus scanner did not answer before the upload's expires_at")
        else:
            await self._complete(key, whole)
        await self._hints.publish(Progress("upload", upload.id))
        return actual

    async def _complete(self, key: str, whole: Whole) -> None:
        entry = await mutate(self._uploads, key, lambda u: u.complete(whole, object_key(u), self._clock()))
        await self._discard_ended(key, entry)
        if entry is not None and entry.value.state is UploadState.COMPLETED:
            await self._gathering.release(entry.value)
            await self._analytics.completed(key, entry.value)

    async def _gather(self, key: str, upload: Upload) -> Entry[Upload] | None:
        """Fills an upload that is made of partial ones and fixes its manifest; None when that cannot be."""
        try:
            manifest = await self._gathering.gather(key, upload)
        except PartialGone as error:
            await self._fail(key, PARTIAL_GONE, str(error))
            return None
        except DataLoss as error:
            log.exception("partial upload lost", extra={"data": {"upload": upload.id}})
            await self._fail(key, DATA_LOST, error.message)
            return None
        return await mutate(self._uploads, key, lambda u: u.begin_assembly(manifest, "", self._clock()))

    async def _refuse(self, key: str, error_type: str, message: str) -> None:
        """Fails an upload whose file is assembled already."""
        failed = await self._fail(key, error_type, message)
        if failed is not None and failed.value.state is UploadState.FAILED:  # and nobody has let it through before
            await self._parts.remove(object_key(failed.value))

    async def _fail(self, key: str, error_type: str, message: str) -> Entry[Upload] | None:
        entry = await mutate(
            self._uploads, key, lambda u: u.fail(error_type, message, self._clock()), ttl=self.ttl
        )
        await self._discard_ended(key, entry)
        return entry

    async def _discard_ended(self, key: str, entry: Entry[Upload] | None) -> None:
        """Removes the parts, unless another replica has opened the upload again: then its owner goes on."""
        if entry is None or entry.value.state not in {UploadState.OPEN, UploadState.ASSEMBLING}:
            await self._parts.discard(key)


def object_key(upload: Upload) -> str:
    """Where the upload's file is, once assembled: its record's key tells whose it is."""
    return f"{FILES}{owned_key(upload.owner, upload.id)}"
