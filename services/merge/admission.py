"""Which jobs may be in the queue: of each owner a few at a time, so that nobody waits behind a hundred sessions of
someone else's.

Nothing is written down for this. The records say which units are unfinished, the queue says which of their jobs
it holds, and what is missing up to the owner's share is published: retries first, then the oldest session's, what
ends one before what begins one. So a crash leaves nothing to repair: whenever a session changes, its owner's next
jobs follow. Rounds of one owner do not overlap, and whoever asks for one while one is waiting shares it: however
many of an owner's sessions change at once, their records are read one round at a time.

Since when a job has been in the queue is remembered here alone: a controller that starts counts from its start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from contextlib import aclosing
from datetime import datetime
from weakref import WeakValueDictionary

from services.common.clock import Clock
from services.common.jobs import Job, JobPriority, JobQueue
from services.common.state import owner_prefix
from services.merge import traced_jobs
from services.merge.domain import JobKind, Priority, Session, SessionState, Unit
from services.merge.jobs import MergeJob, job_for
from services.merge.ports import Sessions

_PRIORITY_RANK = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}
_ENDS_FIRST = {JobKind.MERGE: 0, JobKind.NORMALISE: 1, JobKind.PROBE: 2}


class Admission:
    """Publishes jobs, at most ``per_owner`` unfinished ones of each owner, and at most as many of low priority
    beside them. ``encode`` makes a job's payload."""

    def __init__(
        self,
        sessions: Sessions,
        queue: JobQueue,
        *,
        clock: Clock,
        encode: Callable[[MergeJob], bytes],
        per_owner: int,
    ) -> None:
        self._sessions = sessions
        self._queue = queue
        self._clock = clock
        self._encode = encode
        self._per_owner = per_owner
        self._waiting: dict[str, asyncio.Task[None]] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._seen: dict[str, dict[str, datetime]] = {}

    def seen_since(self, owner: str, job_id: str) -> datetime | None:
        """Since when the job has been seen in the queue, None when it was not at the owner's latest round."""
        return self._seen.get(owner, {}).get(job_id)

    async def publish(self, owner: str) -> None:
        """Returns when all jobs that the owner may have in the queue, as the records are by now, are there. Raises
        Unavailable."""
        waiting = self._waiting.get(owner)
        if waiting is None:
            waiting = self._waiting[owner] = asyncio.create_task(self._in_turn(owner))
            waiting.add_done_callback(_look_at_error)
        await asyncio.shield(waiting)

    async def _in_turn(self, owner: str) -> None:
        lock = self._turns.setdefault(owner, asyncio.Lock())
        try:
            await lock.acquire()
        finally:
            del self._waiting[owner]  # who comes from here on may have written what this round does not read
        try:
            await self._round(owner)
        finally:
            lock.release()

    async def _round(self, owner: str) -> None:
        group = owner_prefix(owner)
        # Asked before the records are read: a job that ends in between is unfinished in neither, so it is not
        # published again.
        queued = frozenset(await self._queue.unfinished(group))
        async with aclosing(self._sessions.list(group)) as entries:
            active = [entry.value async for entry in entries if entry.value.state is SessionState.ACTIVE]
        wanted = [job_for(session, unit, self._encode) for session, unit in in_order(active)]
        chosen = admitted(wanted, queued, self._per_owner)
        for job in chosen:
            await traced_jobs.publish(self._queue, job)
        self._remember(owner, queued.intersection(job.id for job in wanted).union(job.id for job in chosen))

    def _remember(self, owner: str, queued: AbstractSet[str]) -> None:
        before, now = self._seen.pop(owner, {}), self._clock()
        if queued:
            self._seen[owner] = {id_: before.get(id_, now) for id_ in queued}


def in_order(sessions: Iterable[Session]) -> list[tuple[Session, Unit]]:
    """The unfinished units of an owner's sessions, the one that is to be done first at first."""
    units = [(session, unit) for session in sessions for unit in session.unfinished]
    return sorted(
        units,
        key=lambda su: (
            _PRIORITY_RANK[su[1].priority],
            su[0].created_at,
            su[0].id,
            _ENDS_FIRST.get(su[1].kind, 1),
            su[1].clip_index,
            su[1].chunk,
        ),
    )


def admitted(wanted: Iterable[Job], queued: Iterable[str], share: int) -> list[Job]:
    """The first of the ``wanted`` jobs that are not ``queued`` (ids) and that the owner's share has room for. Jobs
    in the queue that nobody wants any more take no room, and those of low priority none from the others: they may
    wait for long, and what is waited for must not wait for them."""
    wanted, queued = list(wanted), set(queued)
    room = share - sum(job.id in queued and job.priority is not JobPriority.LOW for job in wanted)
    waiting = sum(job.id in queued and job.priority is JobPriority.LOW for job in wanted)
    chosen: list[Job] = []
    for job in wanted:
        taken = waiting if job.priority is JobPriority.LOW else 0
        if job.id not in queued and len(chosen) + taken < room:
            chosen.append(job)
    return chosen


def _look_at_error(task: asyncio.Task[None]) -> None:
    """Those who waited may all have been cancelled: then nobody else looks."""
    if not task.cancelled():
        task.exception()
