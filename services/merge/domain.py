"""Merge sessions: what is written down about one, and every change it can go through.

All functions are pure: they take a session and answer the session after the change. The record is written by
compare-and-set, so a change is decided again from the newest record whenever someone else was faster.

Work is cut into *units*: a probe and a normalisation for each clip, one merge. A unit has one current
*attempt*; a worker that takes it writes its *claim token* into the record, and only the result that comes
with the current token counts. So a worker that was thought dead can do no harm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from services.merge.timeline import Canvas, ClipInfo, Quality, canvas_for


class Reason(StrEnum):
    """Why a call was refused: MergeErrorReason of the contract without its prefix."""

    MERGE_NOT_FOUND = "MERGE_NOT_FOUND"
    VIDEO_NOT_FOUND = "VIDEO_NOT_FOUND"
    CLIP_LISTS_DIFFER = "CLIP_LISTS_DIFFER"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    RETRY_NOT_AVAILABLE = "RETRY_NOT_AVAILABLE"
    ALREADY_COMPLETED = "ALREADY_COMPLETED"
    INTERNAL_ONLY = "INTERNAL_ONLY"
    CLIP_TOO_LONG = "CLIP_TOO_LONG"


class SessionState(StrEnum):
    """As in the contract. Uploading, queued and processing are all ACTIVE: which one follows from the units."""

    ACTIVE = "SESSION_STATE_ACTIVE"
    COMPLETED = "SESSION_STATE_COMPLETED"
    FAILED = "SESSION_STATE_FAILED"
    CANCELLED = "SESSION_STATE_CANCELLED"


class JobKind(StrEnum):
    """What a unit does."""

    PROBE = "JOB_KIND_PROBE"
    NORMALISE = "JOB_KIND_NORMALISE"
    MERGE = "JOB_KIND_MERGE"


class UnitState(StrEnum):
    """Where a unit's current attempt is."""

    QUEUED = "UNIT_STATE_QUEUED"
    CLAIMED = "UNIT_STATE_CLAIMED"
    DONE = "UNIT_STATE_DONE"
    FAILED = "UNIT_STATE_FAILED"


class Priority(StrEnum):
    """Which queue an attempt waits in."""

    HIGH = "PRIORITY_HIGH"
    NORMAL = "PRIORITY_NORMAL"
    LOW = "PRIORITY_LOW"


class Visibility(StrEnum):
    """Who may see a video."""

    PRIVATE = "VISIBILITY_PRIVATE"
    PUBLIC = "VISIBILITY_PUBLIC"


class StaleClaim(Exception):
    """The attempt is not current, or another claim counts: whoever holds it must leave no trace."""


WHOLE_SESSION = -1


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip. ``promised_duration`` in seconds is shown, never used; ``source_key`` is set once uploaded."""

    index: int
    upload_id: str
    filename: str
    size: int
    promised_duration: float
    mime_type: str
    generation: int = 0
    source_key: str = ""
    uploaded_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a unit made. A probe fills ``clip``; the others the object, whose ``frames`` are one number for
    each clip in it."""

    clip: ClipInfo | None = None
    object_key: str = ""
    size: int = 0
    sha256: str = ""
    frames: tuple[int, ...] = ()
    width: int = 0
    height: int = 0


@dataclass(frozen=True, slots=True)
class UnitRef:
    """Names one attempt of one unit: what a job carries."""

    kind: JobKind
    clip_index: int
    generation: int
    attempt: int

    def job_id(self, session_id: str) -> str:
        """``<session>-<unit>-<generation>-<attempt>``: each attempt is a job of its own, so a retry is never
        refused for its predecessor that nobody acknowledged yet."""
        return f"{session_id}-{unit_name(self.kind, self.clip_index)}-{self.generation}-{self.attempt}"


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of work and its current attempt (from 1)."""

    kind: JobKind
    clip_index: int
    queued_at: datetime | None
    generation: int = 0
    attempt: int = 1
    state: UnitState = UnitState.QUEUED
    priority: Priority = Priority.NORMAL
    claim_token: str = ""
    claimed_at: datetime | None = None
    finished_at: datetime | None = None
    outcome: Outcome | None = None
    error_type: str = ""
    error_message: str = ""
    retryable: bool = False
    retry_at: datetime | None = None
    deliveries: int = 0

    @property
    def ref(self) -> UnitRef:
        return UnitRef(self.kind, self.clip_index, self.generation, self.attempt)

    @property
    def name(self) -> str:
        return unit_name(self.kind, self.clip_index)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a session failed. ``clip_index`` is -1 when no clip is at fault."""

    error_type: str
    message: str
    failed_at: datetime | None
    retry_available: bool
    clip_index: int = WHOLE_SESSION


