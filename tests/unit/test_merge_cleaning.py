"""What an ended session leaves behind goes in time, and nothing that is still wanted goes with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.common.adapters.directory_objects import DirectoryObjectStore
from services.common.adapters.memory import MemoryJobQueue, MemoryProgressBus, MemoryStateStore
from services.common.errors import (
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    ServiceError,
    Unavailable,
)
from services.common.state import Entry, mutate, owned_key, owner_prefix
from services.merge.board import ProgressBoard
from services.merge.cleaning import Retention, SessionCleaner
from services.merge.controller import MergeController
from services.merge.domain import (
    Clip,
    Failure,
    JobKind,
    Outcome,
    Rendition,
    Session,
    SessionState,
    Sidecars,
    StoredFile,
    Storyboard,
    Unit,
    UnitRef,
    UnitState,
    Video,
)
from services.merge.jobs import KINDS, MergeJob
from services.merge.planner import ClipUpload, UploadStatus
from services.merge.ports import Begun
from services.merge.requests import NewClip
from services.merge.service import MergeSessions
from services.merge.transitions import cancel, claim, fail
from services.merge.videos import video_id

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOUR, WEEK, MONTH = timedelta(hours=1), timedelta(days=7), timedelta(days=30)
CLAIMS = Retention().claims
ID = "5e551011-0000-4000-8000-000000000000"
KEY = owned_key("alice", ID)
WINNER, LOSER = f"videos/{ID}/winner/video.mp4", f"videos/{ID}/loser/video.mp4"
BESIDE = tuple(StoredFile(f"videos/{ID}/winner/{name}", 1, "") for name in ("poster0.jpg", "sheet.jpg", "hls.mp4"))
SIDECARS = Sidecars(BESIDE[:1], Storyboard(BESIDE[1], 160, 90, 1, (0,)), Rendition(BESIDE[2], (0,), (0,)))


class FakeUploads:
    """Uploads of which only the end is looked at."""

    def __init__(self) -> None:
        self.discarded: list[str] = []
        self.on_discard: Callable[[], object] = lambda: None
        self.refusal: ServiceError | None = None

    async def batch_initiate(self, session: Session) -> Begun:
        if self.refusal is not None:
            raise self.refusal
        return Begun(())

    async def initiate_clip(self, session: Session, clip: Clip) -> Begun:
        if self.refusal is not None:
            raise self.refusal
        return Begun([ClipUpload(clip.upload_id, UploadStatus.PENDING)])

    async def get(self, owner: str, upload_id: str) -> ClipUpload | None:
        return None

    async def discard(self, owner: str, upload_id: str) -> None:
        self.discarded.append(upload_id)
        if asyncio.iscoroutine(result := self.on_discard()):
            await result


class CountedSessions(MemoryStateStore[Session]):
    """Tells how often it was swept."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__(now)
        self.swept = asyncio.Semaphore(0)

    async def list(self, prefix: str = "") -> AsyncGenerator[Entry[Session], None]:
        self.swept.release()
        async for entry in super().list(prefix):
            yield entry


class House:
    """A controller on stores in memory, at a time that the test sets."""

    def __init__(self, folder: Path) -> None:
        self.now = NOW
        self.sessions = CountedSessions(lambda: self.now.timestamp())  # noqa: PLW0108  time goes on
        self.videos: MemoryStateStore[Video] = MemoryStateStore()
        self.uploads = FakeUploads()
        self.queue = MemoryJobQueue()
        self.folder = folder
        self.objects = DirectoryObjectStore(folder)
        progress, board = MemoryProgressBus(), ProgressBoard()
        self.cleaner = SessionCleaner(
            self.sessions,
            self.videos,
            self.uploads,
            self.queue,
            self.objects,
            clock=lambda: self.now,
            encode=_encode,
            retention=Retention(WEEK, MONTH),
        )
        self.controller = MergeController(
            self.sessions,
            self.videos,
            self.uploads,
            self.queue,
            progress,
            board,
            self.cleaner,
            clock=lambda: self.now,
            encode=_encode,
            sweep_seconds=0.001,
        )
        self.merges = MergeSessions(
            self.sessions, self.uploads, progress, board, clock=lambda: self.now, max_clip_seconds=60
        )

    async def put(self, *keys: str) -> None:
        for key in keys:
            (source := self.folder / "source").write_bytes(b"x")
            await self.objects.put_file(key, source)

    async def kept(self) -> list[str]:
        return sorted([info.key async for info in self.objects.list("")])

    async def session(self) -> Session | None:
        entry = await self.sessions.get(KEY)
        return entry.value if entry is not None else None


