"""The merge worker: takes jobs from the queue, has a child process do them, and writes down what came out.

What makes a job take effect exactly once is the record, not the queue. The worker claims the attempt by
compare-and-set with a fresh token, writes its file under a key that holds the token, and its result counts
only if its token is still the current one; otherwise it deletes its file. When it stops it takes its claims back,
so those that are left are of workers that died. It acknowledges last, and only what it has finished: JetStream's
acknowledgements are not fenced, so one that comes late would take the job away from whoever works on it now.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any

from services.common import tracing
from services.common.clock import Clock
from services.common.errors import ServiceError, Unavailable
from services.common.jobs import Delivery, JobQueue
from services.common.progress import Progress, ProgressBus
from services.common.state import mutate, owned_key
from services.merge import traced_jobs
from services.merge.domain import Outcome, Session, StaleClaim, UnitRef
from services.merge.hints import telling
from services.merge.jobs import MergeJob
from services.merge.lanes import Lanes
from services.merge.media.errors import ErrorType, MediaError
from services.merge.ports import Sessions, Work
from services.merge.service import KIND
from services.merge.transitions import claim, finish, give_back, give_up, holds_claim

log = logging.getLogger(__name__)

MAX_DELIVERIES = 5  # of a job that no worker can read
MAX_CLAIMS = 5  # of an attempt, by workers that did not come back
_AWAY_SECONDS = 2.0  # until a job is delivered again that wanted something which was away
_GIVE_BACK_SECONDS = 2.0
_LOOK_SECONDS = 1.0  # a cancelled job stops within two, even if the hint of it was lost


class MergeWorker:
    """Works on ``jobs_at_once`` jobs and ``probes_at_once`` probes beside them (:mod:`services.merge.lanes`).
    ``decode`` reads a job's payload."""

    def __init__(
        self,
        sessions: Sessions,
        queue: JobQueue,
        progress: ProgressBus,
        work: Work,
        *,
        clock: Clock,
        decode: Callable[[bytes], MergeJob],
        jobs_at_once: int = 1,
        probes_at_once: int = 0,
    ) -> None:
        self._sessions = sessions
        self._queue = queue
        self._progress = progress
        self._work = work
        self._clock = clock
        self._decode = decode
        self._lanes = Lanes(queue, self._handle, jobs_at_once=jobs_at_once, probes_at_once=probes_at_once)

    async def run(self) -> None:
        """Works for ever. When cancelled it gives its jobs back at once."""
        await self._lanes.run()

    async def _handle(self, delivery: Delivery) -> None:
        """Does one job. A ServiceError leaves it to be delivered again."""
        with traced_jobs.process(delivery):
            await self._read_and_do(delivery)

    async def _read_and_do(self, delivery: Delivery) -> None:
        try:
            job = self._decode(delivery.job.payload)
        except ValueError:  # a worker of another version may understand it; if none does, it is no job
            log.exception("job cannot be read", extra={"data": {"job": delivery.job.id}})
            if delivery.count <= MAX_DELIVERIES:
                await delivery.release(self._queue.ack_wait)
                return
            await self._queue.bury(delivery.job, "it cannot be read")
            await delivery.ack()
            return
        try:
            await self._do(job, delivery)
        except asyncio.CancelledError:
            await delivery.release()
            raise
        except ServiceError as error:
            log.info("job given back: %s", error, extra={"data": {"job": delivery.job.id}})
            tracing.current().fail(type(error).__name__)
            await delivery.release(_AWAY_SECONDS)

    async def _do(self, job: MergeJob, delivery: Delivery) -> None:
        task = _Task(job)
        try:
            done = await self._claim_and_work(task, delivery)
        except _ClaimLost:
            log.info("claim lost", extra={"data": {"job": delivery.job.id}})
            tracing.current().fail("claim_lost")
            await self._discard(task)
            return
        except (ServiceError, asyncio.CancelledError):
            await self._give_back(task)
            raise
        if done:
            log.debug("job done", extra={"data": {"job": delivery.job.id}})
            await delivery.ack()
            await self._progress.publish(Progress(KIND, job.session_id))

    async def _claim_and_work(self, task: _Task, delivery: Delivery) -> bool:
        """Whether the job is to be acknowledged: there is nothing left to do."""
        try:
            entry = await mutate(self._sessions, task.key, lambda s: claim(s, task.ref, task.token, self._clock()))
        except StaleClaim:
            entry = None  # done, given up or not current
        if entry is None:
            return True
        await self._progress.publish(Progress(KIND, task.job.session_id))
        try:
            if _claims(entry.value, task.ref) > MAX_CLAIMS:
                raise MediaError(ErrorType.WORKER_LOST, "workers that took this job did not come back")
            outcome = await self._guarded(task, delivery, self._work_on(task, entry.value))
            return await self._finish(task, outcome)
        except MediaError as error:
            await self._give_up(task, error.error_type, error.message, retryable=error.retryable)
        except (ServiceError, _ClaimLost):
            raise
        except Exception:
            log.exception("job failed", extra={"data": {"job": delivery.job.id}})
            await self._give_up(task, ErrorType.WORKER_FAILED, "the worker failed", retryable=True)
        return True

    async def _give_back(self, task: _Task) -> None:
        """A worker that stops, or cannot reach what it needs, has not died of the job: its claim does not
        count."""
        with suppress(StaleClaim, ServiceError, TimeoutError):
            async with asyncio.timeout(_GIVE_BACK_SECONDS):
                await mutate(self._sessions, task.key, lambda s: give_back(s, task.ref, task.token, self._clock()))
                await self._discard(task)  # unless the outcome was written down after all: then the claim is stale

    async def _discard(self, task: _Task) -> None:
        """Removes what was made under a claim that does not count any more."""
        if task.outcome is not None:
            with suppress(Unavailable):  # it goes with the session
                await self._work.undo(task.outcome)

    async def _guarded(self, task: _Task, delivery: Delivery, work: Coroutine[Any, Any, Outcome]) -> Outcome:
        """Runs the work while the claim counts, and keeps the job meanwhile. Raises _ClaimLost."""
        working = asyncio.create_task(work)
        guard = asyncio.create_task(self._until_claim_is_lost(task, delivery))
        try:
            await asyncio.wait({working, guard}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                guard.result()
                raise _ClaimLost
            return working.result()
        finally:
            for running in (working, guard):
                running.cancel()
            await asyncio.gather(working, guard, return_exceptions=True)

    async def _until_claim_is_lost(self, task: _Task, delivery: Delivery) -> None:
        async with self._progress.subscribe(KIND, task.job.session_id) as hints:
            changed = asyncio.Event()
            listening = asyncio.create_task(_set_on_change(hints, changed))
            try:
                while True:
                    with suppress(Unavailable):  # the work goes on while the broker is away
                        entry = await self._sessions.get(task.key)
                        if entry is None or not holds_claim(entry.value, task.ref, task.token):
                            return
                    await delivery.keep()
                    changed.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(min(_LOOK_SECONDS, self._queue.ack_wait / 3)):
                            await changed.wait()
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)

    async def _work_on(self, task: _Task, session: Session) -> Outcome:
        async with telling(self._progress, task.job.session_id, task.ref) as on_progress:
            task.outcome = await self._work.do(session, task.ref, task.token, on_progress)
            return task.outcome

    async def _finish(self, task: _Task, outcome: Outcome) -> bool:
        """Writes the outcome down. False, and the file deleted, when another claim counts."""
        try:
            entry = await mutate(
                self._sessions, task.key, lambda s: finish(s, task.ref, task.token, outcome, self._clock())
            )
        except StaleClaim:
            entry = None
        if entry is None:
            await self._discard(task)
        return entry is not None

    async def _give_up(self, task: _Task, error_type: str, message: str, *, retryable: bool) -> None:
        tracing.current().fail(error_type)
        with suppress(StaleClaim):
            await mutate(
                self._sessions,
                task.key,
                lambda s: give_up(
                    s, task.ref, task.token, error_type, message, retryable=retryable, now=self._clock()
                ),
            )
            log.info("job given up", extra={"data": {"unit": task.unit, "error": error_type, "why": message}})
            await self._discard(task)  # unless another claim counts, or the outcome does after all


class _Task:
    """A job, the token to claim it with, its session's key, and what came out once it is done."""

    def __init__(self, job: MergeJob) -> None:
        self.job = job
        self.outcome: Outcome | None = None
        self.token = uuid.uuid4().hex
        self.key = owned_key(job.owner, job.session_id)

    @property
    def ref(self) -> UnitRef:
        return self.job.ref

    @property
    def unit(self) -> str:
        return self.ref.name


class _ClaimLost(Exception):
    """Another claim counts, or the session ended."""


def _claims(session: Session, ref: UnitRef) -> int:
    """How often the attempt was claimed by workers that did not give it back, the latest included."""
    unit = session.unit(ref.kind, ref.clip_index, ref.chunk)
    return 0 if unit is None else unit.deliveries


async def _set_on_change(hints: AsyncIterator[Progress], changed: asyncio.Event) -> None:
    async for hint in hints:
        if not hint.unit:  # the record changed; others are progress, much of it our own
            changed.set()
