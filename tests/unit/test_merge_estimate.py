"""What the progress board measures, and what follows from it for how long a session will take."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from services.common.progress import Progress
from services.merge.board import ProgressBoard
from services.merge.domain import (
    WHOLE_SESSION,
    Clip,
    JobKind,
    Outcome,
    Priority,
    Session,
    SessionState,
    Unit,
    UnitState,
)
from services.merge.estimate import remaining_seconds, seconds_after_last_upload
from services.merge.planner import ClipUpload, UploadStatus
from services.merge.status import reached, view
from services.merge.transitions import supersede

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Time:
    """Goes on when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def session(*seconds: float) -> Session:
    clips = tuple(Clip(i, f"upload{i}", f"{i}.mp4", 1, s, "video/mp4") for i, s in enumerate(seconds))
    return Session("s", "alice", "", "", clips, NOW, NOW, NOW)


def work(
    board: ProgressBoard, time: Time, unit: str, speed: float, *, seconds: int = 30, total: int = 10_000
) -> None:
    """A worker tells its progress every quarter of a second."""
    for step in range(4 * seconds):
        board.note(Progress("merge", "s", unit, round(step * speed / 4), 10_000))
        time.now += 0.25


def test_the_speed_is_that_of_the_latest_work_and_no_gap_or_new_attempt_disturbs_it() -> None:
    board = ProgressBoard(time := Time())
    work(board, time, "normalise0", 60)
    assert board.speed("normalise") == pytest.approx(60, rel=0.05)
    time.now += 3600
    work(board, time, "normalise0", 60, seconds=1)  # the next attempt, an hour later, from the start
    assert board.speed("normalise") == pytest.approx(60, rel=0.05)
    work(board, time, "normalise1", 10)
    assert board.speed("normalise") == pytest.approx(10, rel=0.1)
    merging = board.speed("merge")
    assert merging > 100, "joining was not measured yet"


def test_what_remains_falls_with_the_work_and_is_shared_by_the_workers_that_are_busy() -> None:
    board, plain = ProgressBoard(time := Time()), session(10, 10, 10)
    work(board, time, "normalise0", 30)
    alone = remaining_seconds(replace(plain, id="other"), board)
    assert alone == pytest.approx(1 + 900 / 30 + 1800 / board.speed("merge"), rel=0.1)
    for unit in ("normalise1", "normalise2"):
        board.note(Progress("merge", "s", unit, 1, 300))
    assert board.busy() == 3
    together = remaining_seconds(replace(plain, id="other"), board)
    assert together == pytest.approx(1 + 300 / 30 + 1800 / board.speed("merge"), rel=0.1)
    half = ProgressBoard(time)
    half.note(Progress("merge", "s", "normalise0", 150, 300))
    begun = replace(plain, units=(Unit(JobKind.NORMALISE, 0, NOW),))
    before, after = remaining_seconds(begun, ProgressBoard(time)), remaining_seconds(begun, half)
    assert before is not None
    assert after is not None
    assert after < before
    assert remaining_seconds(replace(plain, state=SessionState.FAILED), board) is None


def test_the_estimate_at_the_beginning_is_of_the_longest_clip_at_the_measured_speed() -> None:
    board, asked = ProgressBoard(time := Time()), replace(session(5, 20, 10), id="new")
    slow = seconds_after_last_upload(asked, board)
    work(board, time, "normalise0", 300)
    quick = seconds_after_last_upload(asked, board)
    assert slow == pytest.approx(1 + 600 / 20 + 2100 / 300, rel=0.01)
    assert quick == pytest.approx(1 + 600 / 300 + 2100 / 300, rel=0.1)


def test_a_clip_that_is_normalised_is_not_waited_for() -> None:
    board, whole = ProgressBoard(Time()), session(10, 10)
    done = Unit(JobKind.NORMALISE, 0, NOW, state=UnitState.DONE, outcome=Outcome(frames=(300,)))
    left = remaining_seconds(replace(whole, units=(done,)), board)
    assert left == pytest.approx(1 + 300 / 20 + 1200 / 300, rel=0.01)


def test_an_answer_that_comes_late_does_not_take_an_uploads_progress_back() -> None:
    board = ProgressBoard(Time())
    half = ClipUpload("u", UploadStatus.IN_PROGRESS, 0.5)
    whole = ClipUpload("u", UploadStatus.COMPLETED, 1.0, "key")
    for told, seen in (
        (half, half),
        (ClipUpload("u", UploadStatus.PENDING), half),
        (whole, whole),
        (half, whole),
        (ClipUpload("u", UploadStatus.IN_PROGRESS, 1.0), whole),
        (gone := ClipUpload("u", UploadStatus.CANCELLED), gone),
    ):
        board.see(told)
        assert board.seen("u") == seen


def test_what_a_refused_copy_had_done_is_not_taken_for_the_encodings_but_the_percent_stays() -> None:
    board, fit = ProgressBoard(Time()), session(10, 10)
    copying = Unit(JobKind.MERGE, WHOLE_SESSION, NOW, state=UnitState.CLAIMED)
    before = replace(fit, units=(copying,))
    board.note(Progress("merge", "s", copying.ref.heard_as, 600, 600))
    encoding = replace(before, units=(supersede(copying, Priority.NORMAL, NOW),))
    assert board.fraction("s", encoding.units[0].ref.heard_as) == 0.0
    assert remaining_seconds(encoding, board) == remaining_seconds(fit, board)
    kept = replace(encoding, reached=reached(before, {}, board.fraction).reached)
    assert view(kept, {}, board.fraction).overall_percent == view(before, {}, board.fraction).overall_percent > 0


def test_progress_that_is_said_again_is_no_measure_of_speed() -> None:
    board, twice = ProgressBoard(time := Time()), ProgressBoard(again := Time())
    for step in range(1, 30):
        for clock, here in ((time, board), (again, twice)):
            clock.now += 1.0
            here.note(Progress("merge", "s", "normalise0", 40 * (step - 1), 10_000))
        twice.note(Progress("merge", "s", "normalise0", 40 * (step - 1), 10_000))
        again.now += 1.0
        time.now += 1.0
        twice.note(Progress("merge", "s", "normalise0", 40 * (step - 1), 10_000))
    assert twice.speed("normalise") == pytest.approx(board.speed("normalise")) == pytest.approx(20)


def test_what_is_recalled_is_shown_and_says_nothing_of_who_works_now_or_how_fast() -> None:
    board = ProgressBoard(Time())
    board.recall(Progress("merge", "s", "normalise0", 60, 90))
    board.recall(Progress("merge", "s", "normalise0", 10, 90))
    assert (board.fraction("s", "normalise0"), board.frames("s", "normalise0"), board.busy()) == (60 / 90, 90, 0)
    speed = board.speed("normalise")
    board.note(Progress("merge", "s", "normalise0", 89, 90))
    assert board.speed("normalise") == speed


def test_units_that_nobody_asks_about_are_not_kept_as_busy() -> None:
    board = ProgressBoard(time := Time())
    for n in range(1000):
        board.note(Progress("merge", f"s{n}", "merge", 1, 2))
        time.now += 1.0
    assert len(board._busy) <= 4
    assert board.busy() <= 3
