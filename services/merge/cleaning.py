"""What an ended session leaves behind, and when it goes: jobs at once, files when nothing can want them any more.

A cancelled session's files go at once, those of a failed one (which can be retried until then) and of a completed
one after the retention. The video of a completed session stays: it is no longer the session's.

Before anything is removed the record says that a retry is no longer possible, so a session is never tried again
without its clips. All of it may be repeated, so a crash anywhere only means a repeat.

A worker that had not heard of the end may still store a file, and die before it deletes that. So what is removed
soon after the end is removed once more when no worker can have a claim any longer; only then nothing is left to
do.
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
    """An ended session's ``clips`` are kept so long, and after that its ``record``. Workers that had a claim when
    it ended may write files for as long as ``claims``."""

    clips: timedelta = timedelta(days=7)
    record: timedelta = timedelta(days=30)
    claims: timedelta = timedelta(minutes=26)


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
        """Whether the session's files may go now: for the first time, or for good."""
        if session.cleaned or not self._over(session):
            return False
        return not session.closed or self._age(session) >= self._retention.claims

    async def settle(self, key: str, session: Session) -> None:
        """Removes an ended session's jobs, and its files if that is due. Raises Unavailable, Aborted and
        RevisionConflict."""
        if session.cleaned:
            return
        await self._bury_or_drop(session)
        closed = await mutate(self._sessions, key, self._closed)
        if closed is None or not self.due(session) or not self._over(closed.value):
            return
        await self._remove_files(closed.value)
        cleaned = await mutate(
            self._sessions,
            key,
            self._without_files,
            ttl=lambda s: self._retention.record.total_seconds() if s.cleaned else None,
        )
        if cleaned is not None and cleaned.value.cleaned:
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
        over = self._over(session)
        failure = replace(
            session.failure, retry_available=session.failure.retry_available and not over, buried=True
        )
        if failure == session.failure and session.closed == over:
            return session
        return replace(session, failure=failure, closed=over)

    def _without_files(self, session: Session) -> Session:
        """Its files were removed: for good, once no worker can write any more."""
        if not self._over(session):
            return session
        if self._age(session) >= self._retention.claims:
            return replace(session, cleaned=True)
        return session if session.closed else replace(session, closed=True)

    def _over(self, session: Session) -> bool:
        """Whether nobody can want the files of the session any more."""
        if session.state in (SessionState.ACTIVE, SessionState.CANCELLED):
            return session.state is SessionState.CANCELLED
        return self._age(session) >= self._retention.clips

    def _age(self, session: Session) -> timedelta:
        return self._clock() - session.updated_at

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
