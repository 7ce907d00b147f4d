"""The rules of a challenge: who sees what, what a draft must look like, what a guess is worth. Pure.

The lie and its salt are never part of a :class:`Challenge`. They are an :class:`Answer`, which is kept apart
and loaded only for those who may see it (:func:`may_see_answer`); so what a player sees before guessing
cannot depend on it, save the commitment.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from services.common.errors import FailedPrecondition, InvalidArgument, NotFound

POINTS_FOR_THE_LIE = 10
SALT_BYTES = 32
TOLERANCE = 0.001
"""Seconds by which the times in a request may differ from the video's: clients print them with few digits."""

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

# Floating point: a difference of exactly a millisecond between printed numbers must pass.
_ROUNDING = 1e-9


class Reason(StrEnum):
    """Why a call is refused: ``ChallengeErrorReason`` of the contract, without its prefix."""

    CHALLENGE_NOT_FOUND = "CHALLENGE_NOT_FOUND"
    VIDEO_NOT_USABLE = "VIDEO_NOT_USABLE"
    SEGMENTS_MISMATCH = "SEGMENTS_MISMATCH"
    VIDEO_IN_USE = "VIDEO_IN_USE"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    NOT_PUBLISHED = "NOT_PUBLISHED"
    OWN_CHALLENGE = "OWN_CHALLENGE"
    ALREADY_GUESSED = "ALREADY_GUESSED"
    STATEMENT_OUT_OF_RANGE = "STATEMENT_OUT_OF_RANGE"
    PAGE_TOKEN_INVALID = "PAGE_TOKEN_INVALID"  # noqa: S105  the name of a refusal, not a secret
    MERGED_VIDEO_REQUIRED = "MERGED_VIDEO_REQUIRED"


class Status(StrEnum):
    """Where a challenge is in its life. PUBLISHING is an intent: the creator asked, the video may not be public
    yet; to the outside it is still a draft."""

    DRAFT = "draft"
    PUBLISHING = "publishing"
    PUBLISHED = "published"
    WITHDRAWN = "withdrawn"
    REMOVED = "removed"

    @property
    def is_live(self) -> bool:
        """Whether the challenge still needs its video."""
        return self in {Status.DRAFT, Status.PUBLISHING, Status.PUBLISHED}


@dataclass(frozen=True, slots=True)
class Segment:
    """One statement's place in the video; times in seconds, frames from 0."""

    statement_index: int
    start_time: float
    end_time: float
    duration: float
    start_frame: int = 0
    frame_count: int = 0


@dataclass(frozen=True, slots=True)
class Video:
    """What a challenge needs of a merged video. Its segments tile it."""

    id: str
    owner: str
    total_duration: float
    segments: tuple[Segment, ...]
    compression_applied: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """The lie and the salt of its commitment. Neither shows in ``repr``, so that neither reaches a log."""

    lie_statement_index: int = field(repr=False)
    salt: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Challenge:
    """A challenge as anyone may know it once it is published; ``video`` is as it was at creation."""

    id: str
    creator: str
    title: str
    status: Status
    video: Video
    commitment: str
    created_at: datetime
    published_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Guess:
    """A player's one guess. ``score_after`` is the player's score in all once this guess counted."""

    challenge_id: str
    player: str
    statement_index: int
    correct: bool
    points: int
    guessed_at: datetime
    score_after: int = 0


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the feed, newest first: after the challenge published then, with that id."""

    published_at: datetime
    challenge_id: str


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement as a draft gives it: the video it is said to be in (or ""), and seconds (or 0)."""

    media_file_id: str = ""
    duration_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Draft:
    """What a player asks to be made into a challenge. Ids are in lower case. Nothing is believed before
    :meth:`check`."""

    title: str
    statements: tuple[Statement, ...]
    lie_statement_index: int = field(repr=False)
    is_merged_video: bool
    video_id: str
    total_duration: float
    segments: tuple[Segment, ...]
    request_id: str = ""

    def check(self) -> None:
        """The rules that need no video. Raises InvalidArgument that names the field."""
        if not self.is_merged_video:
            raise InvalidArgument.field("is_merged_video", "must be true", reason=Reason.MERGED_VIDEO_REQUIRED)
        if not self.title.strip() or "\0" in self.title:
            raise InvalidArgument.field("title", "must have visible text and no NUL")
        if not _UUID.fullmatch(self.video_id):
            raise InvalidArgument.field("merged_video_metadata.video_file_id", "must be a UUID")
        if not 0 <= self.lie_statement_index < len(self.statements):
            raise InvalidArgument.field(
                "lie_statement_index", "names no statement", reason=Reason.STATEMENT_OUT_OF_RANGE
            )

    def check_fits(self, video: Video) -> None:
        """The statements and segments must be those of ``video``. Raises InvalidArgument (SEGMENTS_MISMATCH)
        that names the first wrong field."""
        metadata = "merged_video_metadata"
        _must(len(self.statements) == len(video.segments), "statements", "one a segment of the video")
        _must(len(self.segments) == len(video.segments), f"{metadata}.segments", "as many as the video has")
        _must(_near(self.total_duration, video.total_duration), f"{metadata}.total_duration", "that of the video")
        for i, (given, true) in enumerate(zip(self.segments, video.segments, strict=True)):
            path = f"{metadata}.segments[{i}]"
            _must(given.statement_index == true.statement_index, f"{path}.statement_index", "that of the video")
            for name in ("start_time", "end_time", "duration"):
                same = _near(getattr(given, name), getattr(true, name))
                _must(same, f"{path}.{name}", "that of the video, within a millisecond")
        for i, (statement, true) in enumerate(zip(self.statements, video.segments, strict=True)):
            path = f"statements[{i}]"
            named = statement.media_file_id in {"", video.id}
            _must(named, f"{path}.media_file_id", "empty, or the id of the merged video")
            same = not statement.duration_seconds or _near(statement.duration_seconds, true.duration)
            _must(same, f"{path}.duration_seconds", "0, or that of its segment within a millisecond")

    def is_of(self, challenge: Challenge, answer: Answer) -> bool:
        """Whether ``challenge`` is what this draft asks for: a request that is sent again."""
        try:
            self.check_fits(challenge.video)
        except InvalidArgument:
            return False
        return (self.title, self.video_id, self.lie_statement_index) == (
            challenge.title,
            challenge.video.id,
            answer.lie_statement_index,
        )


