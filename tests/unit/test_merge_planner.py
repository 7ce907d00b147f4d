"""The planner and the rules of claims: pure, so every order of events can be tried."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import protovalidate
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from services.common.jobs import Job
from services.merge.admission import admitted, in_order
from services.merge.config import MergeSettings
from services.merge.deadlines import Deadlines, enforce, overdue_claims
from services.merge.domain import (
    WHOLE_SESSION,
    Clip,
    Failure,
    JobKind,
    Outcome,
    Priority,
    Reason,
    Session,
    SessionState,
    StaleClaim,
    Unit,
    UnitRef,
    UnitState,
)
from services.merge.jobs import job_for
from services.merge.media.limits import Limits
from services.merge.planner import MAX_ATTEMPTS, PROCESSING, ClipUpload, UploadStatus, plan, seconds_until_retry
from services.merge.status import ClipStatus, OverallStatus, view
from services.merge.timeline import LARGEST_CANVAS, Canvas, ClipInfo
from services.merge.transitions import cancel, claim, complete, fail, finish, give_up, holds_claim, retry
from twotruths.merge.v1 import merge_pb2, merge_service_pb2

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PORTRAIT = ClipInfo("mov", "h264", 720, 1280, 90, 3.0, 30.0, True, "aac")
LANDSCAPE = ClipInfo("mp4", "h264", 1920, 1080, 0, 3.0, 25.0, True, "aac")


def new_session(clips: int = 3) -> Session:
    return Session(
        id="5e551011-0000-4000-8000-000000000000",
        owner="alice",
        title="",
        request_fingerprint="",
        clips=tuple(Clip(i, f"upload{i}", f"{i}.mp4", 100, 3.0, "video/mp4") for i in range(clips)),
        created_at=NOW,
        updated_at=NOW,
        deadline=NOW + timedelta(hours=1),
        uploads_ready=True,
    )


def uploaded(*indices: int, **others: UploadStatus) -> dict[str, ClipUpload]:
    done = {
        f"upload{i}": ClipUpload(f"upload{i}", UploadStatus.COMPLETED, 1.0, f"uploads/{i}", NOW) for i in indices
    }
    return done | {id_: ClipUpload(id_, status) for id_, status in others.items()}


def units(session: Session) -> dict[str, UnitState]:
    return {unit.name: unit.state for unit in session.units}


def do(session: Session, kind: JobKind, clip: int, outcome: Outcome, token: str = "token") -> Session:
    unit = session.unit(kind, clip)
    assert unit is not None, f"no {kind} of clip {clip} is planned: {units(session)}"
    return finish(claim(session, unit.ref, token, NOW), unit.ref, token, outcome, NOW)


def normalised(frames: int) -> Outcome:
    return Outcome(object_key=f"merges/{frames}", size=1, sha256="0", frames=(frames,))


def always(_: Unit) -> datetime:
    """Seen in the queue from the beginning."""
    return NOW


def test_every_reason_is_in_the_contract() -> None:
    named = merge_pb2.MergeErrorReason.DESCRIPTOR.values_by_name
    assert {f"MERGE_ERROR_REASON_{reason}" for reason in Reason} <= set(named)


def test_the_work_starts_with_the_first_upload() -> None:
    session = plan(new_session(), uploaded(1), NOW)
    assert units(session) == {"probe1": UnitState.QUEUED}
    session = plan(do(session, JobKind.PROBE, 1, Outcome(clip=PORTRAIT)), {}, NOW)
    assert units(session) == {"probe1": UnitState.DONE, "normalise1": UnitState.QUEUED}


def test_planning_again_changes_nothing() -> None:
    session = plan(new_session(), uploaded(0, 2), NOW)
    assert plan(session, uploaded(0, 2), NOW + timedelta(minutes=1)) is session
    assert plan(session, {}, NOW) is session


def test_the_first_clip_probed_sets_the_canvas_for_ever() -> None:
    session = plan(new_session(), uploaded(0, 1, 2), NOW)
    session = do(session, JobKind.PROBE, 2, Outcome(clip=PORTRAIT))
    assert session.canvas == Canvas(720, 1280)
    assert do(session, JobKind.PROBE, 0, Outcome(clip=LANDSCAPE)).canvas == Canvas(720, 1280)


def test_a_canvas_that_was_asked_for_stays() -> None:
    session = plan(replace(new_session(), canvas=Canvas(320, 180)), uploaded(0), NOW)
    assert do(session, JobKind.PROBE, 0, Outcome(clip=PORTRAIT)).canvas == Canvas(320, 180)


@settings(deadline=None)  # the machine may be busy
@given(st.permutations(range(3)), st.permutations(range(3)), st.permutations(range(3)))
def test_in_whatever_order_clips_come_the_merge_comes_last_and_once(
    uploads: list[int], probes: list[int], normalisations: list[int]
) -> None:
    session = new_session()
    for n in range(3):
        assert session.unit(JobKind.MERGE) is None
        session = plan(session, uploaded(*uploads[: n + 1]), NOW)
    for clip in probes:
        session = plan(do(session, JobKind.PROBE, clip, Outcome(clip=PORTRAIT)), {}, NOW)
    for clip in normalisations:
        assert session.unit(JobKind.MERGE) is None
        session = plan(do(session, JobKind.NORMALISE, clip, normalised(90 + clip)), {}, NOW)
    assert units(session)["merge"] is UnitState.QUEUED
    assert len(session.units) == 7
    session = do(session, JobKind.MERGE, WHOLE_SESSION, Outcome(object_key="videos/x", frames=(90, 91, 92)))
    assert plan(session, {}, NOW) is session
    assert complete(session, "video", NOW).state is SessionState.COMPLETED


@pytest.mark.parametrize(
    ("status", "error_type"),
    [
        (UploadStatus.CANCELLED, "clip_cancelled"),
        (UploadStatus.EXPIRED, "clip_expired"),
        (UploadStatus.FAILED, "clip_rejected"),
    ],
)
def test_a_clip_that_can_no_longer_come_fails_the_session(status: UploadStatus, error_type: str) -> None:
    session = plan(new_session(), uploaded(0, upload1=status), NOW)
    assert session.state is SessionState.FAILED
    assert session.failure is not None
    assert (session.failure.error_type, session.failure.clip_index) == (error_type, 1)
    assert not session.failure.retry_available


def test_bad_input_fails_at_once_and_cannot_be_retried() -> None:
    session = plan(new_session(), uploaded(0), NOW)
    ref = UnitRef(JobKind.PROBE, 0, 0, 1)
    session = claim(session, ref, "t", NOW)
    session = give_up(session, ref, "t", "no_video_stream", "no picture", retryable=False, now=NOW)
    session = plan(session, {}, NOW)
    assert session.state is SessionState.FAILED
    assert session.failure is not None
    assert session.failure.error_type == "no_video_stream"
    assert not session.failure.retry_available


def test_a_transient_failure_is_tried_again_after_a_growing_pause_then_fails_retryably() -> None:
    session = plan(new_session(), uploaded(0), NOW)
    now, pauses = NOW, []
    for attempt in range(1, MAX_ATTEMPTS + 1):
        ref = UnitRef(JobKind.PROBE, 0, 0, attempt)
        session = claim(session, ref, "t", now)
        session = give_up(session, ref, "t", "worker_failed", "killed", retryable=True, now=now)
        if attempt < MAX_ATTEMPTS:
            assert plan(session, {}, now) is session, "not before the pause is over"
            pause = seconds_until_retry(session, now)
            assert pause is not None
            pauses.append(pause)
            now += timedelta(seconds=pause)
            session = plan(session, {}, now)
            unit = session.unit(JobKind.PROBE, 0)
            assert unit is not None
            assert (unit.attempt, unit.state, unit.priority) == (attempt + 1, UnitState.QUEUED, Priority.HIGH)
    assert pauses == sorted(pauses)
    session = plan(session, {}, now)
    assert session.state is SessionState.FAILED
    assert session.failure is not None
    assert session.failure.retry_available
    again = retry(session, NOW + timedelta(hours=2), now)
    unit = again.unit(JobKind.PROBE, 0)
    assert unit is not None
    assert (again.state, unit.state, unit.attempt) == (SessionState.ACTIVE, UnitState.QUEUED, MAX_ATTEMPTS + 1)


def test_every_state_has_a_deadline() -> None:
    late = NOW + timedelta(hours=1)
    waiting = plan(new_session(), uploaded(0, 1), late)
    assert waiting.failure is not None
    assert waiting.failure.error_type == "upload_timeout"
    working = plan(new_session(), uploaded(0, 1, 2), late)
    assert working.failure is None, "clips that came late have all the time there is for processing"
    working = plan(working, {}, late + PROCESSING)
    assert working.failure is not None
    assert (working.failure.error_type, working.failure.retry_available) == ("processing_timeout", True)


def test_clips_that_come_early_do_not_lengthen_the_time_for_processing() -> None:
    session = plan(new_session(), uploaded(0, 1, 2), NOW, timedelta(minutes=5))
    assert plan(session, {}, NOW + timedelta(minutes=4)).failure is None
    assert plan(session, {}, NOW + timedelta(minutes=5)).failure is not None


def test_a_video_that_is_made_is_not_too_late() -> None:
    session = plan(new_session(), uploaded(0, 1, 2), NOW)
    for kind, outcome in ((JobKind.PROBE, Outcome(clip=PORTRAIT)), (JobKind.NORMALISE, normalised(90))):
        for clip in range(3):
            session = plan(do(session, kind, clip, outcome), {}, NOW)
    session = do(session, JobKind.MERGE, WHOLE_SESSION, Outcome(object_key="videos/x", frames=(90, 90, 90)))
    assert plan(session, {}, NOW + timedelta(days=1)) is session


def test_a_result_counts_only_with_the_current_claim() -> None:
    session = plan(new_session(), uploaded(0), NOW)
    ref = UnitRef(JobKind.PROBE, 0, 0, 1)
    session = claim(session, ref, "zombie", NOW)
    session = claim(session, ref, "current", NOW)
    assert not holds_claim(session, ref, "zombie")
    with pytest.raises(StaleClaim):
        finish(session, ref, "zombie", Outcome(clip=PORTRAIT), NOW)
    with pytest.raises(StaleClaim):
        give_up(session, ref, "zombie", "x", "x", retryable=True, now=NOW)
    session = finish(session, ref, "current", Outcome(clip=PORTRAIT), NOW)
    with pytest.raises(StaleClaim):
        claim(session, ref, "late", NOW)
    with pytest.raises(StaleClaim):
        finish(session, ref, "zombie", Outcome(clip=PORTRAIT), NOW)


def test_a_result_that_counts_may_be_said_again_wherever_the_session_is_by_then() -> None:
    session = plan(new_session(), uploaded(0), NOW)
    ref = UnitRef(JobKind.PROBE, 0, 0, 1)
    session = finish(claim(session, ref, "t", NOW), ref, "t", Outcome(clip=PORTRAIT), NOW)
    for later in (session, plan(session, {}, NOW), complete(session, "video", NOW), cancel(session, NOW)):
        assert finish(later, ref, "t", Outcome(clip=PORTRAIT), NOW) is later


def test_nothing_counts_after_the_session_was_cancelled() -> None:
    session = plan(new_session(), uploaded(0), NOW)
    ref = UnitRef(JobKind.PROBE, 0, 0, 1)
    session = cancel(claim(session, ref, "t", NOW), NOW)
    with pytest.raises(StaleClaim):
        finish(session, ref, "t", Outcome(clip=PORTRAIT), NOW)
    assert complete(session, "video", NOW) is session
    assert plan(session, uploaded(1), NOW) is session


def test_an_attempt_that_is_not_current_is_stale() -> None:
    session = plan(new_session(), uploaded(0), NOW)
    for ref in (UnitRef(JobKind.PROBE, 0, 0, 2), UnitRef(JobKind.PROBE, 0, 1, 1), UnitRef(JobKind.PROBE, 7, 0, 1)):
        with pytest.raises(StaleClaim):
            claim(session, ref, "t", NOW)


def test_progress_never_falls_from_the_first_byte_to_the_video() -> None:
    seen: list[float] = []
    fractions: dict[str, float] = {}

    def look(session: Session, uploads: dict[str, ClipUpload]) -> OverallStatus:
        shown = view(session, uploads, lambda _, unit: fractions.get(unit, 0.0))
        assert not seen or shown.overall_percent >= seen[-1], (seen, shown)
        seen.append(shown.overall_percent)
        return shown.status

    session = new_session()
    assert look(session, {}) is OverallStatus.UPLOADING
    half = {"upload0": ClipUpload("upload0", UploadStatus.IN_PROGRESS, 0.5)}
    assert look(session, half) is OverallStatus.UPLOADING
    session = plan(session, uploaded(0, 1, 2), NOW)
    assert look(session, {}) is OverallStatus.QUEUED
    for clip in range(3):
        session = plan(do(session, JobKind.PROBE, clip, Outcome(clip=PORTRAIT)), {}, NOW)
        assert look(session, {}) is OverallStatus.PROCESSING
    fractions["normalise1"] = 0.7
    look(session, {})
    for clip in range(3):
        session = plan(do(session, JobKind.NORMALISE, clip, normalised(90)), {}, NOW)
        look(session, {})
    fractions["merge"] = 0.5
    look(session, {})
    session = do(session, JobKind.MERGE, WHOLE_SESSION, Outcome(object_key="videos/x", frames=(90, 90, 90)))
    look(session, {})
    assert look(complete(session, "video", NOW), {}) is OverallStatus.COMPLETED
    assert seen[0] == 0.0
    assert seen[-1] == 100.0


def test_a_cancelled_session_waits_for_no_clip_and_offers_no_retry() -> None:
    session = plan(new_session(), uploaded(0), NOW)
    ref = UnitRef(JobKind.PROBE, 0, 0, 1)
    session = claim(session, ref, "t", NOW)
    session = give_up(session, ref, "t", "memory_exceeded", "too much", retryable=True, now=NOW)
    failed = fail(session, Failure("memory_exceeded", "too much", NOW, retry_available=True, clip_index=0), NOW)
    shown = view(cancel(failed, NOW), {}, lambda *_: 0.0)
    assert shown.status is OverallStatus.CANCELLED
    assert {clip.status for clip in shown.clips} == {ClipStatus.CANCELLED}
    assert shown.session.failure is None


def test_a_refused_clip_is_named_in_the_status() -> None:
    session = plan(new_session(), uploaded(0, upload2=UploadStatus.EXPIRED), NOW)
    shown = view(session, uploaded(upload2=UploadStatus.EXPIRED), lambda *_: 0.0)
    assert shown.status is OverallStatus.FAILED
    assert [clip.status for clip in shown.clips] == [ClipStatus.QUEUED, ClipStatus.PENDING, ClipStatus.EXPIRED]
    assert shown.clips[2].error_type == "clip_expired"


def test_a_job_that_waits_too_long_fails_its_session_and_a_retry_waits_anew() -> None:
    limits = Deadlines(queued=timedelta(minutes=10), claimed=timedelta(minutes=5))
    session = plan(new_session(), uploaded(0), NOW)
    later = NOW + timedelta(minutes=10)
    assert enforce(session, later - timedelta(seconds=1), limits, always) is session
    failed = enforce(session, later, limits, always)
    assert failed.failure is not None
    assert (failed.failure.error_type, failed.failure.retry_available) == ("queue_timeout", True)
    again = retry(failed, later + timedelta(hours=1), later)
    assert enforce(again, later + timedelta(minutes=9), limits, always) is again


def test_a_job_that_nobody_waits_for_or_that_is_not_in_the_queue_waits_for_as_long_as_it_takes() -> None:
    limits, later = Deadlines(), NOW + timedelta(hours=4)
    waiting = replace(plan(new_session(), uploaded(0), NOW), deadline=NOW + timedelta(hours=24))
    idle = replace(waiting, units=tuple(replace(u, priority=Priority.LOW) for u in waiting.units))
    assert enforce(idle, later, limits, always) is idle
    assert plan(idle, {}, later).state is SessionState.ACTIVE
    assert enforce(waiting, later, limits, lambda _: None) is waiting
    assert enforce(waiting, later, limits, lambda _: NOW + timedelta(hours=2)) is waiting
    assert enforce(waiting, later, limits, always).state is SessionState.FAILED


def test_a_job_that_a_worker_holds_too_long_is_taken_from_it() -> None:
    limits = Deadlines(queued=timedelta(minutes=10), claimed=timedelta(minutes=5))
    session = plan(new_session(), uploaded(0), NOW)
    ref = UnitRef(JobKind.PROBE, 0, 0, 1)
    session = claim(session, ref, "stuck", NOW)
    later = NOW + timedelta(minutes=5)
    assert enforce(session, later - timedelta(seconds=1), limits, always) is session
    assert [unit.ref for unit in overdue_claims(session, later, limits)] == [ref]
    session = enforce(session, later, limits, always)
    assert not holds_claim(session, ref, "stuck")
    wait = seconds_until_retry(session, later)
    assert wait is not None
    session = plan(session, {}, later + timedelta(seconds=wait))
    (unit,) = session.units
    assert (unit.attempt, unit.state, unit.error_type) == (2, UnitState.QUEUED, "worker_lost")


def test_no_job_that_may_still_run_is_taken_from_its_worker() -> None:
    longest = Limits(wall_seconds=MergeSettings().job_seconds).for_canvas(LARGEST_CANVAS).wall_seconds
    assert MergeSettings().claim_timeout_seconds >= longest + 120
    for settings_ in ({"job_seconds": 400}, {"claim_timeout_seconds": 1319}):
        with pytest.raises(ValidationError, match="claim_timeout_seconds must be at least"):
            MergeSettings(**settings_)  # type: ignore[arg-type]  # by name
    larger = merge_pb2.Canvas(width=LARGEST_CANVAS.width + 2, height=LARGEST_CANVAS.height)
    refused = protovalidate.collect_violations(merge_service_pb2.InitiateMergeRequest(canvas=larger))
    assert "canvas.size" in {violation.proto.rule_id for violation in refused}


def test_pauses_between_attempts_double_and_attempts_after_the_first_go_ahead_of_others() -> None:
    session, now, waits = plan(new_session(), uploaded(0), NOW), NOW, []
    for attempt in range(1, MAX_ATTEMPTS + 1):
        ref = UnitRef(JobKind.PROBE, 0, 0, attempt)
        session = claim(session, ref, "t", now)
        session = give_up(session, ref, "t", "worker_failed", "killed", retryable=True, now=now)
        wait = seconds_until_retry(session, now)
        assert wait is not None
        waits.append(wait)
        assert plan(session, {}, now + timedelta(seconds=0.99 * wait)).units[0].attempt == attempt or attempt == 3
        now += timedelta(seconds=wait)
        session = plan(session, {}, now)
        if attempt < MAX_ATTEMPTS:
            assert (session.units[0].attempt, session.units[0].priority) == (attempt + 1, Priority.HIGH)
    assert waits == [1.0, 2.0, 4.0]
    assert session.failure is not None
    assert session.failure.retry_available


def test_an_owners_share_goes_to_retries_and_then_to_the_oldest_session() -> None:
    def of(name: str, created_at: datetime, priority: Priority) -> Session:
        session = plan(replace(new_session(), id=name, created_at=created_at), uploaded(0, 1), NOW)
        return replace(session, units=tuple(replace(u, priority=priority) for u in session.units))

    old = of("old", NOW, Priority.NORMAL)
    young = of("young", NOW + timedelta(hours=1), Priority.NORMAL)
    retried = of("retried", NOW + timedelta(hours=2), Priority.HIGH)
    units = in_order([young, old, retried])
    assert [session.id for session, _ in units] == ["retried"] * 2 + ["old"] * 2 + ["young"] * 2
    wanted = [job_for(session, unit, lambda _: b"") for session, unit in units]
    assert [job.id for job in admitted(wanted, (), 3)] == [job.id for job in wanted[:3]]
    queued = {wanted[5].id, wanted[1].id, "done-and-not-acknowledged"}
    assert [job.id for job in admitted(wanted, queued, 3)] == [wanted[0].id]
    assert admitted(wanted, {job.id for job in wanted[2:]}, 3) == [], "one that came later waits its turn, too"


def test_jobs_that_idle_workers_may_do_take_no_room_from_those_that_are_waited_for() -> None:
    def jobs(name: str, priority: Priority) -> list[Job]:
        session = plan(replace(new_session(), id=name), uploaded(0, 1, 2), NOW)
        session = replace(session, units=tuple(replace(u, priority=priority) for u in session.units))
        return [job_for(session, unit, lambda _: b"") for unit in session.units]

    idle, waited_for = jobs("idle", Priority.LOW), jobs("waited-for", Priority.NORMAL)
    wanted, queued = [*waited_for, *idle], {job.id for job in idle}
    assert admitted(wanted, queued, 3) == waited_for
    assert admitted([*waited_for[:1], *idle], queued - {idle[2].id}, 3) == waited_for[:1]
    assert admitted(wanted, {job.id for job in waited_for}, 3) == []
