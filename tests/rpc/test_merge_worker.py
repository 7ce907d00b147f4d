"""What a worker lives through: unreadable jobs, results that cannot be written down, being stopped at any step."""

from __future__ import annotations

import asyncio
import hashlib
import math
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
from services.merge.media.errors import MediaError
from services.merge.media.limits import Limits
from services.merge.media.protocol import MAX_NUMBER, ProtocolError, parse_progress, parse_result
from services.merge.patience import Patience
from services.merge.ports import OnProgress
from services.merge.results import believed_clip, believed_frames, believed_video
from services.merge.scratch import Scratch
from services.merge.timeline import Canvas, ClipInfo, Coded, MergedFile, NormalisedClip
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


def start(sessions: Sessions, queue: MemoryJobQueue, work: QuickWork | None = None) -> asyncio.Task[None]:
    progress = MemoryProgressBus()
    worker = MergeWorker(sessions, queue, progress, work or QuickWork(), clock=lambda: NOW, decode=decode)
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
    worker = MergeWorker(sessions, queue, MemoryProgressBus(), Hanging(), clock=lambda: NOW, decode=decode)
    task = asyncio.create_task(worker.run())
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


async def test_a_job_that_is_stopped_while_its_file_is_being_stored_leaves_none(tmp_path: Path) -> None:
    storing, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    class SlowObjects(DirectoryObjectStore):
        def _put(self, key: str, source: Path) -> ObjectInfo:
            stored = super()._put(key, source)
            loop.call_soon_threadsafe(storing.set)
            go_on.wait(10)  # the disk is slow to say that it has it
            return stored

    (tmp_path / "clip").write_bytes(b"clip")
    await DirectoryObjectStore(tmp_path).put_file("uploads/a", tmp_path / "clip")
    objects, scratch = SlowObjects(tmp_path), Scratch(tmp_path / "scratch")
    clip = Clip(0, "upload", "a.mp4", 1, 1.0, "video/mp4", source_key="uploads/a")
    session = Session("s", "alice", "", "", (clip,), NOW, NOW, NOW, canvas=Canvas(64, 64))
    ref = UnitRef(JobKind.NORMALISE, 0, 0, 1)
    work = MergeWork(objects, SteeredMedia(), scratch)
    doing = asyncio.create_task(work.do(session, ref, "token", lambda *_: None))
    await storing.wait()
    doing.cancel()
    loop.call_later(0.05, go_on.set)
    await asyncio.gather(doing, return_exceptions=True)
    assert doing.cancelled()
    assert [info.key async for info in objects.list("")] == ["uploads/a"]
    scratch.close()


async def test_a_job_that_is_stopped_when_its_file_is_stored_leaves_none(tmp_path: Path) -> None:
    stored = asyncio.Event()

    class SlowToTidy(Scratch):
        @asynccontextmanager
        async def folder(self) -> AsyncIterator[Path]:
            async with super().folder() as path:
                yield path
                stored.set()
                await asyncio.Event().wait()

    (tmp_path / "clip").write_bytes(b"clip")
    objects, scratch = DirectoryObjectStore(tmp_path), SlowToTidy(tmp_path / "scratch")
    await objects.put_file("uploads/a", tmp_path / "clip")
    clip = Clip(0, "upload", "a.mp4", 1, 1.0, "video/mp4", source_key="uploads/a")
    session = Session("s", "alice", "", "", (clip,), NOW, NOW, NOW, canvas=Canvas(64, 64))
    ref, work = UnitRef(JobKind.NORMALISE, 0, 0, 1), MergeWork(objects, SteeredMedia(), scratch)
    doing = asyncio.create_task(work.do(session, ref, "token", lambda *_: None))
    await stored.wait()
    assert len([info async for info in objects.list("")]) == 2
    doing.cancel()
    await asyncio.gather(doing, return_exceptions=True)
    assert doing.cancelled()
    assert [info.key async for info in objects.list("")] == ["uploads/a"]
    scratch.close()


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
    worker = SlowToEnd(sessions, queue, MemoryProgressBus(), JustMade(), clock=lambda: NOW, decode=decode)
    task = asyncio.create_task(worker.run())
    await made.wait()
    await mutate(sessions, KEY, lambda s: cancel(s, NOW))
    async with asyncio.timeout(10):
        await undone.wait()
    await stop(task)


