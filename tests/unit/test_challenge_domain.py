from __future__ import annotations

import hashlib
import uuid
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.challenge import domain
from services.challenge.domain import Answer, Challenge, Draft, Position, Reason, Segment, Statement, Status, Video
from services.challenge.rpc import page_token, place
from services.common.errors import FailedPrecondition, InvalidArgument, NotFound, ServiceError
from twotruths.challenge.v1 import challenge_pb2

NOW = datetime(2026, 3, 4, tzinfo=UTC)
SEGMENTS = (
    Segment(0, 0.0, 15.0, 15.0, 0, 450),
    Segment(1, 15.0, 27.5, 12.5, 450, 375),
    Segment(2, 27.5, 45.7, 18.2, 825, 546),
)
VIDEO = Video(str(uuid.UUID(int=1)), "alice", 45.7, SEGMENTS, True)
DRAFT = Draft(
    title="Three things about me",
    statements=tuple(Statement(VIDEO.id, segment.duration) for segment in SEGMENTS),
    lie_statement_index=2,
    is_merged_video=True,
    video_id=VIDEO.id,
    total_duration=45.7,
    segments=SEGMENTS,
)
ANSWER = Answer(2, "ab" * 32)
CHALLENGE = Challenge(str(uuid.UUID(int=2)), "alice", DRAFT.title, Status.PUBLISHED, VIDEO, "c" * 64, NOW, NOW)


def field_of(error: ServiceError) -> str:
    (violation,) = error.violations
    return violation.field


def test_every_reason_is_in_the_contract() -> None:
    names = set(challenge_pb2.ChallengeErrorReason.keys())
    assert {f"CHALLENGE_ERROR_REASON_{reason}" for reason in Reason} <= names


def test_the_commitment_is_the_documented_hash_and_salts_are_32_random_bytes() -> None:
    opened = f"{CHALLENGE.id}:2:{'ab' * 32}".encode()
    assert domain.commitment(CHALLENGE.id, ANSWER) == hashlib.sha256(opened).hexdigest()
    salts = {domain.new_salt() for _ in range(50)}
    assert len(salts) == 50
    assert {len(bytes.fromhex(salt)) for salt in salts} == {32}


def test_the_lie_and_the_salt_show_in_no_repr() -> None:
    assert repr(Answer(1, "secret")) == repr(Answer(2, "other"))
    assert repr(replace(DRAFT, lie_statement_index=0)) == repr(DRAFT)
    assert "ab" * 32 not in repr(ANSWER)