def _encode(job: MergeJob) -> bytes:
    return f"{job.kind}{job.attempt}".encode()


def uploaded_session() -> Session:
    clips = tuple(
        Clip(i, f"upload{i}", f"{i}.mp4", 1, 1.0, "video/mp4", source_key=f"uploads/{i}") for i in range(2)
    )
    return Session(
        ID,
        "alice",
        "",
        "",
        clips,
        NOW,
        NOW,
        NOW + timedelta(hours=1),
        uploads_ready=True,
        uploads_completed_at=NOW,
    )


def merged_session() -> Session:
    done = [
        Unit(
            kind,
            clip,
            NOW,
            state=UnitState.DONE,
            outcome=Outcome(object_key=key, frames=(30,), sidecars=SIDECARS if key == WINNER else None),
        )
        for kind, clip, key in (
            (JobKind.PROBE, 0, ""),
            (JobKind.PROBE, 1, ""),
            (JobKind.NORMALISE, 0, f"merges/{ID}/a.mov"),
            (JobKind.NORMALISE, 1, f"merges/{ID}/b.mov"),
            (JobKind.MERGE, -1, WINNER),
        )
    ]
    return replace(uploaded_session(), units=tuple(done))


def failed_session() -> Session:
    lost = Unit(JobKind.PROBE, 0, NOW, state=UnitState.FAILED, attempt=3, error_type="worker_lost", retryable=True)
    session = replace(uploaded_session(), units=(lost,))
    return fail(session, Failure("worker_lost", "killed", NOW, retry_available=True), NOW)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


async def test_a_completed_sessions_clips_go_after_the_retention_and_its_video_stays(house: House) -> None:
    beside = [file.object_key for file in BESIDE]
    await house.put(
        WINNER,
        *beside,
        LOSER,
        LOSER.replace("video.mp4", "hls.mp4"),
        f"merges/{ID}/a.mov",
        f"videos/{ID}-other/x.mp4",
    )
    await house.sessions.create(KEY, merged_session())
    await house.controller.reconcile(KEY)
    house.now += WEEK - timedelta(seconds=1)
    await house.controller.reconcile(KEY)
    assert house.uploads.discarded == []
    house.now += timedelta(seconds=1)
    await house.controller.reconcile(KEY)
    assert house.uploads.discarded == ["upload0", "upload1"]
    assert await house.kept() == sorted([WINNER, *beside, f"videos/{ID}-other/x.mp4"]), "no loser's video stays"
    entry = await house.videos.get(video_id(ID))
    assert entry is not None
    assert entry.value.sidecars == SIDECARS
    house.now += MONTH
    assert await house.session() is None, "its record goes by itself"


async def test_a_failed_session_can_be_retried_until_its_clips_go_and_not_while_they_go(house: House) -> None:
    await house.sessions.create(KEY, failed_session())
    house.now += WEEK - timedelta(seconds=1)
    await house.controller.reconcile(KEY)
    failure = (await house.merges.get("alice", ID)).session.failure
    assert failure is not None
    assert failure.retry_available
    house.now += timedelta(seconds=1)
    refused: list[FailedPrecondition] = []

    async def retry() -> None:
        with pytest.raises(FailedPrecondition) as caught:
            await house.merges.retry("alice", ID)
        refused.append(caught.value)

    house.uploads.on_discard = retry
    await house.controller.reconcile(KEY)
    assert len(refused) == 2
    shown = (await house.merges.get("alice", ID)).session
    assert shown.cleaned
    assert shown.failure is not None
    assert not shown.failure.retry_available


async def test_a_clip_can_be_replaced_until_the_others_go_and_not_while_they_go(house: House) -> None:
    lost = Failure("clip_cancelled", "it was cancelled", NOW, retry_available=False, clip_index=0)
    await house.sessions.create(KEY, fail(uploaded_session(), lost, NOW))
    await house.controller.reconcile(KEY)
    house.now += WEEK
    refused: list[str] = []

    async def replace_clip() -> None:
        with pytest.raises(FailedPrecondition) as caught:
            await house.merges.replace_clip("alice", ID, 0, NewClip("a.mp4", 1, 1.0, "video/mp4"))
        refused.append(caught.value.reason)

    house.uploads.on_discard = replace_clip
    await house.controller.reconcile(KEY)
    assert refused == ["CLIPS_GONE", "CLIPS_GONE"]
    session = await house.session()
    assert session is not None
    assert (session.state, session.cleaned) == (SessionState.FAILED, True)