def normalised(made: Outcome) -> Session:
    """A session whose one clip was normalised."""
    units = (Unit(JobKind.NORMALISE, 0, NOW, state=UnitState.DONE, outcome=made),)
    clip = Clip(0, "upload", "a.mp4", 1, 1.0, "video/mp4", source_key="uploads/a")
    return Session("s", "alice", "", "", (clip,), NOW, NOW, NOW, canvas=Canvas(64, 64), units=units)


async def test_a_merge_whose_files_cannot_all_be_stored_or_do_not_count_leaves_none(tmp_path: Path) -> None:
    class Full(DirectoryObjectStore):
        refused = "video.mp4"

        async def put_file(self, key: str, source: Path) -> ObjectInfo:
            if key.endswith(self.refused):
                raise ResourceExhausted("full")
            return await super().put_file(key, source)

    (tmp_path / "clip").write_bytes(b"clip")
    await DirectoryObjectStore(tmp_path).put_file("merges/s/a.mov", tmp_path / "clip")
    objects, scratch = Full(tmp_path), Scratch(tmp_path / "scratch")
    made = Outcome(object_key="merges/s/a.mov", frames=(30,), sha256=hashlib.sha256(b"clip").hexdigest())
    session = normalised(made)
    work, ref = MergeWork(objects, SteeredMedia(), scratch, patience=AT_ONCE), UnitRef(JobKind.MERGE, -1, 0, 1)
    with pytest.raises(MediaError, match="storage_unavailable"):
        await work.do(session, ref, "token", lambda *_: None)
    assert [info.key async for info in objects.list("")] == ["merges/s/a.mov"]
    objects.refused = "nothing"
    outcome = await work.do(session, ref, "token", lambda *_: None)
    assert {info.key async for info in objects.list("videos/")} == outcome.object_keys
    await work.undo(outcome)
    assert [info.key async for info in objects.list("")] == ["merges/s/a.mov"]
    scratch.close()


async def test_a_prepared_clip_that_changed_since_it_was_verified_is_not_merged(tmp_path: Path) -> None:
    (tmp_path / "clip").write_bytes(b"clip")
    await (objects := DirectoryObjectStore(tmp_path)).put_file("merges/s/a.mov", tmp_path / "clip")
    scratch, digest = Scratch(tmp_path / "scratch"), hashlib.sha256(b"Clip").hexdigest()
    made = Outcome(object_key="merges/s/a.mov", frames=(30,), sha256=digest)
    session = normalised(made)
    work, ref = MergeWork(objects, SteeredMedia(), scratch), UnitRef(JobKind.MERGE, -1, 0, 1)
    with pytest.raises(MediaError, match="verification_failed"):
        await work.do(session, ref, "token", lambda *_: None)
    scratch.close()


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
    worker = MergeWorker(sessions, queue, MemoryProgressBus(), Away(), clock=lambda: NOW, decode=decode)
    task = asyncio.create_task(worker.run())
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
        worker = MergeWorker(sessions, queue, MemoryProgressBus(), Hanging(), clock=lambda: NOW, decode=decode)
        task = asyncio.create_task(worker.run())
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


@pytest.mark.parametrize("value", [[-1, 5], [6, 5], [0, 0], [1, MAX_NUMBER + 1], [1.0, 2], ["1", "2"], [1], None])
def test_progress_that_cannot_be_is_a_broken_child(value: object) -> None:
    with pytest.raises(ProtocolError):
        parse_progress(value)
    assert parse_progress([0, 5]) == (0, 5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": -1},
        {"size": 10**400},
        {"size": True},
        {"frames": [90, -90]},
        {"frames": [10**400]},
        {"sha256": "0" * 10_000},
        {"sha256": 0},
        {"more": 1},
        {"beside": 1},
        {"beside": {"tile_width": 160}},
    ],
)
def test_a_result_that_cannot_be_is_a_broken_child(wrong: dict[str, object]) -> None:
    right: dict[str, object] = {"frames": [90], "width": 1280, "height": 720, "size": 9, "sha256": "0" * 64}
    right["beside"] = None
    assert parse_result(MergedFile, dict(right)) == MergedFile((90,), 1280, 720, 9, "0" * 64)
    with pytest.raises(ProtocolError):
        parse_result(MergedFile, right | wrong)