def _near(given: float, true: float) -> bool:
    return abs(given - true) <= TOLERANCE + _ROUNDING


def _must(holds: bool, field_path: str, be: str) -> None:
    if not holds:
        raise InvalidArgument.field(field_path, f"must be {be}", reason=Reason.SEGMENTS_MISMATCH)


def new_salt() -> str:
    """32 random bytes in hex."""
    return secrets.token_hex(SALT_BYTES)


def challenge_id(creator: str, request_id: str) -> str:
    """The id of the challenge that ``creator`` asks for under ``request_id``: the same again for the same two."""
    return str(uuid.uuid5(uuid.uuid5(uuid.NAMESPACE_OID, f"twotruths:challenge:{creator}"), request_id))


def commitment(challenge_id: str, answer: Answer) -> str:
    """What binds the creator to the lie without showing it: SHA-256 in hex."""
    opened = f"{challenge_id}:{answer.lie_statement_index}:{answer.salt}"
    return hashlib.sha256(opened.encode()).hexdigest()


def no_such_challenge() -> NotFound:
    """One text for what is not there and for what the caller may not see."""
    return NotFound("no such challenge", reason=Reason.CHALLENGE_NOT_FOUND)


def check_visible(challenge: Challenge | None, player: str) -> Challenge:
    """The challenge, for its creator, and for every player once it is published. Raises NotFound."""
    if challenge is None or not (challenge.creator == player or challenge.status is Status.PUBLISHED):
        raise no_such_challenge()
    return challenge


def may_see_answer(challenge: Challenge, player: str, *, has_guessed: bool) -> bool:
    """The creator knows the lie, and who has guessed is told."""
    return has_guessed or challenge.creator == player


def check_guess(challenge: Challenge, player: str, statement_index: int) -> None:
    """Whether ``player`` may guess that statement, of a challenge that the player may see.

    Raises FailedPrecondition (OWN_CHALLENGE, NOT_PUBLISHED), InvalidArgument (STATEMENT_OUT_OF_RANGE).
    """
    if challenge.creator == player:
        raise FailedPrecondition("nobody guesses on an own challenge", reason=Reason.OWN_CHALLENGE)
    if challenge.status is not Status.PUBLISHED:
        raise FailedPrecondition("the challenge is not published", reason=Reason.NOT_PUBLISHED)
    if not 0 <= statement_index < len(challenge.video.segments):
        raise InvalidArgument.field("statement_index", "names no statement", reason=Reason.STATEMENT_OUT_OF_RANGE)


def judge(challenge: Challenge, answer: Answer, player: str, statement_index: int, now: datetime) -> Guess:
    """What a guess is worth."""
    correct = statement_index == answer.lie_statement_index
    points = POINTS_FOR_THE_LIE if correct else 0
    return Guess(challenge.id, player, statement_index, correct, points, now)