@dataclass(frozen=True, slots=True)
class Session:
    """A merge session: message MergeRecord of the contract, field by field."""

    id: str
    owner: str
    title: str
    request_fingerprint: str
    clips: tuple[Clip, ...]
    created_at: datetime
    updated_at: datetime
    deadline: datetime
    quality: Quality = Quality.MEDIUM
    priority: Priority = Priority.NORMAL
    state: SessionState = SessionState.ACTIVE
    canvas: Canvas | None = None
    units: tuple[Unit, ...] = ()
    failure: Failure | None = None
    retry_count: int = 0
    video_id: str = ""
    uploads_ready: bool = False
    uploads_completed_at: datetime | None = None
    completed_at: datetime | None = None
    cleaned: bool = False

    def unit(self, kind: JobKind, clip_index: int = WHOLE_SESSION) -> Unit | None:
        """The unit of this kind for the clip as it is now (of its current generation), or None."""
        generation = self.generation(clip_index)
        for unit in self.units:
            if (unit.kind, unit.clip_index, unit.generation) == (kind, clip_index, generation):
                return unit
        return None

    def generation(self, clip_index: int) -> int:
        """The clip's generation; that of the whole session counts every replacement."""
        if clip_index == WHOLE_SESSION:
            return sum(clip.generation for clip in self.clips)
        return self.clips[clip_index].generation

    def done(self, kind: JobKind, clip_index: int = WHOLE_SESSION) -> Outcome | None:
        """What the unit made, or None while it is not done."""
        unit = self.unit(kind, clip_index)
        return unit.outcome if unit is not None and unit.state is UnitState.DONE else None

    @property
    def all_uploaded(self) -> bool:
        return all(clip.source_key for clip in self.clips)

    @property
    def unfinished(self) -> tuple[Unit, ...]:
        """The units whose current attempt ought to be in the queue or with a worker."""
        return tuple(u for u in self.units if u.state in (UnitState.QUEUED, UnitState.CLAIMED))


@dataclass(frozen=True, slots=True)
class Video:
    """A merged video: message VideoRecord of the contract. ``frames`` of each segment at 30 per second."""

    id: str
    owner: str
    merge_session_id: str
    object_key: str
    size: int
    sha256: str
    frames: tuple[int, ...]
    width: int
    height: int
    created_at: datetime
    transcoded: bool = True
    visibility: Visibility = Visibility.PRIVATE


def unit_name(kind: JobKind, clip_index: int) -> str:
    """A unit's short name: "probe0", "normalise2", "merge"."""
    name = kind.removeprefix("JOB_KIND_").lower()
    return name if clip_index == WHOLE_SESSION else f"{name}{clip_index}"


def with_unit(session: Session, unit: Unit) -> Session:
    """The session with this unit in the place of the one of the same kind, clip and generation."""
    place = (unit.kind, unit.clip_index, unit.generation)
    others = tuple(u for u in session.units if (u.kind, u.clip_index, u.generation) != place)
    return replace(session, units=(*others, unit))


def claim(session: Session, ref: UnitRef, token: str, deliveries: int, now: datetime) -> Session:
    """A worker takes an attempt. Raises StaleClaim when there is nothing (more) to do."""
    unit = _current(session, ref)
    taken = replace(unit, state=UnitState.CLAIMED, claim_token=token, claimed_at=now, deliveries=deliveries)
    return with_unit(replace(session, updated_at=now), taken)


def holds_claim(session: Session, ref: UnitRef, token: str) -> bool:
    """Whether the result of this claim would count."""
    try:
        return _current(session, ref).claim_token == token
    except StaleClaim:
        return False


