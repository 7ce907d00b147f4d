"""The merge controller: brings what is to what should be, again and again.

A change of an upload or of a session wakes it up; it reads the session, asks the upload service for the
uploads, lets the planner say how the session should be, writes that by compare-and-set and publishes a job for
every unfinished unit. All of it may be repeated, so a crash anywhere only means a repeat; a sweep repeats it
for every session, for wake-ups that were lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta

from services.common.changes import ChangeFeed
from services.common.clock import Clock
from services.common.errors import Aborted, ServiceError
from services.common.jobs import JobQueue
from services.common.objects import ObjectStore
from services.common.progress import Progress, ProgressBus
from services.common.state import RevisionConflict, mutate
from services.merge.board import ProgressBoard
from services.merge.domain import JobKind, Session, SessionState, UnitState, Video, complete
from services.merge.jobs import MergeJob, job_for
from services.merge.planner import ClipUpload, plan, seconds_until_retry
from services.merge.ports import Sessions, Uploads, Videos
from services.merge.service import KIND, missing_uploads
from services.merge.videos import video_id

log = logging.getLogger(__name__)

_AT_ONCE = 8
_RETRY_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Housekeeping:
    """``sweep_seconds`` between sweeps; an ended session's clips are kept ``retention`` and its record
    ``remembered``."""

    sweep_seconds: float = 30.0
    retention: timedelta = timedelta(days=7)
    remembered: timedelta = timedelta(days=30)


class MergeController:
    """The reconcile loop. ``encode`` makes a job's payload."""

    def __init__(
        self,
        sessions: Sessions,
        videos: Videos,
        uploads: Uploads,
        queue: JobQueue,
        objects: ObjectStore,
        progress: ProgressBus,
        board: ProgressBoard,
        *,
        clock: Clock,
        encode: Callable[[MergeJob], bytes],
        housekeeping: Housekeeping | None = None,
    ) -> None:
        self._sessions = sessions
        self._videos = videos
        self._uploads = uploads
        self._queue = queue
        self._objects = objects
        self._progress = progress
        self._board = board
        self._clock = clock
        self._encode = encode
        self._housekeeping = housekeeping or Housekeeping()

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
        """Reconciles every session, at once and then now and then, for ever. At once because changes that were
        delivered to a controller that was killed come again only after the feed's ack_wait."""
        while True:
            try:
                keys = [entry.key async for entry in self._sessions.list() if not entry.value.cleaned]
            except ServiceError as error:
                log.info("no sweep: %s", error)
                keys = []
            for key in keys:
                await self._reconcile_or_retry(key)
            await asyncio.sleep(self._housekeeping.sweep_seconds)

    async def listen(self) -> None:
        """Keeps the progress board, for ever."""
        async with self._progress.subscribe(KIND) as hints:
            async for hint in hints:
                self._board.note(hint)

    async def _reconcile_or_retry(self, key: str) -> float | None:
        try:
            return await self.reconcile(key)
        except (ServiceError, RevisionConflict) as error:
            log.info("reconcile put off", extra={"data": {"key": key, "error": str(error)}})
        except Exception:
            log.exception("reconcile failed", extra={"data": {"key": key}})
        return _RETRY_SECONDS

    async def reconcile(self, key: str) -> float | None:
        """Brings one session to what it should be. Answers the seconds after which it wants this again, None
        when an event will say so. Raises Unavailable and Aborted."""
        entry = await self._sessions.get(key)
        if entry is None:
            return None
        session = entry.value
        if session.state is SessionState.ACTIVE:
            session = await self._advance(key, session)
        if session.state is not SessionState.ACTIVE:
            await self._clean_up(key, session)
            return None
        return seconds_until_retry(session, self._clock())

    async def _advance(self, key: str, session: Session) -> Session:
        if not session.uploads_ready:  # InitiateMerge was cut short
            await self._uploads.batch_initiate(session)
        uploads = await missing_uploads(self._uploads, session)
        before = session
        session = await self._write(key, lambda s: self._planned(s, uploads))
        if session.done(JobKind.MERGE) is not None and session.state is SessionState.ACTIVE:
            await self._make_video(session)
            session = await self._write(key, lambda s: complete(s, video_id(s.id), self._clock()))
        for unit in session.unfinished if session.state is SessionState.ACTIVE else ():
            await self._queue.publish(job_for(session, unit, self._encode))
        if session != before:
            await self._progress.publish(Progress(KIND, session.id))
        return session

    def _planned(self, session: Session, uploads: Mapping[str, ClipUpload]) -> Session:
        planned = plan(session, uploads, self._clock())
        if planned.uploads_ready or planned.state is not SessionState.ACTIVE:
            return planned
        return replace(planned, uploads_ready=True)

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
            created_at=self._clock(),
        )
        try:
            await self._videos.create(video.id, video)
        except RevisionConflict:
            log.debug("the video was made before", extra={"data": {"video": video.id}})

    async def _clean_up(self, key: str, session: Session) -> None:
        """Removes what an ended session does not need: jobs at once, clips when nothing can want them."""
        if session.cleaned:
            return
        await self._bury_or_drop(session)
        if not self._may_forget(session):
            return
        for clip in session.clips:
            await self._uploads.discard(session.owner, clip.upload_id)
        async for info in self._objects.list(f"merges/{session.id}/"):
            await self._objects.delete(info.key)
        cleaned = await mutate(
            self._sessions,
            key,
            lambda s: replace(s, cleaned=True) if s.state is not SessionState.ACTIVE else s,
            ttl=lambda s: self._housekeeping.remembered.total_seconds() if s.cleaned else None,
        )
        if cleaned is not None:
            log.info("session cleaned up", extra={"data": {"session": session.id, "state": cleaned.value.state}})

    async def _bury_or_drop(self, session: Session) -> None:
        for unit in session.units:
            job = job_for(session, unit, self._encode)
            if unit.state in (UnitState.QUEUED, UnitState.CLAIMED):
                await self._queue.drop(job)
            elif unit.state is UnitState.FAILED and session.state is SessionState.FAILED:
                await self._queue.bury(job, f"{unit.error_type}: {unit.error_message}")

    def _may_forget(self, session: Session) -> bool:
        if session.state is SessionState.CANCELLED:
            return True
        return self._clock() - session.updated_at >= self._housekeeping.retention