def test_a_draft_that_says_what_the_video_says_passes() -> None:
    DRAFT.check()
    DRAFT.check_fits(VIDEO)
    rounded = tuple(replace(segment, start_frame=0, frame_count=0) for segment in SEGMENTS)
    replace(DRAFT, segments=rounded, statements=(Statement(),) * 3, total_duration=45.701).check_fits(VIDEO)


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"is_merged_video": False}, "is_merged_video", Reason.MERGED_VIDEO_REQUIRED),
        ({"title": " \n"}, "title", ""),
        ({"title": "a\0b"}, "title", ""),
        ({"video_id": "../etc"}, "merged_video_metadata.video_file_id", ""),
        ({"lie_statement_index": 3}, "lie_statement_index", Reason.STATEMENT_OUT_OF_RANGE),
        ({"lie_statement_index": -1}, "lie_statement_index", Reason.STATEMENT_OUT_OF_RANGE),
    ],
)
def test_a_draft_that_breaks_a_rule_is_refused_by_field(
    change: dict[str, object], field: str, reason: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        replace(DRAFT, **change).check()  # type: ignore[arg-type]  # each case changes another field
    assert (field_of(refused.value), refused.value.reason) == (field, reason)


def swapped(index: int, **changes: float) -> dict[str, object]:
    segments = list(SEGMENTS)
    segments[index] = replace(segments[index], **changes)  # type: ignore[arg-type]  # floats for float fields
    return {"segments": tuple(segments)}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"statements": (Statement(),) * 2}, "statements"),
        ({"segments": SEGMENTS[:2]}, "merged_video_metadata.segments"),
        ({"total_duration": 45.702}, "merged_video_metadata.total_duration"),
        ({"total_duration": float("nan")}, "merged_video_metadata.total_duration"),
        (swapped(1, statement_index=2), "merged_video_metadata.segments[1].statement_index"),
        (swapped(1, start_time=15.033), "merged_video_metadata.segments[1].start_time"),
        (swapped(0, end_time=15.0011), "merged_video_metadata.segments[0].end_time"),
        (swapped(2, duration=0.0), "merged_video_metadata.segments[2].duration"),
        ({"statements": (Statement(), Statement("x"), Statement())}, "statements[1].media_file_id"),
        ({"statements": (Statement(), Statement(), Statement("", 18.3))}, "statements[2].duration_seconds"),
    ],
)
def test_a_draft_that_contradicts_the_video_is_refused_by_field(change: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        replace(DRAFT, **change).check_fits(VIDEO)  # type: ignore[arg-type]  # each case changes another field
    assert (field_of(refused.value), refused.value.reason) == (field, Reason.SEGMENTS_MISMATCH)


@pytest.mark.parametrize("status", list(Status))
def test_who_is_not_the_creator_sees_published_challenges_alone(status: Status) -> None:
    challenge = replace(CHALLENGE, status=status)
    assert domain.check_visible(challenge, "alice") is challenge
    if status is Status.PUBLISHED:
        assert domain.check_visible(challenge, "bob") is challenge
        return
    with pytest.raises(NotFound) as hidden:
        domain.check_visible(challenge, "bob")
    with pytest.raises(NotFound) as missing:
        domain.check_visible(None, "bob")
    assert hidden.value.args == missing.value.args


def test_the_answer_is_for_the_creator_and_for_who_has_guessed() -> None:
    assert domain.may_see_answer(CHALLENGE, "alice", has_guessed=False)
    assert domain.may_see_answer(CHALLENGE, "bob", has_guessed=True)
    assert not domain.may_see_answer(CHALLENGE, "bob", has_guessed=False)


def test_only_the_lie_wins_points() -> None:
    guesses = [domain.judge(CHALLENGE, ANSWER, "bob", index, NOW) for index in range(3)]
    assert [(guess.correct, guess.points) for guess in guesses] == [(False, 0), (False, 0), (True, 10)]


def test_a_guess_that_may_not_be_made_is_refused() -> None:
    domain.check_guess(CHALLENGE, "bob", 2)
    with pytest.raises(FailedPrecondition) as own:
        domain.check_guess(CHALLENGE, "alice", 2)
    with pytest.raises(FailedPrecondition) as taken_back:
        domain.check_guess(replace(CHALLENGE, status=Status.WITHDRAWN), "bob", 2)
    with pytest.raises(InvalidArgument) as beyond:
        domain.check_guess(CHALLENGE, "bob", 3)
    reasons = [refused.value.reason for refused in (own, taken_back, beyond)]
    assert reasons == [Reason.OWN_CHALLENGE, Reason.NOT_PUBLISHED, Reason.STATEMENT_OUT_OF_RANGE]
    assert field_of(beyond.value) == "statement_index"


def test_the_id_of_a_request_is_its_creators_alone() -> None:
    assert domain.challenge_id("alice", "r1") == domain.challenge_id("alice", "r1")
    assert len({domain.challenge_id(*pair) for pair in [("alice", "r1"), ("alice", "r2"), ("bob", "r1")]}) == 3


@given(st.datetimes(timezones=st.just(UTC)), st.uuids())
def test_a_page_token_gives_its_place_back(at: datetime, id_: uuid.UUID) -> None:
    position = Position(at, str(id_))
    token = page_token(position)
    assert place(token) == position
    assert token.isascii()
    assert "=" not in token


@given(st.text(max_size=60))
def test_text_that_is_no_page_token_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        place(text)
    assert (field_of(refused.value), refused.value.reason) == ("page_token", Reason.PAGE_TOKEN_INVALID)


def test_a_changed_page_token_is_refused() -> None:
    token = page_token(Position(NOW, CHALLENGE.id))
    for index in range(len(token)):
        changed = token[:index] + ("A" if token[index] != "A" else "B") + token[index + 1 :]
        with pytest.raises(InvalidArgument):
            place(changed)
