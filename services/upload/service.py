"""The use cases of the upload service, over its ports.

Whose upload it is lies in the record's key, so another player's upload is not found by construction. What is
stored is read from the part store each time; the record changes only when the upload's life does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

from services.common import context
from services.common.clock import Clock
from services.common.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    FieldViolation,
    ServiceError,
)
from services.common.progress import Progress
from services.upload import domain
from services.upload.appends import Appends, seal
from services.upload.assembly import Assembly
from services.upload.domain import Upload, UploadPurpose, UploadState
from services.upload.grid import Part
from services.upload.limits import Limits
from services.upload.ports import Hints, PartStore, StoredPart
from services.upload.quotas import Allowance, Quotas
from services.upload.reasons import Reason
from services.upload.records import UploadRecords, UploadView, record_key
from services.upload.requests import (
    NewClip,
    NewFile,
    NewWhole,
    canonical_id,
    new_clips,
    new_upload,
    new_whole,
    read_token,
    replayed,
    settled,
    write_token,
)
from services.upload.stream import (
    AppendMessage,
    AppendStream,
    ChunkStream,
    Header,
    Message,
    OpenStreams,
    malformed,
)

_ATTEMPTS = 5
_PAGE = 50


@dataclass(frozen=True, slots=True)
class Policy:
    """Times in seconds: until an open upload is given up, until a silent client is cut off, and between two looks
    of a watcher; ``max_streams``: how many streams may be open."""

    limits: Limits = field(default_factory=Limits)
    expiry: float = 86_400
    stall: float = 15
    look: float = 3
    max_streams: int = 64


class UploadService:
    """Methods raise the errors that ``upload_service.proto`` names, and Unavailable."""

    def __init__(
        self,
        records: UploadRecords,
        parts: PartStore,
        hints: Hints,
        assembly: Assembly,
        quotas: Quotas,
        *,
        policy: Policy,
        clock: Clock,
    ) -> None:
        self._records = records
        self._parts = parts
        self._hints = hints
        self._assembly = assembly
        self._quotas = quotas
        self._policy = policy
        self._clock = clock
        self._streams = OpenStreams(policy.max_streams)
        self._appends = Appends(records, parts, hints, quotas, limits=policy.limits, clock=clock)

    @property
    def policy(self) -> Policy:
        """What this server takes."""
        return self._policy

    async def initiate(self, file: NewFile) -> tuple[UploadView, Sequence[Allowance]]:
        """Makes an upload and tells how the caller's quotas stand, or answers the one that the same request made
        before, or an open one of the caller for the same file by its digest."""
        asked = new_upload(context.owner(), file, now=self._clock(), expiry=self._expiry)
        if file.request_id and (answered := await self._records.answered(asked)) is not None:
            return await self._records.view(answered), await self._quotas.standing(asked.owner)
        if (resumed := await self._records.open_like(asked)) is not None:
            given = await self._records.answer(asked, resumed) if file.request_id else resumed
            return await self._records.view(given), await self._quotas.standing(asked.owner)
        new = settled(asked, self._policy.limits)
        left = await self._quotas.reserve(new.owner, {new.id: new.size})
        made, _ = await self._records.create(new)
        return await self._records.view(replayed(made, asked)), left

    async def initiate_batch(
        self, owner: str, merge_session_id: str, clips: Sequence[NewClip], sibling_ids: Sequence[str] = ()
    ) -> tuple[list[UploadView], Sequence[Allowance]]:
        """Makes the uploads of a merge session and tells how the owner's quotas stand, or answers those made
        before under the same ids: all or none."""
        context.require_service()
        asked = new_clips(owner, merge_session_id, clips, sibling_ids, now=self._clock(), expiry=self._expiry)
        found = [await self._records.find(upload) for upload in asked]
        uploads = [
            settled(upload, self._policy.limits) if existing is None else replayed(existing, upload)
            for existing, upload in zip(found, asked, strict=True)
        ]
        new = [upload for upload, existing in zip(uploads, found, strict=True) if existing is None]
        left = await self._quotas.reserve(owner, {upload.id: upload.size for upload in new})
        made: list[Upload] = []
        try:
            for index, existing in enumerate(found):
                if existing is None:
                    stored, is_new = await self._records.create(uploads[index])
                    made += [stored] if is_new else []
                    uploads[index] = replayed(stored, asked[index])
        except AlreadyExists:  # taken between reading and writing: take back what this call made
            for upload in made:
                await self._records.withdraw(upload)
            raise
        return [await self._records.view(upload) for upload in uploads], left

    async def upload_chunks(self, messages: AsyncIterator[Message]) -> tuple[list[StoredPart], UploadView]:
        """Stores the chunks of a stream one after the other; those before an error stay."""
        with self._streams.one_more():
            return await self._take(ChunkStream(messages, stall_seconds=self._policy.stall))

    async def append(self, messages: AsyncIterator[AppendMessage]) -> UploadView:
        """Stores the bytes of a stream at the upload's end, as they come or, with a checksum, all at once."""
        with self._streams.one_more():
            upload = await self._appends.take(AppendStream(messages, stall_seconds=self._policy.stall))
        return await self.get(upload.id)

    async def _take(self, stream: ChunkStream) -> tuple[list[StoredPart], UploadView]:
        header = await stream.next_chunk()
        if header is None:
            raise malformed("there is no chunk in it")
        session_id, stored = header.session_id, list[StoredPart]()
        while header is not None:
            upload = await self._records.owned(session_id)
            if header.session_id and canonical_id(header.session_id) != upload.id:
                raise malformed("all its chunks belong to one upload")
            upload.require_bytes(self._clock())
            upload.require_length()
            stored.append(await self._store(upload, header, stream))
            header = await stream.next_chunk()
        return stored, await self.get(session_id)

    async def _store(self, upload: Upload, header: Header, stream: ChunkStream) -> StoredPart:
        async def confirm(part: Part) -> None:
            stream.verify(part)
            # The upload may have been cancelled, completed or given up while the bytes came in.
            (await self._records.owned(upload.id)).require_bytes(self._clock())

        part = await self._parts.put_part(record_key(upload), upload.grid, header.number, stream.body(), confirm)
        await self._hints.publish(Progress("upload", upload.id))
        return part

    async def get(self, session_id: str, owner: str = "") -> UploadView:
        """The upload with its chunks."""
        return await self._records.view(await self._records.owned(session_id, owner))

    async def list_open(self, page_size: int, page_token: str) -> tuple[list[UploadView], str]:
        """A page of the caller's uploads that still take bytes, newest first, and the token of the next one."""
        after = read_token(page_token) if page_token else None
        page: list[Upload] = []
        token = ""
        async with contextlib.aclosing(self._records.open_uploads(after)) as found:
            async for upload in found:
                if len(page) == (page_size or _PAGE):
                    token = write_token(page[-1].created_at, page[-1].id)
                    break
                page.append(upload)
        return [await self._records.view(upload) for upload in page], token

    async def watch(self, session_id: str) -> AsyncIterator[UploadView]:
        """The upload now and whenever it changes, until it can change no more."""
        id_ = (await self._records.owned(session_id)).id
        async with self._hints.subscribe("upload", id_) as hints:
            shown = None
            hint: asyncio.Future[Progress] | None = None
            try:
                while True:
                    view = await self.get(id_)
                    if view != shown:
                        yield view
                        shown = view
                    if view.ended:
                        return
                    # A hint that is waited for in vain is kept: cancelling it would end the subscription.
                    hint = hint or asyncio.ensure_future(anext(hints))
                    await asyncio.wait([hint], timeout=self._policy.look)
                    if hint.done():
                        hint.result()
                        hint = None
            finally:
                if hint is not None:
                    hint.cancel()
                    await asyncio.wait([hint])

    async def concat(self, whole: NewWhole) -> UploadView:
        """Makes one file of completed partial uploads; a replay answers the same."""
        asked = new_whole(context.owner(), whole, now=self._clock(), expiry=self._expiry)
        upload = await self._records.answered(asked) if whole.request_id else None
        if upload is None:
            partials = [await self._partial(id_, n) for n, id_ in enumerate(asked.source_ids)]
            size = sum(partial.size for partial in partials)
            new = settled(replace(asked, size=size), self._policy.limits)
            # The bytes of the partial uploads were counted with them, once each.
            counted = sum({partial.id: partial.size for partial in partials}.values())
            await self._quotas.reserve(new.owner, {new.id: size - counted})
            upload, _ = await self._records.create(new)
        return await self.complete(replayed(upload, asked).id, "")

    async def _partial(self, id_: str, index: int) -> Upload:
        upload = await self._records.owned(id_)
        if (
            upload.purpose is not UploadPurpose.PARTIAL
            or upload.state_at(self._clock()) is not UploadState.COMPLETED
        ):
            raise FailedPrecondition(
                f"session_ids[{index}]: must be a completed partial upload",
                reason=Reason.PARTIAL_NOT_USABLE,
                violations=[FieldViolation(f"session_ids[{index}]", "must be a completed partial upload")],
            )
        return upload

    async def complete(self, session_id: str, claimed: str, request_id: str = "") -> UploadView:
        """Makes the file; a replay answers the same. ``claimed``: the SHA-256 in hex that it must have, or ""."""
        claimed = claimed.lower()
        for _ in range(_ATTEMPTS):
            upload = await self._records.owned(session_id)
            upload.require_same_complete(claimed, request_id)
            if upload.gathers and not upload.ended(self._clock()):
                await self._assembly.finish(record_key(upload))
                upload = await self._records.owned(session_id)
            elif upload.state is UploadState.OPEN:
                upload = await self._begin(upload, claimed, request_id)
            if upload.state is UploadState.ASSEMBLING:
                actual = await self._assembly.finish(record_key(upload))
                # Another call's claim may have been the wrong one; then the next round is ours.
                if actual is not None and upload.refuses_digest(actual, claimed):
                    raise domain.wrong_digest(actual)
                continue
            if upload.state is UploadState.COMPLETED:
                if upload.refuses_digest(upload.sha256, claimed):
                    raise domain.wrong_digest(upload.sha256)
                return await self._records.view(upload)
            if upload.state is UploadState.FAILED:
                raise domain.refused(upload)
            raise domain.closed(upload.state)
        raise Aborted("too many complete calls at once; try again")

    async def _begin(self, upload: Upload, claimed: str, request_id: str) -> Upload:
        """Fixes the manifest."""
        upload.require_open(self._clock())
        upload.require_length()
        key, grid = record_key(upload), upload.grid
        ledger = await self._parts.list_parts(key, grid)
        if ledger.tail is not None and ledger.offset(grid) == upload.size:
            await seal(self._parts, upload)
            ledger = await self._parts.list_parts(key, grid)
        manifest = grid.manifest(ledger.parts)
        return await self._records.change(
            upload, lambda u: u.begin_assembly(manifest, claimed, self._clock(), request_id)
        )

    async def cancel(self, session_id: str, owner: str = "") -> UploadView:
        """Gives the upload up and removes its bytes; one that is being assembled is first let through.

        A service may so remove a completed clip of a merge session, which the session holds.
        """
        release = context.principal().is_service
        upload = await self._records.owned(session_id, owner)
        for _ in range(_ATTEMPTS):
            if upload.state is UploadState.ASSEMBLING:
                with contextlib.suppress(ServiceError):
                    await self._assembly.finish(record_key(upload))
                upload = await self._records.owned(session_id, owner)
                continue
            upload = await self._records.change(upload, lambda u: u.cancel(self._clock(), release=release))
            if upload.state is not UploadState.ASSEMBLING:
                await self._parts.discard(record_key(upload))
                if upload.object_key:  # also when an earlier call was cut off here
                    await self._parts.remove(upload.object_key)
                return await self._records.view(upload)
        raise Aborted("the upload is being assembled; try again")

    async def file(self, file_id: str, owner: str = "") -> Upload:
        """The completed upload of this id."""
        upload = await self._records.owned(file_id, owner)
        if upload.state_at(self._clock()) is not UploadState.COMPLETED:
            raise FailedPrecondition("the file's upload is not completed", reason=Reason.FILE_NOT_READY)
        return upload

    @property
    def open_streams(self) -> int:
        """How many streams of bytes are open now."""
        return self._streams.count

    @property
    def _expiry(self) -> timedelta:
        return timedelta(seconds=self._policy.expiry)