async def test_a_failed_session_that_was_cleaned_up_and_then_cancelled_still_goes_one_day(house: House) -> None:
    await house.sessions.create(KEY, failed_session())
    house.now += WEEK
    await house.controller.reconcile(KEY)
    assert (await house.merges.cancel("alice", ID)).session.failure is None
    await house.controller.reconcile(KEY)
    house.now += CLAIMS
    await house.controller._sweep()
    house.now += MONTH
    assert await house.session() is None


async def test_what_a_worker_stores_after_its_session_was_cancelled_goes_too(house: House) -> None:
    early, late, video = f"merges/{ID}/early.mov", f"merges/{ID}/late.mov", f"videos/{ID}/dying/video.mp4"
    await house.put(early)
    await house.sessions.create(KEY, uploaded_session())
    await house.merges.cancel("alice", ID)
    await house.controller.reconcile(KEY)
    assert await house.kept() == [], "at once"
    assert house.uploads.discarded == ["upload0", "upload1"]
    await house.put(late, video)  # and then it dies
    house.now += CLAIMS - timedelta(seconds=1)
    await house.controller._sweep()
    await house.controller.reconcile(KEY)
    assert await house.kept() == [late, video], "it is not looked at all the time"
    house.now += timedelta(seconds=1)
    await house.controller._sweep()
    assert await house.kept() == []
    session = await house.session()
    assert session is not None
    assert session.cleaned
    house.now += MONTH
    assert await house.session() is None


async def test_a_failed_session_whose_clips_go_at_once_is_looked_after_once_more_as_well(house: House) -> None:
    house.cleaner._retention = Retention(timedelta(0), MONTH, CLAIMS)
    await house.put(f"merges/{ID}/early.mov")
    await house.sessions.create(KEY, failed_session())
    for _ in range(2):
        await house.controller.reconcile(KEY)
        assert await house.kept() == []
        assert len(house.uploads.discarded) == 2
    await house.put(f"merges/{ID}/late.mov")
    house.now += CLAIMS
    await house.controller._sweep()
    assert await house.kept() == []


async def test_a_session_cancelled_beside_its_last_step_has_no_video(house: House) -> None:
    class CancelledBeside(MemoryStateStore[Video]):
        async def create(self, key: str, value: Video, *, ttl: float | None = None) -> Entry[Video]:
            entry = await house.sessions.get(KEY)
            assert entry is not None
            ended = cancel(entry.value, NOW)
            await house.sessions.update(KEY, ended, entry.revision)
            await house.cleaner.settle(KEY, ended)  # another replica is done with it before we go on
            return await super().create(key, value, ttl=ttl)

    house.controller._videos = house.cleaner._videos = videos = CancelledBeside()
    await house.put(WINNER, f"merges/{ID}/a.mov")
    await house.sessions.create(KEY, merged_session())
    await house.controller.reconcile(KEY)
    session = await house.session()
    assert session is not None
    assert session.state is SessionState.CANCELLED
    assert await videos.get(video_id(ID)) is None
    assert await house.kept() == []


async def test_what_a_controller_made_that_was_killed_before_the_session_was_cancelled_goes(house: House) -> None:
    await house.put(WINNER)
    await house.sessions.create(KEY, merged_session())
    await house.controller._make_video(merged_session())
    await house.merges.cancel("alice", ID)
    await house.controller.reconcile(KEY)
    assert await house.videos.get(video_id(ID)) is None
    assert await house.kept() == []


async def test_a_sweep_leaves_ended_sessions_alone_until_they_are_due(house: House) -> None:
    await house.sessions.create(KEY, failed_session())
    await house.controller.reconcile(KEY)
    assert len(house.queue.dead) == 1
    sweeping = asyncio.create_task(house.controller.sweep())
    for _ in range(3):
        await house.sessions.swept.acquire()
    assert len(house.queue.dead) == 1, "buried once, not at every sweep"
    house.now += WEEK
    for _ in range(3):
        await house.sessions.swept.acquire()
    sweeping.cancel()
    await asyncio.gather(sweeping, return_exceptions=True)
    session = await house.session()
    assert session is not None
    assert session.cleaned
    assert len(house.queue.dead) == 1, "nor again when its files go: an operator may have dropped it"


