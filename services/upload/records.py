"""Records of uploads as their owners may reach them, and what an owner sees: record and parts together."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from datetime import datetime

from services.common import context, tracing
from services.common.clock import Clock
from services.common.errors import Aborted
from services.common.progress import Progress
from services.common.state import RevisionConflict, mutate, owned_key
from services.upload import domain
from services.upload.domain import Upload, UploadState, UploadStatus
from services.upload.index import UploadIndex
from services.upload.ports import Hints, PartStore, UploadStore
from services.upload.requests import canonical_id, replayed, require_same

_SAME_FILE = ("promised_sha256", "size", "length_deferred", "mime_type", "purpose")


@dataclass(frozen=True, slots=True)
class UploadView:
    """An upload as its owner sees it. ``uploaded``: the numbers of stored chunks, ascending; ``offset``: how many
    bytes are stored without a gap from the start, ``percent``: how many of a hundred in all. ``merge_ready``: all
    uploads of its merge session are completed."""

    upload: Upload
    status: UploadStatus
    uploaded: tuple[int, ...]
    updated_at: datetime
    offset: int = 0
    percent: float = 0
    merge_ready: bool = False

    @property
    def ended(self) -> bool:
        """Whether nothing can change any more."""
        return self.status not in {UploadStatus.PENDING, UploadStatus.IN_PROGRESS}


class UploadRecords:
    """The records; ``ttl`` says how long one is kept, in seconds. Methods raise Unavailable."""

    def __init__(
        self,
        uploads: UploadStore,
        index: UploadIndex,
        parts: PartStore,
        hints: Hints,
        *,
        ttl: Callable[[Upload], float | None],
        clock: Clock,
    ) -> None:
        self._uploads = uploads
        self._index = index
        self._parts = parts
        self._hints = hints
        self._ttl = ttl
        self._clock = clock

    async def owned(self, id_: str, owner: str = "") -> Upload:
        """The caller's upload, or that of the owner a service names. Raises NotFound (another player's upload lies
        under another key), InvalidArgument for what is no id."""
        entry = await self._uploads.get(owned_key(context.owner(owner), canonical_id(id_)))
        if entry is None:
            raise domain.not_found()
        tracing.current().link(entry.value.traceparent)  # what is done with it belongs together with how it began
        return entry.value

    async def find(self, upload: Upload) -> Upload | None:
        """What is written under this upload's owner and id."""
        entry = await self._uploads.get(record_key(upload))
        return None if entry is None else entry.value

    async def answered(self, asked: Upload) -> Upload | None:
        """What the same request was answered before: the upload that it made, or that it was given. Raises
        AlreadyExists (REQUEST_ID_REUSED) when it had other parameters."""
        made = await self.find(asked)
        if made is not None:
            return replayed(made, asked)
        noted = await self._index.answered(record_key(asked))
        if noted is None:
            return None
        require_same(noted.request_fingerprint, asked)
        entry = await self._uploads.get(owned_key(asked.owner, noted.upload_id))
        return None if entry is None else entry.value

    async def answer(self, asked: Upload, given: Upload) -> Upload:
        """Lets the request for ``asked`` have been answered with ``given``, for as long as it may stay open and as
        one that came to nothing is remembered; or answers what a rival's was. Raises like :meth:`answered`."""
        life = (given.expires_at - self._clock()).total_seconds()
        ended = self._ttl(replace(given, state=UploadState.EXPIRED)) or 0
        if await self._index.answer(record_key(asked), asked, given, ttl=life + ended):
            return given
        return await self.answered(asked) or given

    async def create(self, upload: Upload) -> tuple[Upload, bool]:
        """Writes a new record, or answers the one that is there; and whether it is new."""
        upload = replace(upload, traceparent=tracing.current().traceparent)
        with contextlib.suppress(RevisionConflict):
            await self._uploads.create(record_key(upload), upload)
            return upload, True
        existing = await self.find(upload)
        if existing is None:
            raise Aborted("the upload was made and removed meanwhile; try again")
        return existing, False

    async def withdraw(self, upload: Upload) -> None:
        """Removes a record that was just made, unless it has changed since."""
        entry = await self._uploads.get(record_key(upload))
        if entry is not None and entry.value == upload:
            with contextlib.suppress(RevisionConflict):
                await self._uploads.delete(entry.key, entry.revision)

    async def change(self, upload: Upload, transition: Callable[[Upload], Upload]) -> Upload:
        """Applies a transition by compare-and-set and tells watchers. Raises what the transition raises."""
        entry = await mutate(self._uploads, record_key(upload), transition, ttl=self._ttl)
        if entry is None:
            raise domain.not_found()
        await self._hints.publish(Progress("upload", upload.id))
        return entry.value

    async def view(self, upload: Upload) -> UploadView:
        """The record as just read, with the parts that are stored now."""
        now = self._clock()
        grid, state = upload.grid, upload.state_at(now)
        if state is UploadState.OPEN:
            ledger = await self._parts.list_parts(record_key(upload), grid)
            numbers = tuple(sorted({part.number for part in ledger.parts}))
            return UploadView(
                upload,
                upload.status(ledger.changed_at is not None, now),
                numbers,
                max(upload.updated_at, ledger.changed_at or upload.updated_at),
                offset=ledger.offset(grid),
                percent=0 if upload.length_deferred else grid.percent(numbers, ledger.tail),
            )
        view = UploadView(upload, upload.status(any_bytes=False, now=now), (), upload.updated_at)
        if state in {UploadState.ASSEMBLING, UploadState.COMPLETED}:
            view = replace(view, uploaded=tuple(range(grid.total)), offset=upload.size, percent=100)
        if state is UploadState.COMPLETED:
            view = replace(view, merge_ready=await self._siblings_completed(upload))
        return view

    async def open_like(self, asked: Upload) -> Upload | None:
        """An open upload of the same owner for the same file: its digest, size, type and purpose."""
        if not asked.promised_sha256:
            return None
        for noted in await self._index.of(asked.owner):
            if noted.promised_sha256 == asked.promised_sha256:
                upload = await self._open(asked.owner, noted.upload_id)
                if upload is not None and all(getattr(upload, n) == getattr(asked, n) for n in _SAME_FILE):
                    return upload
        return None

    async def open_uploads(self, after: tuple[datetime, str] | None = None) -> AsyncGenerator[Upload, None]:
        """The caller's uploads that take bytes, newest first, from after that made at this time with this id."""
        owner = context.owner()
        for noted in await self._index.of(owner):
            if after is None or (noted.created_at, noted.upload_id) < after:
                upload = await self._open(owner, noted.upload_id)
                if upload is not None:
                    yield upload

    async def _open(self, owner: str, id_: str) -> Upload | None:
        entry = await self._uploads.get(owned_key(owner, id_))
        if entry is None or entry.value.state_at(self._clock()) is not UploadState.OPEN or entry.value.source_ids:
            return None
        return entry.value

    async def _siblings_completed(self, upload: Upload) -> bool:
        for id_ in upload.sibling_ids:
            if id_ != upload.id:
                entry = await self._uploads.get(owned_key(upload.owner, id_))
                if entry is None or entry.value.state is not UploadState.COMPLETED:
                    return False
        return bool(upload.sibling_ids)


def record_key(upload: Upload) -> str:
    """Where the upload's record is kept."""
    return owned_key(upload.owner, upload.id)
