"""The use cases of merge sessions, over the ports.

Calls change the session's record and say so; the controller does what follows from it. So a call is done when
its one compare-and-set is, and a crash after it loses nothing.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, replace
from datetime import timedelta

from services.common import tracing
from services.common.clock import Clock
from services.common.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from services.common.progress import Progress, ProgressBus
from services.common.state import Entry, RevisionConflict, mutate, owned_key, owner_prefix
from services.merge.board import ProgressBoard
from services.merge.domain import Clip, Reason, Session, SessionState
from services.merge.estimate import remaining_seconds, seconds_after_last_upload
from services.merge.planner import ClipUpload, UploadStatus
from services.merge.ports import Begun, Sessions, Uploads
from services.merge.replacement import ClipReplacer
from services.merge.requests import (
    NewClip,
    NewSession,
    Place,
    check_duration,
    check_durations,
    in_the_callers_names,
    new_session,
    place,
    read_token,
    write_token,
)
from services.merge.status import SessionView, reached, view
from services.merge.transitions import cancel, retry

KIND = "merge"  # of progress hints
_PAGE = 50
_LOOK_AGAIN_SECONDS = 5.0
_SETTLE_SECONDS = 0.2  # hints that come at once are one answer
_ASK_SECONDS = 1.5  # so long a status waits for the upload service
_AWAY_SECONDS = 2.0  # and so long it is not asked again when it did not answer


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a session may be uploading, and from its last clip on processing, in seconds."""

    upload_seconds: float = 86_400.0
    processing_seconds: float = 21_600.0


