"""Copy or transcode: every rule of it, in whatever order clips come."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.merge.delivery import BIT_RATES, PlanAction, clip_plans, is_copied
from services.merge.domain import (
    COPY_REFUSED,
    WHOLE_SESSION,
    Clip,
    JobKind,
    Outcome,
    Priority,
    Session,
    Unit,
    UnitState,
)
from services.merge.media.errors import ErrorType
from services.merge.planner import MAX_ATTEMPTS, chunks, plan, seconds_until_retry
from services.merge.status import ClipStatus, view
from services.merge.timeline import FPS, Canvas, ClipInfo, Coded, Quality
from services.merge.transitions import claim, complete, finish, give_up, holds_claim, retry
from twotruths.merge.v1 import merge_pb2

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CODED = Coded(
    profile="High",
    pixel_format="yuv420p",
    colour="1/1/1/1",
    width=1280,
    height=720,
    aspect="1/1",
    time_base="1/15360",
    parameter_sets="0" * 64,
    bit_rate=3_000_000,
    frames=90,
    regular=True,
    closed=True,
)
FIT = ClipInfo("mp4", "h264", 1280, 720, 0, 3.0, 30.0, True, "aac", coded=CODED)
COPY, TRANSCODE, UNDECIDED = PlanAction.COPY, PlanAction.TRANSCODE, PlanAction.UNDECIDED


def new_session(clips: int = 3) -> Session:
    """All clips are there, none is probed."""
    made = (Clip(i, f"u{i}", f"{i}.mp4", 1, 3.0, "video/mp4", source_key=f"uploads/{i}") for i in range(clips))
    session = Session("s", "alice", "", "", tuple(made), NOW, NOW, NOW + timedelta(hours=1), uploads_ready=True)
    return plan(session, {}, NOW)


def do(session: Session, kind: JobKind, clip: int, outcome: Outcome) -> Session:
    unit = session.unit(kind, clip)
    assert unit is not None
    return plan(finish(claim(session, unit.ref, "t", NOW), unit.ref, "t", outcome, NOW), {}, NOW)


def probed(*infos: ClipInfo, clips: int = 3, session: Session | None = None) -> Session:
    """The first clips are probed."""
    session = session or new_session(clips)
    for index, info in enumerate(infos):
        session = do(session, JobKind.PROBE, index, Outcome(clip=info))
    return session


def coded(**changes: object) -> ClipInfo:
    return replace(FIT, coded=replace(CODED, **changes))  # type: ignore[arg-type]  # by name


def unit(session: Session, kind: JobKind, clip: int = WHOLE_SESSION) -> Unit:
    found = session.unit(kind, clip)
    assert found is not None
    return found


def actions(session: Session) -> list[PlanAction]:
    return [plan.action for plan in clip_plans(session)]


def test_every_action_is_in_the_contract() -> None:
    assert set(PlanAction) <= set(merge_pb2.PlanAction.keys())


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        (replace(FIT, video_codec="hevc"), "hevc, not H.264"),
        (ClipInfo("mp4", "h264", 1280, 720, 0, 3.0, 30.0, True), "pixels are unknown"),
        (coded(pixel_format="yuv420p10le"), "yuv420p10le"),
        (coded(pixel_format="yuv422p"), "yuv422p"),
        (coded(profile="High 10"), "High 10"),
        (coded(colour="9/16/9/1"), "dynamic range"),
        (coded(colour="9/18/9/1"), "dynamic range"),
        (coded(colour="9/14/9/1"), "BT.2020"),
        (coded(colour="1/1/1/2"), "full range"),
        (coded(interlaced=True), "interlaced"),
        (coded(width=3840, height=2160), "more than"),
        (coded(width=1440, height=1440), "more than"),
        (coded(width=1279), "not even"),
        (coded(bit_rate=BIT_RATES[Quality.MEDIUM] + 1), "Mbit/s"),
        (coded(hidden=1), "edit list"),
        (replace(coded(regular=False), frame_rate=25.0), "constant 30 a second (about 25)"),
        (coded(closed=False), "IDR"),
        (coded(in_band=True), "parameter sets"),
    ],
)
def test_what_does_not_fit_delivery_is_encoded_and_so_are_the_others(info: ClipInfo, reason: str) -> None:
    session = probed(FIT, info)
    assert actions(session) == [TRANSCODE, TRANSCODE]
    first, second = clip_plans(session)
    assert reason in second.reason
    assert "clip 2" in first.reason
    assert not is_copied(probed(FIT, info, FIT))


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (coded(width=640, height=360), "sizes"),
        (coded(aspect="4/3"), "pixel shapes"),
        (replace(FIT, rotation=90), "rotations"),
        (coded(matrix="00"), "rotations"),
        (coded(colour="6/6/6/1"), "colours"),
        (coded(time_base="1/600"), "time bases"),
        (coded(parameter_sets="1" * 64), "encoder parameters"),
        (coded(profile="Main"), "encoder parameters"),
    ],
)
def test_clips_that_fit_and_disagree_are_encoded_at_once(other: ClipInfo, what: str) -> None:
    session = probed(FIT, other)
    assert [(p.action, p.reason) for p in clip_plans(session)] == [
        (TRANSCODE, f"the clips have different {what}"),
        (TRANSCODE, f"the clips have different {what}"),
    ]


@pytest.mark.parametrize(
    "info",
    [
        coded(),
        coded(width=1920, height=1088),
        coded(width=1080, height=1920),
        coded(profile="Constrained Baseline"),
    ],
)
def test_clips_that_fit_and_agree_are_copied_once_all_are_seen(info: ClipInfo) -> None:
    assert actions(probed(info)) == [UNDECIDED]
    assert actions(probed(info, info)) == [UNDECIDED, UNDECIDED]
    session = probed(info, info, info)
    assert actions(session) == [COPY, COPY, COPY]
    assert {u.kind for u in session.unfinished} == {JobKind.MERGE}


def test_a_canvas_that_was_asked_for_is_what_a_copy_must_be() -> None:
    for size, action in (((1280, 720), COPY), ((1920, 1080), TRANSCODE)):
        session = replace(new_session(), canvas=Canvas(*size), canvas_given=True)
        assert actions(probed(FIT, FIT, FIT, session=session)) == [action] * 3
    first_seen = replace(new_session(), canvas=Canvas(1920, 1080))
    assert actions(probed(FIT, FIT, FIT, session=first_seen)) == [COPY] * 3


def test_a_low_quality_copies_less() -> None:
    session = replace(new_session(), quality=Quality.LOW)
    assert actions(probed(coded(bit_rate=5_000_000), session=session)) == [TRANSCODE]
    assert actions(probed(coded(bit_rate=5_000_000))) == [UNDECIDED]


def test_what_may_yet_be_copied_is_normalised_by_idle_workers_and_at_once_when_it_may_not() -> None:
    session = probed(FIT, FIT)
    waiting = [unit(session, JobKind.NORMALISE, i) for i in range(2)]
    assert [(u.priority, u.state) for u in waiting] == [(Priority.LOW, UnitState.QUEUED)] * 2
    session = claim(session, waiting[1].ref, "idle", NOW)
    session = do(session, JobKind.PROBE, 2, Outcome(clip=replace(FIT, video_codec="hevc")))
    first, second, third = (unit(session, JobKind.NORMALISE, i) for i in range(3))
    assert (first.priority, first.attempt, first.state) == (Priority.NORMAL, 2, UnitState.QUEUED)
    assert holds_claim(session, second.ref, "idle"), "whoever works on it already goes on"
    assert (third.priority, third.attempt) == (Priority.NORMAL, 1)
    assert plan(session, {}, NOW) is session


def test_a_unit_that_was_moved_to_another_queue_may_still_fail_as_often_as_any() -> None:
    session, now = do(probed(FIT), JobKind.PROBE, 1, Outcome(clip=replace(FIT, video_codec="hevc"))), NOW
    failures = 0
    while session.failure is None:
        moved = unit(session, JobKind.NORMALISE, 0)
        session = claim(session, moved.ref, "t", now)
        session = give_up(session, moved.ref, "t", "worker_failed", "killed", retryable=True, now=now)
        failures, now = failures + 1, now + timedelta(minutes=2)
        session = plan(session, {}, now)
    assert failures == MAX_ATTEMPTS


def test_what_was_normalised_in_vain_is_taken_back_when_copying_wins() -> None:
    session = probed(FIT, FIT)
    running = unit(session, JobKind.NORMALISE, 0).ref
    session = claim(session, running, "idle", NOW)
    before = view(session, {}, lambda *_: 0.9)
    session = do(session, JobKind.PROBE, 2, Outcome(clip=FIT))
    assert view(session, {}, lambda *_: 0.0).overall_percent >= before.overall_percent
    assert not holds_claim(session, running, "idle")
    assert [u.kind for u in session.unfinished] == [JobKind.MERGE]
    shown = view(session, {}, lambda *_: 0.0)
    assert [(clip.status, clip.percent) for clip in shown.clips] == [(ClipStatus.COMPLETED, 100.0)] * 3
    session = do(session, JobKind.MERGE, WHOLE_SESSION, Outcome(object_key="v", frames=(90,) * 3, copied=True))
    shown = view(complete(session, "video", NOW), {}, lambda *_: 0.0)
    assert [(clip.status, clip.percent) for clip in shown.clips] == [(ClipStatus.COMPLETED, 100.0)] * 3


def test_a_copy_that_fails_its_verification_is_encoded_instead() -> None:
    session = probed(FIT, FIT, FIT)
    copying = unit(session, JobKind.MERGE).ref
    session = claim(session, copying, "t", NOW)
    session = plan(give_up(session, copying, "t", COPY_REFUSED, "not right", retryable=False, now=NOW), {}, NOW)
    assert session.failure is None
    assert seconds_until_retry(session, NOW) is None, "it waits for the clips"
    assert {p.action for p in clip_plans(session)} == {TRANSCODE}
    assert "not right" in clip_plans(session)[0].reason
    old = probed(FIT, FIT)
    for clip in range(3):
        attempt = unit(session, JobKind.NORMALISE, clip)
        assert attempt.priority is Priority.NORMAL
        assert attempt.ref not in {u.ref for u in old.units}, "a job of before must not take it over"
        session = do(session, JobKind.NORMALISE, clip, Outcome(object_key=f"n{clip}", frames=(90,)))
    merge = unit(session, JobKind.MERGE)
    assert (merge.state, merge.attempt) == (UnitState.QUEUED, 2)
    session = do(session, JobKind.MERGE, WHOLE_SESSION, Outcome(object_key="v", frames=(90,) * 3))
    assert plan(session, {}, NOW) is session


def test_a_copy_that_fails_in_all_its_attempts_is_encoded_instead_with_as_many_attempts() -> None:
    def failed(session: Session) -> Session:
        ref = unit(session, JobKind.MERGE).ref
        session = claim(session, ref, "t", NOW)
        return give_up(session, ref, "t", "worker_failed", "it broke", retryable=True, now=NOW)

    later, session = NOW + timedelta(minutes=1), probed(FIT, FIT, FIT)
    for _ in range(MAX_ATTEMPTS - 1):
        session = plan(failed(session), {}, later)
        assert is_copied(session)
    session = plan(failed(session), {}, later)
    assert session.failure is None
    assert "it broke" in clip_plans(session)[0].reason
    for clip in range(3):
        session = do(session, JobKind.NORMALISE, clip, Outcome(object_key=f"n{clip}", frames=(90,)))
    for _ in range(MAX_ATTEMPTS - 1):
        session = plan(failed(session), {}, later)
        assert unit(session, JobKind.MERGE).state is UnitState.QUEUED
    session = plan(failed(session), {}, later)
    assert session.failure is not None
    assert session.failure.error_type == "worker_failed"


def test_a_copy_that_the_store_stood_in_the_way_of_is_not_encoded_instead() -> None:
    session = probed(FIT, FIT, FIT)
    for _ in range(MAX_ATTEMPTS):
        ref = unit(session, JobKind.MERGE).ref
        session = claim(session, ref, "t", NOW)
        session = give_up(session, ref, "t", ErrorType.STORAGE_UNAVAILABLE, "full", retryable=True, now=NOW)
        session = plan(session, {}, NOW + timedelta(minutes=1))
    assert session.failure is not None
    assert (session.failure.error_type, session.failure.retry_available) == ("storage_unavailable", True)
    assert is_copied(session)


def test_a_retry_does_not_merge_before_the_clips_of_a_refused_copy_are_encoded() -> None:
    session = probed(FIT, FIT, FIT)
    copying = unit(session, JobKind.MERGE).ref
    session = claim(session, copying, "t", NOW)
    session = plan(give_up(session, copying, "t", COPY_REFUSED, "not right", retryable=False, now=NOW), {}, NOW)
    encoding = unit(session, JobKind.NORMALISE, 0).ref
    session = claim(session, encoding, "t", NOW)
    session = plan(give_up(session, encoding, "t", "no_luck", "no", retryable=False, now=NOW), {}, NOW)
    session = plan(retry(session, NOW + timedelta(hours=1), NOW), {}, NOW)
    assert {u.kind for u in session.unfinished} == {JobKind.NORMALISE}
    for clip in range(3):
        session = do(session, JobKind.NORMALISE, clip, Outcome(object_key=f"n{clip}", frames=(90,)))
    assert unit(session, JobKind.MERGE).state is UnitState.QUEUED


def test_the_same_bytes_are_normalised_once() -> None:
    webm = ClipInfo("webm", "vp8", 640, 480, 0, 3.0, 30.0, True, "opus", sha256="a" * 64)
    session = probed(webm, replace(webm, sha256="b" * 64))
    session = do(session, JobKind.NORMALISE, 0, Outcome(object_key="made", frames=(90,)))
    session = replace(session, clips=(*session.clips[:2], replace(session.clips[2], generation=1)))
    session = do(plan(session, {}, NOW), JobKind.PROBE, 2, Outcome(clip=webm))
    assert session.done(JobKind.NORMALISE, 2) == Outcome(object_key="made", frames=(90,))
    assert unit(session, JobKind.NORMALISE, 1).state is UnitState.QUEUED


def test_a_replaced_clip_redoes_only_itself() -> None:
    webm = ClipInfo("webm", "vp8", 640, 480, 0, 3.0, 30.0, True, "opus")
    session = probed(*(replace(webm, sha256=c * 64) for c in "abc"))
    for clip in range(3):
        session = do(session, JobKind.NORMALISE, clip, Outcome(object_key=f"n{clip}", frames=(90,)))
    clips = list(session.clips)
    clips[1] = replace(clips[1], generation=1)
    session = plan(replace(session, clips=tuple(clips)), {}, NOW)
    assert [u.ref.job_id("s") for u in session.unfinished] == ["s-probe1-1-1"]
    session = do(session, JobKind.PROBE, 1, Outcome(clip=replace(webm, sha256="d" * 64)))
    assert [u.name for u in session.unfinished] == ["normalise1-1"]
    assert session.unit(JobKind.MERGE) is None
    session = do(session, JobKind.NORMALISE, 1, Outcome(object_key="new", frames=(60,)))
    assert unit(session, JobKind.MERGE).generation == 1


@settings(deadline=None, max_examples=50)
@given(
    st.permutations(range(3)),
    st.lists(
        st.sampled_from([FIT, coded(colour="6/6/6/1"), replace(FIT, video_codec="hevc")]), min_size=3, max_size=3
    ),
)
def test_in_whatever_order_clips_are_probed_the_plan_is_the_same(order: list[int], infos: list[ClipInfo]) -> None:
    session = new_session()
    for index in order:
        session = do(session, JobKind.PROBE, index, Outcome(clip=infos[index]))
    assert clip_plans(session) == clip_plans(probed(*infos))
    assert is_copied(session) == (infos == [FIT] * 3 or infos == [coded(colour="6/6/6/1")] * 3)
    assert (session.unit(JobKind.MERGE) is not None) == is_copied(session)


LONG = replace(FIT, video_codec="hevc", duration=60.0, sha256="a" * 64)


def long_clip(info: ClipInfo = LONG) -> Session:
    """A session whose first clip is cut, and whose others are to come."""
    session = new_session()
    ref = unit(session, JobKind.PROBE, 0).ref
    session = finish(claim(session, ref, "t", NOW), ref, "t", Outcome(clip=info), NOW)
    return plan(session, {}, NOW, whole_seconds=20)


def do_chunk(session: Session, chunk: int, frames: int = 300) -> Session:
    ref = session.normalising(0)[chunk].ref
    assert ref.chunk == chunk
    made = Outcome(object_key=f"n0c{chunk}", frames=(frames,))
    return plan(finish(claim(session, ref, "t", NOW), ref, "t", made, NOW), {}, NOW, whole_seconds=20)


@settings(deadline=None)  # the machine may be busy
@given(st.floats(0.04, 500), st.floats(1, 60))
def test_chunks_tile_the_clip(seconds: float, whole: float) -> None:
    cut = chunks(seconds, whole)
    assert cut[0][0] == 0
    assert cut[-1][1] == 0
    assert all(a[1] == b[0] > a[0] for a, b in pairwise(cut))
    assert (len(cut) == 1) == (seconds <= whole)
    if len(cut) > 1:
        lengths = [b - a for a, b in cut[:-1]] + [round(seconds * FPS) - cut[-1][0]]
        assert max(lengths) <= whole * FPS / 2 + 1
        assert max(lengths) - min(lengths) <= 1


def test_a_long_clip_is_normalised_by_many_and_merged_after_the_last() -> None:
    session = long_clip()
    assert [(u.name, u.first_frame, u.end_frame) for u in session.normalising(0)] == [
        ("normalise0", 0, 300),
        *((f"normalise0c{n}", 300 * n, 300 * n + 300) for n in range(1, 5)),
        ("normalise0c5", 1500, 0),
    ]
    assert len({u.ref.job_id("s") for u in session.unfinished}) == len(session.unfinished)
    for done, chunk in enumerate((5, 0, 3, 2, 4, 1)):
        assert session.normalised(0) == ()
        assert view(session, {}, lambda *_: 0.0).clips[0].percent == pytest.approx(50 + 50 * done / 6, abs=0.1)
        session = do_chunk(session, chunk)
    assert [outcome.object_key for outcome in session.normalised(0)] == [f"n0c{n}" for n in range(6)]
    assert view(session, {}, lambda *_: 0.0).clips[0].status is ClipStatus.COMPLETED


def test_a_chunk_that_fails_is_tried_again_by_itself() -> None:
    session = long_clip()
    ref = session.normalising(0)[2].ref
    session = claim(session, ref, "t", NOW)
    session = give_up(session, ref, "t", "worker_failed", "killed", retryable=True, now=NOW)
    session = plan(session, {}, NOW + timedelta(minutes=1), whole_seconds=20)
    assert [u.attempt for u in session.normalising(0)] == [1, 1, 2, 1, 1, 1]


def test_all_chunks_of_a_clip_wait_in_the_same_queue() -> None:
    session = long_clip(replace(FIT, duration=60.0))
    assert {u.priority for u in session.normalising(0)} == {Priority.LOW}
    session = do(session, JobKind.PROBE, 1, Outcome(clip=LONG))
    assert {(u.priority, u.attempt) for u in session.normalising(0)} == {(Priority.NORMAL, 2)}


def test_the_same_bytes_in_chunks_are_normalised_once() -> None:
    session = do_chunk(do_chunk(long_clip(), 0), 5)
    ref = unit(session, JobKind.PROBE, 1).ref
    session = finish(claim(session, ref, "t", NOW), ref, "t", Outcome(clip=LONG), NOW)
    session = plan(session, {}, NOW, whole_seconds=20)
    made = [u.outcome.object_key if u.outcome else None for u in session.normalising(1)]
    assert made == ["n0c0", None, None, None, None, "n0c5"]


def test_chunks_of_a_copied_clip_that_were_done_do_not_pass_for_the_whole_clip() -> None:
    session = do_chunk(long_clip(replace(FIT, duration=60.0)), 2)
    for clip in (1, 2):
        ref = unit(session, JobKind.PROBE, clip).ref
        session = finish(claim(session, ref, "t", NOW), ref, "t", Outcome(clip=FIT), NOW)
        session = plan(session, {}, NOW, whole_seconds=20)
    copying = unit(session, JobKind.MERGE).ref
    session = claim(session, copying, "t", NOW)
    session = give_up(session, copying, "t", COPY_REFUSED, "not right", retryable=False, now=NOW)
    session = plan(session, {}, NOW, whole_seconds=20)
    assert [u.chunk for u in session.normalising(0)] == list(range(6))
    assert session.normalised(0) == ()


def test_no_length_that_a_probe_may_claim_makes_a_record_of_endless_pieces() -> None:
    assert len(chunks(float(2**53), 20)) == 1_000
