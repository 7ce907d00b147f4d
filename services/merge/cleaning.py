"""What an ended session leaves behind, and when it goes: jobs at once, files when nothing can want them any more.

A cancelled session's files go at once, those of a failed one (which can be retried until then) and of a completed
one after the retention. The video of a completed session stays: it is no longer the session's.

Before anything is removed the record says that a retry is no longer possible, so a session is never tried again
without its clips. All of it may be repeated, so a crash anywhere only means a repeat.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

from services.common.clock import Clock
from services.common.jobs import JobQueue
from services.common.objects import ObjectStore
from services.common.state import mutate
from services.merge.domain import JobKind, Session, SessionState, UnitState
from services.merge.jobs import MergeJob, job_for
from services.merge.ports import Sessions, Uploads, Videos
from services.merge.videos import video_id

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Retention:
    """An ended session's ``clips`` are kept so long, and after that its ``record``."""

    clips: timedelta = timedelta(days=7)
    record: timedelta = timedelta(days=30)


class SessionCleaner:
    """Removes what ended sessions leave behind. ``encode`` makes a job's payload."""

    def __init__(
        self,
        sessions: Sessions,
        videos: Videos,
        uploads: Uploads,
        queue: JobQueue,
        objects: ObjectStore,
        *,
        clock: Clock,
        encode: Callable[[MergeJob], bytes],
        retention: Retention | None = None,
    ) -> None:
        self._sessions = sessions
        self._videos = videos
        self._uploads = uploads
        self._queue = queue
        self._objects = objects
        self._clock = clock
        self._encode = encode
        self._retention = retention or Retention()

    def due(self, session: Session) -> bool:
        """Whether the session's files may go now."""
        if session.cleaned or session.state is SessionState.ACTIVE:
            return False
        if session.state is SessionState.CANCELLED:
            return True
        return self._clock() - session.updated_at >= self._retention.clips

    async def settle(self, key: str, session: Session) -> None:
        """Removes an ended session's jobs, and its files if that is due. Raises Unavailable, Aborted and
        RevisionConflict."""
        if session.cleaned:
            return
        await self._bury_or_drop(session)
        closed = await mutate(self._sessions, key, self._closed)
        if closed is None or not self.due(closed.value):
            return
        await self._remove_files(closed.value)
        cleaned = await mutate(
            self._sessions,
            key,
            lambda s: replace(s, cleaned=True) if self.due(s) else s,
            ttl=lambda _: self._retention.record.total_seconds(),
        )
        if cleaned is not None:
            log.info("session cleaned up", extra={"data": {"session": session.id, "state": cleaned.value.state}})

    async def withdraw_video(self, session: Session) -> None:
        """Removes the record of a video whose session ended otherwise."""
        entry = await self._videos.get(video_id(session.id))
        if entry is not None:
            await self._videos.delete(entry.key, entry.revision)

    def _closed(self, session: Session) -> Session:
        """Its jobs are buried; once its files may go it cannot be retried, nor a clip of it replaced."""
        if session.state is not SessionState.FAILED or session.failure is None:
            return session
        due = self.due(session)
        failure = replace(
            session.failure, retry_available=session.failure.retry_available and not due, buried=True
        )
        if failure == session.failure and session.closed == due:
            return session
        return replace(session, failure=failure, closed=due)

    async def _bury_or_drop(self, session: Session) -> None:
        failure = session.failure if session.state is SessionState.FAILED else None
        for unit in session.units:
            job = job_for(session, unit, self._encode)
            if unit.state in (UnitState.QUEUED, UnitState.CLAIMED):
                await self._queue.drop(job)
            # Once: an operator may have dropped it from the dead since.
            if failure is None or failure.buried or unit.state is UnitState.DONE:
                continue
            if unit.state is UnitState.FAILED:
                await self._queue.bury(job, f"{unit.error_type}: {unit.error_message}")
            elif failure.error_type.endswith("_timeout"):
                await self._queue.bury(job, f"{failure.error_type}: {failure.message}")

    async def _remove_files(self, session: Session) -> None:
        replaced = (*(clip.upload_id for clip in session.replacements), *session.superseded)
        for id_ in (*(clip.upload_id for clip in session.clips), *replaced):
            await self._uploads.discard(session.owner, id_)
        outcome = session.done(JobKind.MERGE) if session.state is SessionState.COMPLETED else None
        if outcome is None:
            await self.withdraw_video(session)
        # Under videos/ there may also be what a worker wrote that was killed before it could say so.
        for prefix in (f"merges/{session.id}/", f"videos/{session.id}/"):
            async for info in self._objects.list(prefix):
                if outcome is None or info.key not in outcome.object_keys:
                    await self._objects.delete(info.key)