def finish(session: Session, ref: UnitRef, token: str, outcome: Outcome, now: datetime) -> Session:
    """The claimed attempt made something. The first clip probed sets the canvas, which never changes.

    Saying it again changes nothing: the answer to the write may have been lost and others may have written since,
    so the same worker must not take its own result for another's. Raises StaleClaim when another claim counts.
    """
    if _counts(session, ref, token):
        return session
    unit = _claimed(session, ref, token)
    done = replace(unit, state=UnitState.DONE, outcome=outcome, finished_at=now, error_type="", error_message="")
    session = with_unit(replace(session, updated_at=now), done)
    if outcome.clip is not None and session.canvas is None:
        session = replace(session, canvas=canvas_for(outcome.clip))
    return session


def give_up(
    session: Session, ref: UnitRef, token: str, error_type: str, message: str, *, retryable: bool, now: datetime
) -> Session:
    """The claimed attempt failed. A retryable one may be tried again after a pause that doubles each time.

    Raises StaleClaim when another claim counts.
    """
    unit = _claimed(session, ref, token)
    pause = timedelta(seconds=min(60.0, 0.5 * 2**unit.attempt))
    failed = replace(
        unit,
        state=UnitState.FAILED,
        error_type=error_type,
        error_message=message,
        retryable=retryable,
        finished_at=now,
        retry_at=now + pause,
    )
    return with_unit(replace(session, updated_at=now), failed)


def next_attempt(unit: Unit, now: datetime) -> Unit:
    """The unit's next attempt, ahead of the others: its session has waited once already."""
    return replace(
        unit,
        attempt=unit.attempt + 1,
        state=UnitState.QUEUED,
        priority=Priority.HIGH,
        claim_token="",
        queued_at=now,
        claimed_at=None,
        finished_at=None,
        retry_at=None,
        deliveries=0,
    )


def fail(session: Session, failure: Failure, now: datetime) -> Session:
    """The session ends without a video, for now."""
    return replace(session, state=SessionState.FAILED, failure=failure, updated_at=now)


def complete(session: Session, video_id: str, now: datetime) -> Session:
    """The video is there. A session that ended otherwise in between stays as it is."""
    if session.state is not SessionState.ACTIVE:
        return session
    return replace(session, state=SessionState.COMPLETED, video_id=video_id, completed_at=now, updated_at=now)


def cancel(session: Session, now: datetime) -> Session:
    """The owner gives it up; a cancelled session stays as it is, a completed one is the caller's to refuse.

    One that had failed and was cleaned up is cleaned up again, which is how its record goes one day.
    """
    if session.state in (SessionState.CANCELLED, SessionState.COMPLETED):
        return session
    return replace(session, state=SessionState.CANCELLED, failure=None, cleaned=False, updated_at=now)


def retry(session: Session, deadline: datetime, now: datetime) -> Session:
    """A failed session is tried again: units that failed get their next attempt, what is done is kept."""
    units = tuple(next_attempt(u, now) if u.state is UnitState.FAILED else u for u in session.units)
    return replace(
        session,
        state=SessionState.ACTIVE,
        failure=None,
        units=units,
        retry_count=session.retry_count + 1,
        deadline=deadline,
        updated_at=now,
    )


def _current(session: Session, ref: UnitRef) -> Unit:
    unit = None
    if session.state is SessionState.ACTIVE and ref.clip_index < len(session.clips):
        unit = session.unit(ref.kind, ref.clip_index)
    if unit is None or unit.ref != ref or unit.state in (UnitState.DONE, UnitState.FAILED):
        raise StaleClaim(ref)
    return unit


def _counts(session: Session, ref: UnitRef, token: str) -> bool:
    """Whether what this claim made is written down, wherever the session is by now."""
    return any(u.ref == ref and u.claim_token == token and u.state is UnitState.DONE for u in session.units)


def _claimed(session: Session, ref: UnitRef, token: str) -> Unit:
    unit = _current(session, ref)
    if unit.claim_token != token:
        raise StaleClaim(ref)
    return unit
