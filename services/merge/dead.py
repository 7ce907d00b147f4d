"""The jobs that failed for good, and what the operator can do about one: have its session tried again, or drop it.

A retry goes through the session's record, as the player's does: units that failed get their next attempt, which
is a new job. So a job that was dead is never put back into the queue itself, and trying it again twice is trying
it once. Unlike the player the operator may also retry what was refused for good, for what was wrong may have been
ours.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.common.clock import Clock
from services.common.errors import FailedPrecondition, InvalidArgument, NotFound
from services.common.jobs import DeadJob, DeadJobs
from services.common.progress import Progress, ProgressBus
from services.common.state import mutate, owned_key
from services.merge.cleaning import Retention
from services.merge.domain import Session, SessionState
from services.merge.jobs import MergeJob
from services.merge.ports import Sessions
from services.merge.service import KIND, Timing
from services.merge.transitions import retry

_HINT = "`mesh jobs drop` removes it"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead job as a person sees it; ``message`` is None when this version cannot read it."""

    job: DeadJob
    message: MergeJob | None

    @property
    def id(self) -> str:
        return self.job.id

    @property
    def buried_at(self) -> datetime:
        return self.job.buried_at


class DeadLetters:
    """Use cases of the operator. ``decode`` reads a job's payload."""

    def __init__(
        self,
        sessions: Sessions,
        dead: DeadJobs,
        progress: ProgressBus,
        *,
        clock: Clock,
        decode: Callable[[bytes], MergeJob],
        timing: Timing,
        retention: Retention,
    ) -> None:
        self._sessions = sessions
        self._dead = dead
        self._progress = progress
        self._clock = clock
        self._decode = decode
        self._timing = timing
        self._retention = retention

    async def list(self) -> list[DeadLetter]:
        """All of them, the latest last. Raises Unavailable."""
        async with aclosing(self._dead.list()) as jobs:
            return [DeadLetter(job, self._read(job)) async for job in jobs]

    async def retry(self, id_: str) -> DeadLetter:
        """Has the session of this job tried again, and removes the job from the dead. ``id_`` may be the beginning
        of an id. Raises NotFound, InvalidArgument (more than one job's), FailedPrecondition (nothing to retry) and
        Unavailable."""
        letter = await self._find(id_)
        job = letter.message
        if job is None:
            raise FailedPrecondition(f"{letter.id} cannot be read by this version: {_HINT}")
        entry = await mutate(
            self._sessions, owned_key(job.owner, job.session_id), lambda s: self._again(letter.id, job, s)
        )
        if entry is None:
            raise FailedPrecondition(f"the session of {letter.id} is gone: {_HINT}")
        await self._dead.remove(letter.job)
        await self._progress.publish(Progress(KIND, job.session_id))
        return letter

    async def drop(self, id_: str) -> DeadLetter:
        """Removes the job from the dead; its session stays as it is. Raises as :meth:`retry`."""
        letter = await self._find(id_)
        await self._dead.remove(letter.job)
        return letter

    def _again(self, id_: str, job: MergeJob, session: Session) -> Session:
        now = self._clock()
        if session.state is not SessionState.FAILED:
            state = session.state.removeprefix("SESSION_STATE_").lower()
            raise FailedPrecondition(f"the session of {id_} is {state}, not failed: {_HINT}")
        unit = session.unit(job.kind, job.clip_index, job.chunk)
        if unit is None or unit.ref != job.ref:
            raise FailedPrecondition(f"{id_} is not its session's latest attempt: {_HINT}")
        if session.cleaned or now - session.updated_at >= self._retention.clips:
            raise FailedPrecondition(f"the clips of {id_} are gone: {_HINT}")
        timing = self._timing
        seconds = timing.processing_seconds if session.all_uploaded else timing.upload_seconds
        return retry(session, now + timedelta(seconds=seconds), now)

    async def _find(self, id_: str) -> DeadLetter:
        letters = await self.list()
        exact = [letter for letter in letters if letter.id == id_]
        found = exact or [letter for letter in letters if id_ and letter.id.startswith(id_)]
        if not found:
            raise NotFound(f"no dead job has the id {id_!r}: `mesh jobs dead` lists them")
        if len(found) > 1:
            raise InvalidArgument(f"{len(found)} dead jobs begin with {id_!r}: give more of the id")
        return found[0]

    def _read(self, job: DeadJob) -> MergeJob | None:
        try:
            return self._decode(job.payload)
        except ValueError:
            return None
