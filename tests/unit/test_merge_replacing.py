"""A clip that is replaced: what is kept, what is done anew, and what a call that was cut off leaves to do."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.common.adapters.memory import MemoryStateStore
from services.common.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    ServiceError,
    Unavailable,
)
from services.common.state import owned_key
from services.merge.domain import (
    Clip,
    Failure,
    JobKind,
    Outcome,
    Session,
    SessionState,
    StaleClaim,
    Unit,
    UnitState,
)
from services.merge.planner import ClipUpload, UploadStatus, plan
from services.merge.ports import Begun
from services.merge.replacement import ClipReplacer
from services.merge.replacing import intend, released, take_place, withdraw
from services.merge.requests import NewClip
from services.merge.timeline import Canvas, ClipInfo
from services.merge.transitions import cancel, complete, fail, finish

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
ID = "5e551011-0000-4000-8000-000000000000"
KEY = owned_key("alice", ID)
NEW = Clip(1, "new1", "again.mp4", 9, 2.0, "video/mp4")
TAKE = NewClip("again.mp4", 9, 2.0, "video/mp4")


def done(kind: JobKind, index: int, **outcome: object) -> Unit:
    return Unit(kind, index, NOW, state=UnitState.DONE, outcome=Outcome(**outcome))  # type: ignore[arg-type]  # by name


def normalised() -> Session:
    """Three clips, all normalised; the merge waits for a worker."""
    clips = tuple(Clip(i, f"old{i}", f"{i}.mp4", 1, 1.0, "video/mp4", source_key=f"uploads/{i}") for i in range(3))
    info = ClipInfo("mp4", "h264", 1280, 720, 0, 1.0, 30.0, True, "aac")
    units = [done(JobKind.PROBE, i, clip=info) for i in range(3)]
    units += [done(JobKind.NORMALISE, i, object_key=f"merges/{i}.mov", frames=(30,)) for i in range(3)]
    units.append(Unit(JobKind.MERGE, -1, NOW, state=UnitState.CLAIMED, claim_token="worker"))
    return Session(
        ID,
        "alice",
        "",
        "",
        clips,
        NOW,
        NOW,
        LATER,
        units=tuple(units),
        canvas=Canvas(1280, 720),
        uploads_ready=True,
        uploads_completed_at=NOW,
    )


def test_the_other_clips_and_the_canvas_are_kept_and_only_that_clip_is_done_anew() -> None:
    before = normalised()
    after = take_place(intend(before, NEW), "new1", LATER, NOW)
    assert after.clips[1] == replace(NEW, generation=1)
    assert (after.clips[0], after.clips[2], after.canvas) == (before.clips[0], before.clips[2], before.canvas)
    gone = (after.unit(JobKind.PROBE, 1), after.unit(JobKind.NORMALISE, 1), after.unit(JobKind.MERGE))
    assert gone == (None, None, None)
    assert after.done(JobKind.NORMALISE, 0) == before.done(JobKind.NORMALISE, 0)
    assert after.superseded == ("old1",)
    assert not after.all_uploaded
    with pytest.raises(StaleClaim):  # the join of the clips as they were is not the video
        finish(after, before.units[-1].ref, "worker", Outcome(frames=(1, 1, 1)), NOW)
    uploaded = {"new1": ClipUpload("new1", UploadStatus.COMPLETED, object_key="uploads/new1")}
    planned = plan(after, uploaded, NOW)
    assert [u.name for u in planned.unfinished] == ["probe1-1"]
    assert planned.unfinished[0].ref.job_id(ID) == f"{ID}-probe1-1-1"


@pytest.mark.parametrize("error_type", ["clip_cancelled", "clip_expired", "clip_rejected", "no_video_stream"])
def test_a_session_that_failed_for_want_of_a_clip_is_active_again(error_type: str) -> None:
    bad = Unit(JobKind.PROBE, 1, NOW, state=UnitState.FAILED, error_type=error_type, retryable=False)
    session = replace(normalised(), units=(bad,))
    failed = fail(session, Failure(error_type, "it was bad", NOW, retry_available=False, clip_index=1), NOW)
    after = take_place(intend(failed, NEW), "new1", LATER, NOW)
    assert (after.state, after.failure, after.deadline, after.retry_count) == (SessionState.ACTIVE, None, LATER, 0)
    assert plan(after, {}, NOW).state is SessionState.ACTIVE


def test_what_another_clip_failed_for_still_counts_unless_an_attempt_can_help() -> None:
    hopeless = Unit(JobKind.PROBE, 0, NOW, state=UnitState.FAILED, error_type="no_video_stream", retryable=False)
    lost = Unit(JobKind.PROBE, 2, NOW, state=UnitState.FAILED, attempt=3, error_type="worker_lost", retryable=True)
    for unit, state in ((hopeless, SessionState.FAILED), (lost, SessionState.ACTIVE)):
        failure = Failure(unit.error_type, "", NOW, retry_available=unit.retryable, clip_index=unit.clip_index)
        failed = fail(replace(normalised(), units=(unit,)), failure, NOW)
        assert plan(take_place(intend(failed, NEW), "new1", LATER, NOW), {}, NOW).state is state


def test_a_session_that_ended_takes_no_new_clip_and_one_that_came_too_late_is_withdrawn() -> None:
    merged = replace(normalised(), units=(done(JobKind.MERGE, -1, frames=(1, 1, 1)),))
    closed = replace(fail(normalised(), Failure("x", "", NOW, retry_available=False), NOW), closed=True)
    for ended, reason in (
        (merged, "ALREADY_COMPLETED"),
        (complete(merged, "video", NOW), "ALREADY_COMPLETED"),
        (cancel(normalised(), NOW), "MERGE_CANCELLED"),
        (closed, "CLIPS_GONE"),
    ):
        with pytest.raises(FailedPrecondition) as caught:
            intend(ended, NEW)
        assert caught.value.reason == reason
        late = take_place(replace(ended, replacements=(NEW,)), "new1", LATER, NOW)
        assert (late.clips, late.replacements, late.superseded) == (ended.clips, (), ("new1",))


def test_changes_that_were_made_before_change_nothing() -> None:
    intended = intend(normalised(), NEW)
    assert intend(intended, NEW) is intended
    other = intend(intended, replace(NEW, upload_id="other"))
    assert (other.replacements, other.superseded) == ((replace(NEW, upload_id="other"),), ("new1",))
    assert take_place(other, "new1", LATER, NOW) is other
    assert withdraw(other, "new1") is other
    taken = take_place(intended, "new1", LATER, NOW)
    assert take_place(taken, "new1", LATER, NOW) is taken
    assert intend(taken, NEW) is taken, "the same request a moment later"
    assert released(taken, ("else",)) is taken
    assert released(taken, ("old1",)).superseded == ()


class Uploads:
    """The upload service, whose answers to ``initiate_clip`` a test sets."""

    def __init__(self) -> None:
        self.answer: Callable[[str], ClipUpload] = lambda id_: ClipUpload(id_, UploadStatus.PENDING)
        self.known: dict[str, ClipUpload] = {}
        self.discarded: list[str] = []

    async def batch_initiate(self, session: Session) -> Begun:
        return Begun(())

    async def initiate_clip(self, session: Session, clip: Clip) -> Begun:
        self.known[clip.upload_id] = made = self.answer(clip.upload_id)
        return Begun([made])

    async def get(self, owner: str, upload_id: str) -> ClipUpload | None:
        return self.known.get(upload_id)

    async def discard(self, owner: str, upload_id: str) -> None:
        self.discarded.append(upload_id)


class House:
    def __init__(self) -> None:
        self.sessions: MemoryStateStore[Session] = MemoryStateStore()
        self.uploads = Uploads()
        self.replacer = ClipReplacer(self.sessions, self.uploads, clock=lambda: NOW, upload_seconds=60)

    async def session(self) -> Session:
        entry = await self.sessions.get(KEY)
        assert entry is not None
        return entry.value

    def answer(self, error: ServiceError) -> None:
        def raising(_: str) -> ClipUpload:
            raise error

        self.uploads.answer = raising


@pytest.fixture
async def house() -> House:
    house = House()
    await house.sessions.create(KEY, normalised())
    return house


@pytest.mark.parametrize("refusal", [InvalidArgument("too large"), ResourceExhausted("quota")])
async def test_a_file_that_is_refused_changes_nothing(house: House, refusal: ServiceError) -> None:
    house.answer(refusal)
    with pytest.raises(type(refusal)):
        await house.replacer.replace("alice", ID, 1, TAKE)
    assert await house.session() == normalised()
    assert "old1" not in house.uploads.discarded


async def test_a_call_that_was_cut_off_is_carried_out_by_the_controller(house: House) -> None:
    house.answer(Unavailable("away"))
    with pytest.raises(Unavailable):
        await house.replacer.replace("alice", ID, 1, TAKE)
    cut_off = await house.session()
    assert (cut_off.clips, len(cut_off.replacements)) == (normalised().clips, 1)
    with pytest.raises(Unavailable):
        await house.replacer.settle(KEY, cut_off)
    house.uploads.answer = Uploads().answer
    settled = await house.replacer.settle(KEY, cut_off)
    assert settled == await house.session()
    assert settled.clips[1] == replace(cut_off.replacements[0], generation=1)
    assert (settled.replacements, settled.superseded, house.uploads.discarded) == ((), (), ["old1"])


async def test_a_call_that_was_cut_off_and_is_refused_is_forgotten_by_the_controller(house: House) -> None:
    house.answer(Unavailable("away"))
    with pytest.raises(Unavailable):
        await house.replacer.replace("alice", ID, 1, TAKE)
    house.answer(InvalidArgument("too large"))
    assert await house.replacer.settle(KEY, await house.session()) == normalised()


async def test_a_replacement_whose_answer_was_lost_is_given_again(house: House) -> None:
    for request_id in ("", "one"):
        first, _ = await house.replacer.replace("alice", ID, 1, TAKE, request_id)
        again, begun = await house.replacer.replace("alice", ID, 1, TAKE, request_id)
        assert (again, begun.uploads[0].id) == (first, first.upload_id)
    assert first.generation == 2
    house.uploads.known[first.upload_id] = replace(begun.uploads[0], status=UploadStatus.IN_PROGRESS)
    once_more, _ = await house.replacer.replace("alice", ID, 1, TAKE, "one")
    assert once_more == first
    with pytest.raises(AlreadyExists):
        await house.replacer.replace("alice", ID, 1, replace(TAKE, size=10), "one")
    third, _ = await house.replacer.replace("alice", ID, 1, TAKE)  # bytes have come: this is another take
    assert third.generation == 3


async def test_a_request_id_of_a_clip_that_was_replaced_since_does_not_bring_it_back(house: House) -> None:
    await house.replacer.replace("alice", ID, 1, TAKE, "one")
    second, _ = await house.replacer.replace("alice", ID, 1, TAKE, "two")
    house.uploads.answer = lambda id_: ClipUpload(id_, UploadStatus.CANCELLED)
    with pytest.raises(AlreadyExists):
        await house.replacer.replace("alice", ID, 1, TAKE, "one")
    session = await house.session()
    assert session.clips[1] == second
    assert second.upload_id not in house.uploads.discarded


async def test_a_session_that_is_being_made_or_has_no_such_clip_is_not_touched(house: House) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await house.replacer.replace("alice", ID, 3, TAKE)
    assert caught.value.violations[0].field == "video_index"
    entry = await house.sessions.get(KEY)
    assert entry is not None
    await house.sessions.update(KEY, replace(entry.value, uploads_ready=False), entry.revision)
    with pytest.raises(Unavailable):
        await house.replacer.replace("alice", ID, 1, TAKE)


async def test_a_request_id_may_be_any_text(house: House) -> None:
    first = (await house.session()).clips[1]
    await house.sessions.delete(KEY, 1)
    derived = str(uuid.uuid5(uuid.UUID(ID), "clip-1-0"))  # as InitiateMerge names the first take
    clips = tuple(replace(c, upload_id=derived) if c == first else c for c in normalised().clips)
    await house.sessions.create(KEY, replace(normalised(), clips=clips))
    clip, _ = await house.replacer.replace("alice", ID, 1, TAKE, "0")
    assert clip.upload_id != derived