class MergeSessions:
    """Use cases. ``max_clip_seconds`` refuses promised durations that could never be accepted."""

    def __init__(
        self,
        sessions: Sessions,
        uploads: Uploads,
        progress: ProgressBus,
        board: ProgressBoard,
        *,
        clock: Clock,
        max_clip_seconds: float,
        timing: Timing | None = None,
    ) -> None:
        self._sessions = sessions
        self._uploads = uploads
        self._progress = progress
        self._board = board
        self._clock = clock
        self._max_clip_seconds = max_clip_seconds
        self._timing = timing or Timing()
        self._replacer = ClipReplacer(sessions, uploads, clock=clock, upload_seconds=self._timing.upload_seconds)
        self._ask_from = 0.0

    async def initiate(self, owner: str, asked: NewSession) -> tuple[Session, Begun]:
        """Makes a session and its uploads, or finds those made under the same ``request_id``.

        Raises InvalidArgument (a clip is too long, or the upload service refuses it), ResourceExhausted (the
        owner's quota of uploads) and AlreadyExists (REQUEST_ID_REUSED). Unavailable leaves the session to the
        controller, and the caller to try again.
        """
        check_durations(asked.clips, self._max_clip_seconds)
        wait = timedelta(seconds=self._timing.upload_seconds)
        session = new_session(owner, asked, self._clock(), wait, traceparent=tracing.current().traceparent)
        key = owned_key(owner, session.id)
        try:
            entry = await self._sessions.create(key, session)
        except RevisionConflict:
            entry = await self._existing(key, session)
            tracing.current().link(entry.value.traceparent)
        if entry.value.uploads_ready:  # asking for them again would make those anew that have gone by now
            return entry.value, Begun(await self._uploads_of(entry.value))
        try:
            begun = await self._uploads.batch_initiate(entry.value)
        except (InvalidArgument, ResourceExhausted) as refused:
            with suppress(RevisionConflict):  # whoever was faster has seen the same refusal
                await self._sessions.delete(key, entry.revision)
            if isinstance(refused, ResourceExhausted):
                raise
            raise in_the_callers_names(refused) from refused
        ready = await mutate(
            self._sessions, key, lambda s: s if s.uploads_ready else replace(s, uploads_ready=True)
        )
        return (ready.value if ready is not None else entry.value), begun

    async def get(self, owner: str, session_id: str) -> SessionView:
        """The session as it is. Raises NotFound."""
        entry = await self._sessions.get(owned_key(owner, session_id))
        if entry is None:
            raise _not_found()
        tracing.current().link(entry.value.traceparent)
        return await self._view(entry.value)

    async def watch(self, owner: str, session_id: str) -> AsyncGenerator[SessionView, None]:
        """The session now and at each change, until it is completed, failed or cancelled. Raises NotFound."""
        changed = asyncio.Event()
        async with AsyncExitStack() as stack:
            followed: set[tuple[str, str]] = set()
            last = None
            while True:
                changed.clear()
                now = await self.get(owner, session_id)
                things = {(KIND, session_id), *(("upload", clip.upload_id) for clip in now.session.clips)}
                if not things <= followed:  # at first, and when a clip was replaced
                    for kind, id_ in things - followed:
                        hints = await stack.enter_async_context(self._progress.subscribe(kind, id_))
                        stack.push_async_callback(_cancelled, asyncio.create_task(_set_on_hint(hints, changed)))
                    followed |= things
                    continue  # what happened before is seen by reading once more
                if now != last:
                    yield now
                    last = now
                if now.session.state is not SessionState.ACTIVE:
                    return
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_AGAIN_SECONDS):
                        await changed.wait()
                        await asyncio.sleep(_SETTLE_SECONDS)

    async def page(self, owner: str, page_size: int, page_token: str) -> tuple[list[SessionView], str]:
        """Some of the owner's sessions, newest first, and the token of the next page, "" on the last. Reads the
        owner's records alone and holds one page of them. Raises InvalidArgument (PAGE_TOKEN_INVALID)."""
        after = read_token(page_token) if page_token else None
        newest: list[tuple[Place, Session]] = []
        size = page_size or _PAGE
        async with aclosing(self._sessions.list(owner_prefix(owner))) as entries:
            async for entry in entries:
                at = place(entry.value)
                if after is not None and at >= after:
                    continue
                if len(newest) <= size:
                    heapq.heappush(newest, (at, entry.value))
                elif at > newest[0][0]:
                    heapq.heapreplace(newest, (at, entry.value))
        found = sorted(newest, key=lambda one: one[0], reverse=True)
        token = write_token(found[size - 1][0]) if len(found) > size else ""
        return [await self._view(session) for _, session in found[:size]], token

    async def trigger(self, owner: str, session_id: str) -> SessionView:
        """The session, whose merge begins by itself once its clips are in. Raises NotFound and FailedPrecondition
        (CLIPS_MISSING, MERGE_FAILED, MERGE_CANCELLED) when it does not."""
        seen = await self.get(owner, session_id)
        failure = seen.session.failure
        if seen.session.state is SessionState.CANCELLED:
            raise FailedPrecondition("the session was cancelled", reason=Reason.MERGE_CANCELLED)
        if seen.session.state is SessionState.FAILED and failure is not None:
            raise FailedPrecondition(
                f"the session has failed: {failure.message}",
                reason=Reason.MERGE_FAILED,
                metadata={
                    "error_type": failure.error_type,
                    "retry_available": str(failure.retry_available).lower(),
                },
            )
        missing = [str(clip.clip.index) for clip in seen.clips if not clip.uploaded]
        if missing and seen.session.state is SessionState.ACTIVE:
            numbers = ", ".join(str(int(index) + 1) for index in missing)
            raise FailedPrecondition(
                f"not completely uploaded: clip {numbers}",
                reason=Reason.CLIPS_MISSING,
                metadata={"missing_clips": ",".join(missing)},
            )
        return seen

    async def retry(self, owner: str, session_id: str, request_id: str = "") -> SessionView:
        """Tries a failed session again, once for each ``request_id``. One that was tried again and has not failed
        since stays as it is: the answer to that try may have been lost. Raises NotFound and FailedPrecondition
        (RETRY_NOT_AVAILABLE)."""
        now = self._clock()

        def again(session: Session) -> Session:
            if request_id and session.retry_request_id == request_id:
                return session
            if session.retry_count and session.state in (SessionState.ACTIVE, SessionState.COMPLETED):
                return session
            if session.failure is None or session.state is not SessionState.FAILED:
                raise FailedPrecondition("the session has not failed", reason=Reason.RETRY_NOT_AVAILABLE)
            if session.closed or not session.failure.retry_available:
                raise FailedPrecondition(
                    f"trying again cannot help: {session.failure.message}", reason=Reason.RETRY_NOT_AVAILABLE
                )
            timing = self._timing
            seconds = timing.processing_seconds if session.all_uploaded else timing.upload_seconds
            tried = retry(session, now + timedelta(seconds=seconds), now)
            return replace(tried, retry_request_id=request_id)

        return await self._change(owner, session_id, again)

    async def cancel(self, owner: str, session_id: str) -> SessionView:
        """Gives the session up. Raises NotFound and FailedPrecondition (ALREADY_COMPLETED)."""
        now = self._clock()

        def given_up(session: Session) -> Session:
            if session.state is SessionState.COMPLETED:
                raise FailedPrecondition(
                    "the video is there already: nothing to cancel", reason=Reason.ALREADY_COMPLETED
                )
            return cancel(reached(session, self._seen(session), self._board.fraction), now)

        return await self._change(owner, session_id, given_up)

    async def replace_clip(
        self, owner: str, session_id: str, index: int, new: NewClip, *, request_id: str = ""
    ) -> tuple[Clip, Begun]:
        """Records one statement anew: :meth:`ClipReplacer.replace`, which says what it raises."""
        check_duration("duration_seconds", new, self._max_clip_seconds)
        replaced = await self._replacer.replace(owner, session_id, index, new, request_id)
        await self._progress.publish(Progress(KIND, session_id))
        return replaced

    async def _change(self, owner: str, session_id: str, change: Callable[[Session], Session]) -> SessionView:
        entry = await mutate(self._sessions, owned_key(owner, session_id), change)
        if entry is None:
            raise _not_found()
        tracing.current().link(entry.value.traceparent)
        await self._progress.publish(Progress(KIND, session_id))
        return await self._view(entry.value)

    async def _view(self, session: Session) -> SessionView:
        await self._look_at_uploads(session)
        seen = view(session, self._seen(session), self._board.fraction)
        return replace(seen, remaining_seconds=remaining_seconds(session, self._board))

    async def _look_at_uploads(self, session: Session) -> None:
        """Asks the upload service for what the record does not know. A status must not wait for it when it is
        away: then what was seen last is shown, and nobody asks again for a moment."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._ask_from:
            return
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                for upload in (await missing_uploads(self._uploads, session)).values():
                    self._board.see(upload)
        except (Unavailable, DeadlineExceeded, TimeoutError):
            self._ask_from = loop.time() + _AWAY_SECONDS

    def _seen(self, session: Session) -> Mapping[str, ClipUpload]:
        """The uploads of the clips whose source is not known yet, as they were last seen."""
        seen = (self._board.seen(clip.upload_id) for clip in session.clips if not clip.source_key)
        return {upload.id: upload for upload in seen if upload is not None}

    def estimate(self, session: Session) -> float:
        """Seconds that a player will wait for the video once all clips are in."""
        return seconds_after_last_upload(session, self._board)

    async def _uploads_of(self, session: Session) -> list[ClipUpload]:
        """The uploads of the session's clips; of one that is gone no more than its id."""
        found = await asyncio.gather(*(self._uploads.get(session.owner, clip.upload_id) for clip in session.clips))
        return [
            upload or ClipUpload(clip.upload_id, UploadStatus.PENDING)
            for clip, upload in zip(session.clips, found, strict=True)
        ]

    async def _existing(self, key: str, wanted: Session) -> Entry[Session]:
        entry = await self._sessions.get(key)
        if entry is None:
            raise Unavailable("the session is being made; try again", retry_after=1)
        if entry.value.request_fingerprint != wanted.request_fingerprint:
            raise AlreadyExists("this request_id was used with other parameters", reason=Reason.REQUEST_ID_REUSED)
        return entry


async def missing_uploads(uploads: Uploads, session: Session) -> Mapping[str, ClipUpload]:
    """The uploads of the clips whose source is not known yet, by id; none for a session that is
    completed or cancelled."""
    if session.state in (SessionState.COMPLETED, SessionState.CANCELLED):
        return {}
    ids = [clip.upload_id for clip in session.clips if not clip.source_key]
    found = await asyncio.gather(*(uploads.get(session.owner, id_) for id_ in ids))
    return {upload.id: upload for upload in found if upload is not None}


async def _set_on_hint(hints: AsyncIterator[Progress], changed: asyncio.Event) -> None:
    async for _ in hints:
        changed.set()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _not_found() -> NotFound:
    return NotFound("no merge session of yours has this id", reason=Reason.MERGE_NOT_FOUND)