CLIP = ClipInfo("mp4", "h264", 1280, 720, 0, 3.0, 30.0, True, "aac")


@pytest.mark.parametrize(
    "changes",
    [
        {"duration": float(MAX_NUMBER)},
        {"duration": 61.5},
        {"duration": 0.0},
        {"width": 0},
        {"height": 0},
        {"coded": Coded(frames=MAX_NUMBER)},
        {"coded": Coded(hidden=15_001)},
    ],
)
def test_a_clip_that_cannot_be_is_a_broken_child(changes: dict[str, object]) -> None:
    assert believed_clip(replace(CLIP, duration=60.5), Limits()).duration == 60.5
    with pytest.raises(MediaError, match="worker_failed"):
        believed_clip(replace(CLIP, **changes), Limits())  # type: ignore[arg-type]  # by name


@pytest.mark.parametrize("frames", [0, 1816, MAX_NUMBER])
def test_a_normalised_clip_that_cannot_be_is_a_broken_child(frames: int) -> None:
    assert believed_frames(NormalisedClip(1815, 1, ""), Limits()).frames == 1815
    with pytest.raises(MediaError, match="worker_failed"):
        believed_frames(NormalisedClip(frames, 1, ""), Limits())


@pytest.mark.parametrize("frames", [(), (90,), (90, 90, 90), (90, 0), (90, MAX_NUMBER)])
def test_a_video_that_cannot_be_is_a_broken_child(frames: tuple[int, ...]) -> None:
    video = MergedFile((90, 90), 1280, 720, 1, "")
    assert believed_video(video, 2, Limits()) == video
    for wrong in (replace(video, frames=frames), replace(video, width=0)):
        with pytest.raises(MediaError, match="worker_failed"):
            believed_video(wrong, 2, Limits())


@pytest.mark.parametrize("kind", [JobKind.PROBE, JobKind.NORMALISE, JobKind.MERGE])
async def test_no_answer_of_a_child_gets_into_the_record_unchecked(tmp_path: Path, kind: JobKind) -> None:
    class TakenOver(SteeredMedia):
        async def probe(self, source: Path) -> ClipInfo:
            return replace(CLIP, duration=float(MAX_NUMBER))

        async def normalise(self, *_: object) -> NormalisedClip:
            return NormalisedClip(MAX_NUMBER, 1, "")

        async def merge(self, *_: object) -> MergedFile:
            return MergedFile((1, 1), 1280, 720, 1, "")

    (tmp_path / "clip").write_bytes(b"clip")
    await (objects := DirectoryObjectStore(tmp_path)).put_file("uploads/a", tmp_path / "clip")
    scratch, digest = Scratch(tmp_path / "scratch"), hashlib.sha256(b"clip").hexdigest()
    made = Outcome(object_key="uploads/a", frames=(30,), sha256=digest)
    session = normalised(made)
    ref = UnitRef(kind, -1 if kind is JobKind.MERGE else 0, 0, 1)
    with pytest.raises(MediaError, match="worker_failed"):
        await MergeWork(objects, TakenOver(), scratch).do(session, ref, "token", lambda *_: None)
    assert [info.key async for info in objects.list("")] == ["uploads/a"]
    scratch.close()


@pytest.mark.parametrize("duration", [float("nan"), float("inf"), -1.0])
def test_a_clip_lasts_a_number_of_seconds(duration: float) -> None:
    right = {field: getattr(PROBED.clip, field) for field in ClipInfo.__slots__}
    with pytest.raises(ProtocolError):
        parse_result(ClipInfo, right | {"duration": duration})
