"""The merge controller: brings what is to what should be, again and again.

A change of an upload or of a session wakes it up; it reads the session, asks the upload service for the
uploads, lets the planner say how the session should be, writes that by compare-and-set and has the owner's
next jobs published. All of it may be repeated, so a crash anywhere only means a repeat; a sweep repeats it
for every session, for wake-ups that were lost, and enforces deadlines.

The sweep's work is bounded: it asks the upload service for a few sessions only, those it asked for longest ago.
While the upload service is away, sessions are brought forward with what is known without it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import replace
from datetime import timedelta

from services.common import tracing
from services.common.changes import ChangeFeed
from services.common.clock import Clock
from services.common.errors import (
    Aborted,
    AlreadyExists,
    DeadlineExceeded,
    InvalidArgument,
    ServiceError,
    Unavailable,
)
from services.common.jobs import JobQueue
from services.common.progress import Progress, ProgressBus
from services.common.state import Entry, RevisionConflict, mutate
from services.merge.admission import Admission
from services.merge.board import ProgressBoard
from services.merge.cleaning import SessionCleaner
from services.merge.deadlines import Deadlines, enforce, overdue_claims
from services.merge.domain import JobKind, Session, SessionState, Video
from services.merge.jobs import MergeJob, job_for
from services.merge.planner import ClipUpload, plan, seconds_until_retry
from services.merge.ports import Sessions, Uploads, Videos
from services.merge.replacement import ClipReplacer
from services.merge.service import KIND, Timing, missing_uploads
from services.merge.status import reached
from services.merge.transitions import complete
from services.merge.videos import video_id

log = logging.getLogger(__name__)

_AT_ONCE = 8
_RETRY_SECONDS = 2.0
_ASKED_A_SWEEP = 100


class MergeController:
    """The reconcile loop. ``encode`` makes a job's payload; ``sweep_seconds`` pass between sweeps.

    ``whole_seconds``: a longer clip is encoded in pieces.
    ``jobs_per_owner``: how many unfinished jobs of one owner the queue may hold. ``swept`` is called after each.
    """

    def __init__(
        self,
        sessions: Sessions,
        videos: Videos,
        uploads: Uploads,
        queue: JobQueue,
        progress: ProgressBus,
        board: ProgressBoard,
        cleaner: SessionCleaner,
        *,
        clock: Clock,
        encode: Callable[[MergeJob], bytes],
        timing: Timing | None = None,
        whole_seconds: float = math.inf,
        deadlines: Deadlines | None = None,
        sweep_seconds: float = 30.0,
        jobs_per_owner: int = 4,
        swept: Callable[[], None] = lambda: None,
    ) -> None:
        self._sessions = sessions
        self._videos = videos
        self._uploads = uploads
        self._queue = queue
        self._progress = progress
        self._board = board
        self._cleaner = cleaner
        self._clock = clock
        self._encode = encode
        self._timing = timing or Timing()
        self._whole_seconds = whole_seconds
        self._deadlines = deadlines or Deadlines()
        self._sweep_seconds = sweep_seconds
        self._swept = swept
        self._replacer = ClipReplacer(sessions, uploads, clock=clock, upload_seconds=self._timing.upload_seconds)
        self._admission = Admission(sessions, queue, clock=clock, encode=encode, per_owner=jobs_per_owner)
        self._asked: dict[str, int] = {}  # in which sweep the upload service was last asked for a session
        self._sweeps = 0

    async def follow(self, feed: ChangeFeed[object], key_of: Callable[[str, object | None], str | None]) -> None:
        """Reconciles the session that each change concerns, for ever. ``key_of(key, value)`` is the session's
        key, None when the change concerns none."""
        free = asyncio.Semaphore(_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            while True:
                await free.acquire()
                try:
                    change = await feed.next(5.0)
                except ServiceError as error:
                    log.info("no changes: %s", error)
                    await asyncio.sleep(1)
                    change = None
                if change is None:
                    free.release()
                    continue

                async def handle(change=change) -> None:  # type: ignore[no-untyped-def]  # binds the loop's value
                    try:
                        key = key_of(change.key, change.value)
                        again = None if key is None else await self._reconcile_or_retry(key)
                        await (change.ack() if again is None else change.retry(again))
                    finally:
                        free.release()

                group.create_task(handle())

    async def sweep(self) -> None:
        """Reconciles every session that wants something, at once and then now and then, for ever. At once because
        changes that were delivered to a controller that was killed come again only after the feed's ack_wait."""
        while True:
            try:
                await self._sweep()
                self._swept()
            except ServiceError as error:
                log.info("no sweep: %s", error)
            await asyncio.sleep(self._sweep_seconds)

    async def _sweep(self) -> None:
        waiting: dict[str, bool] = {}  # whether it waits for uploads, by key
        owners: set[str] = set()
        async for entry in self._sessions.list():
            if self._wants_something(entry.value):
                waiting[entry.key] = entry.value.state is SessionState.ACTIVE and not entry.value.all_uploaded
                owners.add(entry.value.owner)
        to_ask = self._next_to_ask([key for key, waits in waiting.items() if waits])
        for key, waits in waiting.items():
            ask = key in to_ask
            again = await self._reconcile_or_retry(key, ask=ask or not waits, publish=False)
            if ask and again == _RETRY_SECONDS:  # it is away: the others need not wait for it, too
                to_ask.clear()
        for owner in owners:
            await self._admission.publish(owner)

    def _next_to_ask(self, keys: list[str]) -> set[str]:
        """The sessions for which the upload service is asked in this sweep, those asked for longest ago."""
        self._sweeps += 1
        chosen = set(sorted(keys, key=lambda key: self._asked.get(key, 0))[:_ASKED_A_SWEEP])
        self._asked = {key: self._sweeps if key in chosen else self._asked.get(key, 0) for key in keys}
        return chosen

    def _wants_something(self, session: Session) -> bool:
        """An ended session that waits for its retention to pass does not: there may be a week's worth of them."""
        unsettled = bool(session.replacements or session.superseded)
        return session.state is SessionState.ACTIVE or unsettled or self._cleaner.due(session)

    async def listen(self) -> None:
        """Keeps the progress board, for ever."""
        async with self._progress.subscribe(KIND) as hints:
            with suppress(ServiceError):  # it was read at the start; this is for what came in between
                await self.recall()
            async for hint in hints:
                self._board.note(hint)

    async def recall(self) -> None:
        """Puts on the progress board what the controllers before this one had heard. Raises Unavailable."""
        async with aclosing(self._progress.latest(KIND)) as hints:
            async for hint in hints:
                self._board.recall(hint)

    async def _reconcile_or_retry(self, key: str, *, ask: bool = True, publish: bool = True) -> float | None:
        try:
            return await self.reconcile(key, ask=ask, publish=publish)
        except (ServiceError, RevisionConflict) as error:
            log.info("reconcile put off", extra={"data": {"key": key, "error": str(error)}})
        except Exception:
            log.exception("reconcile failed", extra={"data": {"key": key}})
        return _RETRY_SECONDS

    async def reconcile(self, key: str, *, ask: bool = True, publish: bool = True) -> float | None:
        """Brings one session to what it should be, and the queue to what its owner may have in it. Answers the
        seconds after which it wants this again, None when an event will say so. Raises ServiceError and
        RevisionConflict.

        ``ask``: the upload service, for clips that are not known to be uploaded. ``publish``: the owner's jobs.
        """
        entry = await self._sessions.get(key)
        if entry is None:
            return None
        session, uploads = entry.value, dict[str, ClipUpload]()
        away = False
        if session.replacements or session.superseded:
            session = await self._replacer.settle(key, session)
        if session.state is SessionState.ACTIVE:
            if not session.uploads_ready and not await self._make_uploads(entry):
                return None
            try:
                uploads = dict(await missing_uploads(self._uploads, session)) if ask else {}
                for upload in uploads.values():
                    self._board.see(upload)
            except (Unavailable, DeadlineExceeded) as error:
                log.info("the upload service is away: %s", error)
                away = True
            session = await self._advance(key, session, uploads)
        if session.state is not SessionState.ACTIVE:
            await self._cleaner.settle(key, session)
        if publish and not session.cleaned:  # one that ended makes room for the owner's others
            await self._admission.publish(session.owner)
        if session.state is not SessionState.ACTIVE:
            return None
        return _RETRY_SECONDS if away else seconds_until_retry(session, self._clock())

    async def _make_uploads(self, entry: Entry[Session]) -> bool:
        """Makes the uploads of a session whose InitiateMerge was cut short. False when they are refused for good:
        such a session is forgotten, as InitiateMerge would have done."""
        try:
            with tracing.span("make uploads", parent=entry.value.traceparent):
                await self._uploads.batch_initiate(entry.value)
        except ServiceError as refused:
            if not isinstance(refused, InvalidArgument | AlreadyExists) and self._clock() < entry.value.deadline:
                raise
            log.info("session forgotten", extra={"data": {"session": entry.value.id, "why": str(refused)}})
            await self._sessions.delete(entry.key, entry.revision)
            return False
        return True

    async def _advance(self, key: str, session: Session, uploads: Mapping[str, ClipUpload]) -> Session:
        with tracing.span("reconcile merge", parent=session.traceparent) as step:
            advanced = await self._advanced(key, session, uploads)
            if advanced == session:
                step.discard()  # most wake-ups and sweeps find nothing to do
            step.set("twotruths.merge.id", session.id)
            step.set("twotruths.merge.state", advanced.state.removeprefix("SESSION_STATE_").lower())
        return advanced

    async def _advanced(self, key: str, session: Session, uploads: Mapping[str, ClipUpload]) -> Session:
        before = session
        session = await self._write(key, lambda s: self._planned(s, uploads))
        if session.done(JobKind.MERGE) is not None and session.state is SessionState.ACTIVE:
            await self._make_video(session)
            session = await self._write(key, lambda s: complete(s, video_id(s.id), self._clock()))
            if session.state is not SessionState.COMPLETED:  # cancelled meanwhile, and maybe cleaned up
                await self._cleaner.withdraw_video(session)
        for unit in overdue_claims(before, self._clock(), self._deadlines):
            if unit not in session.units:  # its worker has no claim any more
                await self._queue.drop(job_for(session, unit, self._encode))
        if session != before:
            await self._progress.publish(Progress(KIND, session.id))
        return session

    def _planned(self, session: Session, uploads: Mapping[str, ClipUpload]) -> Session:
        now = self._clock()
        in_time = enforce(
            session,
            now,
            self._deadlines,
            lambda unit: self._admission.seen_since(session.owner, unit.ref.job_id(session.id)),
        )
        processing = timedelta(seconds=self._timing.processing_seconds)
        planned = plan(in_time, uploads, now, processing, whole_seconds=self._whole_seconds)
        if not planned.uploads_ready and planned.state is SessionState.ACTIVE:
            planned = replace(planned, uploads_ready=True)
        if planned is session or session.state is not SessionState.ACTIVE:
            return planned
        seen = reached(session, self._seen(session), self._board.fraction)
        return replace(planned, reached=seen.reached)

    def _seen(self, session: Session) -> Mapping[str, ClipUpload]:
        seen = (self._board.seen(clip.upload_id) for clip in session.clips)
        return {upload.id: upload for upload in seen if upload is not None}

    async def _write(self, key: str, change: Callable[[Session], Session]) -> Session:
        entry = await mutate(self._sessions, key, change)
        if entry is None:
            raise Aborted("the session is gone")
        return entry.value

    async def _make_video(self, session: Session) -> None:
        outcome = session.done(JobKind.MERGE)
        assert outcome is not None
        video = Video(
            id=video_id(session.id),
            owner=session.owner,
            merge_session_id=session.id,
            object_key=outcome.object_key,
            size=outcome.size,
            sha256=outcome.sha256,
            frames=outcome.frames,
            width=outcome.width,
            height=outcome.height,
            transcoded=not outcome.copied,
            created_at=self._clock(),
            sidecars=outcome.sidecars,
        )
        try:
            await self._videos.create(video.id, video)
        except RevisionConflict:
            log.debug("the video was made before", extra={"data": {"video": video.id}})