async def test_a_session_whose_uploads_are_refused_for_good_is_forgotten(house: House) -> None:
    await house.sessions.create(KEY, replace(uploaded_session(), uploads_ready=False))
    house.uploads.refusal = ResourceExhausted("quota")
    with pytest.raises(ResourceExhausted):
        await house.controller.reconcile(KEY)
    assert await house.session() is not None
    house.now += timedelta(hours=1)
    await house.controller.reconcile(KEY)
    assert await house.session() is None, "no session waits for ever"
    await house.sessions.create(KEY, replace(uploaded_session(), uploads_ready=False))
    house.uploads.refusal, house.now = InvalidArgument("too large"), NOW
    await house.controller.reconcile(KEY)
    assert await house.session() is None


async def test_a_sweep_asks_for_a_bounded_number_of_sessions_and_for_all_of_them_in_turn(house: House) -> None:
    waiting = tuple(replace(clip, source_key="") for clip in uploaded_session().clips)
    for n in range(250):
        session = replace(uploaded_session(), id=f"s{n}", owner=f"u{n}", clips=waiting)
        await house.sessions.create(owned_key(session.owner, session.id), session)
    asked: list[str] = []

    async def get(owner: str, upload_id: str) -> ClipUpload | None:
        asked.append(owner)
        if away:
            raise Unavailable("away")
        return None

    house.uploads.get = get  # type: ignore[method-assign]  # the one call that counts here
    away, everybody = False, set[str]()
    for _ in range(3):
        asked.clear()
        await house.controller._sweep()
        assert len(set(asked)) <= 100
        everybody |= set(asked)
    assert len(everybody) == 250
    away = True
    asked.clear()
    await house.controller._sweep()
    assert len(set(asked)) == 1, "one that gets no answer is enough to know"
    house.now += timedelta(hours=1)
    await house.controller._sweep()
    states = {entry.value.state async for entry in house.sessions.list()}
    assert states == {SessionState.FAILED}, "deadlines do not wait for the upload service"


async def test_a_job_that_was_taken_from_its_worker_leaves_the_queue(house: House) -> None:
    await house.sessions.create(KEY, uploaded_session())
    await house.controller.reconcile(KEY)
    delivery = await house.queue.fetch(KINDS, 1)
    assert delivery is not None
    await mutate(house.sessions, KEY, lambda s: claim(s, s.units[0].ref, "stuck", house.now))
    house.now += timedelta(minutes=25)
    await house.controller.reconcile(KEY)
    session = await house.session()
    assert session is not None
    taken = next(unit for unit in session.units if unit.state is UnitState.FAILED)
    assert taken.ref.job_id(ID) not in await house.queue.unfinished(owner_prefix("alice"))
    house.now += timedelta(seconds=2)
    await house.controller.reconcile(KEY)
    again = UnitRef(taken.kind, taken.clip_index, 0, 2)
    assert again.job_id(ID) in await house.queue.unfinished(owner_prefix("alice"))


async def test_time_in_the_queue_is_counted_from_when_the_owners_share_lets_a_job_in(house: House) -> None:
    first, second = (replace(uploaded_session(), id=f"{ID[:-1]}{n}", deadline=NOW + 9 * HOUR) for n in range(2))
    second = replace(second, created_at=NOW + timedelta(seconds=1))
    house.controller._admission._per_owner = 2
    for session in (first, second):
        await house.sessions.create(owned_key("alice", session.id), session)

    async def state(session: Session) -> SessionState:
        await house.controller.reconcile(owned_key("alice", session.id))
        entry = await house.sessions.get(owned_key("alice", session.id))
        assert entry is not None
        return entry.value.state

    assert [await state(session) for session in (first, second)] == [SessionState.ACTIVE] * 2
    house.now += 3 * HOUR
    assert await state(second) is SessionState.ACTIVE, "no worker could have had time for it"
    assert await state(first) is SessionState.FAILED
    house.now += 3 * HOUR - timedelta(seconds=1)
    assert await state(second) is SessionState.ACTIVE
    house.now += timedelta(seconds=1)
    assert await state(second) is SessionState.FAILED
