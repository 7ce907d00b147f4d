"""What a worker lives through: unreadable jobs, results that cannot be written down, being stopped at any step."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.common.adapters.directory_objects import DirectoryObjectStore
from services.common.adapters.memory import MemoryJobQueue, MemoryProgressBus, MemoryStateStore, _Queued
from services.common.errors import ResourceExhausted, Unavailable
from services.common.jobs import Job
from services.common.objects import ObjectInfo
from services.common.state import Entry, mutate, owned_key
from services.merge.domain import Clip, JobKind, Outcome, Session, Unit, UnitRef, UnitState
from services.merge.jobs import KINDS, MergeJob, job_for
from services.merge.patience import Patience
from services.merge.ports import OnProgress
from services.merge.scratch import Scratch
from services.merge.timeline import Canvas, ClipInfo
from services.merge.transitions import cancel
from services.merge.work import MergeWork
from services.merge.worker import MergeWorker, _Task
from tests.rpc.merge_world import SteeredMedia

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = owned_key("alice", "s")
AT_ONCE = Patience(0)
PROBED = Outcome(clip=ClipInfo("mp4", "h264", 1280, 720, 0, 3.0, 30.0, True, "aac"))


class Sessions(MemoryStateStore[Session]):
    """A store that a test can stop at one write."""

    def __init__(self) -> None:
        super().__init__()
        self.refuse: UnitState | None = None
        self.hang: UnitState | None = None
        self.hanging = asyncio.Event()

    async def update(self, key: str, value: Session, revision: int, *, ttl: float | None = None) -> Entry[Session]:
        state = value.units[0].state
        if state is self.hang:
            self.hanging.set()
            await asyncio.Event().wait()
        if state is self.refuse:
            raise ValueError("no such record")
        return await super().update(key, value, revision, ttl=ttl)

    async def unit(self) -> Unit:
        entry = await self.get(KEY)
        assert entry is not None
        return entry.value.units[0]


class QuickWork(MergeWork):
    """Work that is done at once, and what of it was undone."""

    def __init__(self) -> None:
        self.undone: list[Outcome] = []

    async def do(self, session: Session, ref: UnitRef, token: str, on_progress: OnProgress) -> Outcome:
        return PROBED

    async def undo(self, outcome: Outcome) -> None:
        self.undone.append(outcome)


def decode(payload: bytes) -> MergeJob:
    if payload != b"probe":
        raise ValueError("not of this version")
    return MergeJob("s", "alice", JobKind.PROBE, 0, 0, 1)


@pytest.fixture
async def sessions() -> Sessions:
    store = Sessions()
    clip = Clip(0, "upload", "a.mp4", 1, 1.0, "video/mp4", source_key="uploads/a")
    session = Session("s", "alice", "", "", (clip,), NOW, NOW, NOW + timedelta(hours=1))
    await store.create(KEY, replace(session, units=(Unit(JobKind.PROBE, 0, NOW),)))
    return store


async def published(sessions: Sessions, queue: MemoryJobQueue) -> None:
    entry = await sessions.get(KEY)
    assert entry is not None
    await queue.publish(job_for(entry.value, entry.value.units[0], lambda _: b"probe"))


def start(
    sessions: Sessions, queue: MemoryJobQueue, work: QuickWork | None = None, kind: type[MergeWorker] = MergeWorker
) -> asyncio.Task[None]:
    worker = kind(sessions, queue, MemoryProgressBus(), work or QuickWork(), clock=lambda: NOW, decode=decode)
    return asyncio.create_task(worker.run())


async def stop(task: asyncio.Task[None]) -> None:
    assert not task.done(), "it did not live through it"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_job_that_cannot_be_read_is_left_to_others_and_then_buried(sessions: Sessions) -> None:
    queue = MemoryJobQueue(ack_wait=0.01)
    await queue.publish(Job("merge", "strange", b"of another version"))
    await published(sessions, queue)
    task = start(sessions, queue)
    async with asyncio.timeout(10):
        while not queue.dead:
            await asyncio.sleep(0.01)
    assert [job.id for job, _ in queue.dead] == ["strange"]
    assert (await sessions.unit()).state is UnitState.DONE, "the others' jobs are done meanwhile"
    await stop(task)


async def test_a_cancelled_job_stops_within_two_seconds_though_nobody_was_told(sessions: Sessions) -> None:
    started, stopped = asyncio.Event(), asyncio.Event()

    class Hanging(QuickWork):
        async def do(self, session: Session, ref: UnitRef, token: str, on_progress: OnProgress) -> Outcome:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()
            raise AssertionError("it hangs until it is cancelled")

    queue = MemoryJobQueue(ack_wait=30)
    await published(sessions, queue)
    task = start(sessions, queue, Hanging())
    await started.wait()
    await mutate(sessions, KEY, lambda s: cancel(s, NOW))
    async with asyncio.timeout(2):
        await stopped.wait()
    await stop(task)


@pytest.mark.parametrize("step", [UnitState.CLAIMED, UnitState.DONE])
async def test_a_worker_stopped_while_it_writes_gives_its_job_back_at_once_and_leaves_nothing(
    sessions: Sessions, step: UnitState
) -> None:
    queue, work, sessions.hang = MemoryJobQueue(ack_wait=30), QuickWork(), step
    await published(sessions, queue)
    task = start(sessions, queue, work)
    async with asyncio.timeout(10):
        await sessions.hanging.wait()
    await stop(task)
    assert work.undone == ([PROBED] if step is UnitState.DONE else [])
    again = await queue.fetch(KINDS, 1)
    assert again is not None
    assert again.count == 2


async def test_a_result_that_cannot_be_written_down_is_a_failed_attempt(sessions: Sessions) -> None:
    queue, work, sessions.refuse = MemoryJobQueue(ack_wait=30), QuickWork(), UnitState.DONE
    await published(sessions, queue)
    task = start(sessions, queue, work)
    async with asyncio.timeout(10):
        while (await sessions.unit()).state is not UnitState.FAILED or not work.undone:
            await asyncio.sleep(0.01)
    await stop(task)
    unit = await sessions.unit()
    assert (unit.error_type, unit.retryable) == ("worker_failed", True)


async def test_what_a_worker_made_before_it_saw_that_its_claim_is_lost_goes(sessions: Sessions) -> None:
    made, undone = asyncio.Event(), asyncio.Event()

    class JustMade(QuickWork):
        async def undo(self, outcome: Outcome) -> None:
            assert outcome is PROBED
            undone.set()

    class SlowToEnd(MergeWorker):
        async def _work_on(self, task: _Task, session: Session) -> Outcome:
            outcome = await super()._work_on(task, session)
            made.set()
            await asyncio.Event().wait()
            return outcome

    queue = MemoryJobQueue(ack_wait=30)
    await published(sessions, queue)
    task = start(sessions, queue, JustMade(), SlowToEnd)
    await made.wait()
    await mutate(sessions, KEY, lambda s: cancel(s, NOW))
    async with asyncio.timeout(10):
        await undone.wait()
    await stop(task)


class Failing(DirectoryObjectStore):
    """A store that refuses so many files."""

    def __init__(self, root: Path, refusals: float) -> None:
        super().__init__(root)
        self.refusals = refusals
        self.asked = 0

    async def put_file(self, key: str, source: Path) -> ObjectInfo:
        self.asked += 1
        if self.asked <= self.refusals:
            raise (ResourceExhausted if self.asked % 2 else Unavailable)("not now")
        return await super().put_file(key, source)


@pytest.mark.parametrize("refusals", [2, math.inf])
async def test_while_the_store_is_full_or_away_what_was_made_is_kept_and_then_it_is_said_why(
    tmp_path: Path, refusals: float
) -> None:
    (tmp_path / "clip").write_bytes(b"clip")
    await DirectoryObjectStore(tmp_path).put_file("uploads/a", tmp_path / "clip")
    objects, scratch, media = Failing(tmp_path, refusals), Scratch(tmp_path / "scratch"), SteeredMedia()
    clip = Clip(0, "upload", "a.mp4", 1, 1.0, "video/mp4", source_key="uploads/a")
    unit = Unit(JobKind.NORMALISE, 0, NOW)
    session = Session("s", "alice", "", "", (clip,), NOW, NOW, NOW, canvas=Canvas(64, 64), units=(unit,))
    sessions, queue = Sessions(), MemoryJobQueue()
    await sessions.create(KEY, session)
    await queue.publish(job_for(session, unit, lambda _: b""))
    worker = MergeWorker(
        sessions,
        queue,
        MemoryProgressBus(),
        MergeWork(objects, media, scratch, patience=Patience(0.5, 0.01, 0.02)),
        clock=lambda: NOW,
        decode=lambda _: MergeJob("s", "alice", JobKind.NORMALISE, 0, 0, 1),
    )
    task = asyncio.create_task(worker.run())
    async with asyncio.timeout(10):
        while (unit := await sessions.unit()).state not in (UnitState.DONE, UnitState.FAILED):
            await asyncio.sleep(0.01)
    await stop(task)
    assert media.done == ["normalise"], "once, whatever the store did"
    assert not list((tmp_path / "scratch").glob("*/*"))
    if refusals == 2:
        assert (unit.state, objects.asked) == (UnitState.DONE, 3)
    else:
        assert (unit.error_type, unit.retryable, objects.asked > 3) == ("storage_unavailable", True, True)
    scratch.close()


async def test_a_job_goes_back_at_once_when_the_broker_is_away_and_that_is_not_the_jobs_fault(
    sessions: Sessions,
) -> None:
    class Away(QuickWork):
        refusals = 7

        async def do(self, session: Session, ref: UnitRef, token: str, on_progress: OnProgress) -> Outcome:
            if self.refusals:
                self.refusals -= 1
                raise Unavailable("no leader")
            return PROBED

    class Impatient(MemoryJobQueue):
        def make_ready(self, queued: _Queued, after: float) -> None:
            waits.append(after)
            super().make_ready(queued, 0)

    waits: list[float] = []
    queue = Impatient(ack_wait=30)
    await published(sessions, queue)
    task = start(sessions, queue, Away())
    async with asyncio.timeout(10):
        while (await sessions.unit()).state is not UnitState.DONE:
            await asyncio.sleep(0.01)
    await stop(task)
    assert [wait for wait in waits if wait != 30] == [2] * 7


async def test_a_job_is_done_though_every_worker_before_was_told_to_stop(sessions: Sessions) -> None:
    started = asyncio.Event()

    class Hanging(QuickWork):
        async def do(self, session: Session, ref: UnitRef, token: str, on_progress: OnProgress) -> Outcome:
            started.set()
            await asyncio.Event().wait()
            raise AssertionError("it hangs until it is cancelled")

    queue = MemoryJobQueue(ack_wait=30)
    await published(sessions, queue)
    for _ in range(6):
        task = start(sessions, queue, Hanging())
        async with asyncio.timeout(10):
            await started.wait()
        started.clear()
        await stop(task)
        assert ((await sessions.unit()).state, (await sessions.unit()).deliveries) == (UnitState.QUEUED, 0)
    task = start(sessions, queue)
    async with asyncio.timeout(10):
        while (await sessions.unit()).state is not UnitState.DONE:
            await asyncio.sleep(0.01)
    await stop(task)
