"""The use cases of merge sessions, over the ports.

Calls change the session's record and say so; the controller does what follows from it. So a call is done when
its one compare-and-set is, and a crash after it loses nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from datetime import timedelta

from services.common.clock import Clock
from services.common.errors import (
    AlreadyExists,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from services.common.progress import Progress, ProgressBus
from services.common.state import Entry, RevisionConflict, mutate, owned_key
from services.merge.board import ProgressBoard
from services.merge.domain import Clip, Reason, Session, SessionState
from services.merge.planner import ClipUpload
from services.merge.ports import Begun, Sessions, Uploads
from services.merge.status import SessionView, view
from services.merge.timeline import Canvas, Quality
from services.merge.transitions import cancel, retry

KIND = "merge"  # of progress hints
_NAMESPACE = uuid.UUID("5b7a1f0e-3a54-4f0f-9d0c-0d1d4e0b6a57")
_LOOK_AGAIN_SECONDS = 5.0
_SETTLE_SECONDS = 0.2  # hints that come at once are one answer


@dataclass(frozen=True, slots=True)
class NewClip:
    """A clip as the player announces it. ``duration`` in seconds, 0 when unknown."""

    filename: str
    size: int
    duration: float
    mime_type: str


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a session may be uploading, and from its last clip on processing, in seconds."""

    upload_seconds: float = 86_400.0
    processing_seconds: float = 3_600.0


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

    async def initiate(
        self,
        owner: str,
        clips: Sequence[NewClip],
        *,
        title: str,
        request_id: str,
        canvas: Canvas | None,
        quality: Quality,
    ) -> tuple[Session, Begun]:
        """Makes a session and its uploads, or finds those made under the same ``request_id``.

        Raises InvalidArgument (a clip is too long, or the upload service refuses it), ResourceExhausted (the
        owner's quota of uploads) and AlreadyExists (REQUEST_ID_REUSED). Unavailable leaves the session to the
        controller, and the caller to try again.
        """
        self._check_durations(clips)
        session = self._new(owner, clips, title, request_id, canvas, quality)
        key = owned_key(owner, session.id)
        try:
            entry = await self._sessions.create(key, session)
        except RevisionConflict:
            entry = await self._existing(key, session)
        try:
            begun = await self._uploads.batch_initiate(entry.value)
        except (InvalidArgument, ResourceExhausted) as refused:
            if not entry.value.uploads_ready:
                with suppress(RevisionConflict):  # whoever was faster has seen the same refusal
                    await self._sessions.delete(key, entry.revision)
            if isinstance(refused, ResourceExhausted):
                raise
            raise _in_the_callers_names(refused) from refused
        ready = await mutate(
            self._sessions, key, lambda s: s if s.uploads_ready else replace(s, uploads_ready=True)
        )
        return (ready.value if ready is not None else entry.value), begun

    async def get(self, owner: str, session_id: str) -> SessionView:
        """The session as it is. Raises NotFound."""
        entry = await self._sessions.get(owned_key(owner, session_id))
        if entry is None:
            raise _not_found()
        return await self._view(entry.value)

    async def watch(self, owner: str, session_id: str) -> AsyncGenerator[SessionView, None]:
        """The session now and at each change, until it is completed, failed or cancelled. Raises NotFound."""
        changed = asyncio.Event()
        async with AsyncExitStack() as stack:
            session = (await self.get(owner, session_id)).session
            things = [(KIND, session_id), *(("upload", clip.upload_id) for clip in session.clips)]
            for kind, id_ in things:
                hints = await stack.enter_async_context(self._progress.subscribe(kind, id_))
                stack.push_async_callback(_cancelled, asyncio.create_task(_set_on_hint(hints, changed)))
            last = None
            while True:
                changed.clear()
                now = await self.get(owner, session_id)
                if now != last:
                    yield now
                    last = now
                if now.session.state is not SessionState.ACTIVE:
                    return
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_AGAIN_SECONDS):
                        await changed.wait()
                        await asyncio.sleep(_SETTLE_SECONDS)

    async def retry(self, owner: str, session_id: str) -> SessionView:
        """Tries a failed session again. Raises NotFound and FailedPrecondition (RETRY_NOT_AVAILABLE)."""
        now = self._clock()

        def again(session: Session) -> Session:
            if session.failure is None or session.state is not SessionState.FAILED:
                raise FailedPrecondition("the session has not failed", reason=Reason.RETRY_NOT_AVAILABLE)
            if not session.failure.retry_available:
                raise FailedPrecondition(
                    f"trying again cannot help: {session.failure.message}", reason=Reason.RETRY_NOT_AVAILABLE
                )
            timing = self._timing
            seconds = timing.processing_seconds if session.all_uploaded else timing.upload_seconds
            return retry(session, now + timedelta(seconds=seconds), now)

        return await self._change(owner, session_id, again)

    async def cancel(self, owner: str, session_id: str) -> SessionView:
        """Gives the session up. Raises NotFound and FailedPrecondition (ALREADY_COMPLETED)."""
        now = self._clock()

        def given_up(session: Session) -> Session:
            if session.state is SessionState.COMPLETED:
                raise FailedPrecondition(
                    "the video is there already: nothing to cancel", reason=Reason.ALREADY_COMPLETED
                )
            return cancel(session, now)

        return await self._change(owner, session_id, given_up)

    async def _change(self, owner: str, session_id: str, change: Callable[[Session], Session]) -> SessionView:
        entry = await mutate(self._sessions, owned_key(owner, session_id), change)
        if entry is None:
            raise _not_found()
        await self._progress.publish(Progress(KIND, session_id))
        return await self._view(entry.value)

    async def _view(self, session: Session) -> SessionView:
        return view(session, await missing_uploads(self._uploads, session), self._board.fraction)

    async def _existing(self, key: str, wanted: Session) -> Entry[Session]:
        entry = await self._sessions.get(key)
        if entry is None:
            raise Unavailable("the session is being made; try again", retry_after=1)
        if entry.value.request_fingerprint != wanted.request_fingerprint:
            raise AlreadyExists("this request_id was used with other parameters", reason=Reason.REQUEST_ID_REUSED)
        return entry

    def _check_durations(self, clips: Sequence[NewClip]) -> None:
        for i, clip in enumerate(clips):
            if clip.duration > self._max_clip_seconds + 1:
                raise InvalidArgument.field(
                    f"video_durations[{i}]",
                    f"a clip may be {self._max_clip_seconds:g} seconds long at most",
                    reason=Reason.CLIP_TOO_LONG,
                )

    def _new(
        self,
        owner: str,
        clips: Sequence[NewClip],
        title: str,
        request_id: str,
        canvas: Canvas | None,
        quality: Quality,
    ) -> Session:
        now = self._clock()
        name = f"{owner}\0{request_id}" if request_id else uuid.uuid4().hex
        session_id = uuid.uuid5(_NAMESPACE, name)
        described = [(c.filename, c.size, c.duration, c.mime_type) for c in clips]
        shape = (canvas.width, canvas.height) if canvas is not None else None
        fingerprint = hashlib.sha256(json.dumps([described, title, shape, quality]).encode()).hexdigest()
        return Session(
            id=str(session_id),
            owner=owner,
            title=title,
            request_fingerprint=fingerprint,
            clips=tuple(
                Clip(i, str(uuid.uuid5(session_id, f"clip-{i}-0")), c.filename, c.size, c.duration, c.mime_type)
                for i, c in enumerate(clips)
            ),
            created_at=now,
            updated_at=now,
            deadline=now + timedelta(seconds=self._timing.upload_seconds),
            quality=quality,
            canvas=canvas,
        )


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


def _in_the_callers_names(refused: InvalidArgument) -> InvalidArgument:
    """The upload service names ``clips[1].file_size``; our caller sent ``video_file_sizes[1]``."""
    names = {"filename": "video_filenames", "file_size": "video_file_sizes", "mime_type": "video_mime_types"}
    violations = []
    for violation in refused.violations:
        place, _, field = violation.field.partition(".")
        index = place.removeprefix("clips")
        violations.append(FieldViolation(f"{names.get(field, field)}{index}", violation.description))
    text = f"{violations[0].field}: {violations[0].description}" if violations else refused.message
    return InvalidArgument(text, reason=refused.reason, violations=violations, domain=refused.domain)
