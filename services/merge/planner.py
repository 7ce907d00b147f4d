"""What is to be done next for a session: pure, and the same whoever asks and how often.

The controller hands in the session and its uploads as they are and gets the session as it should be. Every
unit that is unfinished then belongs into the queue; publishing one that is there already changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from services.merge.domain import WHOLE_SESSION, Clip, Failure, JobKind, Session, SessionState, Unit, UnitState
from services.merge.transitions import fail, next_attempt, with_unit

MAX_ATTEMPTS = 3
PROCESSING = timedelta(hours=1)


class UploadStatus(StrEnum):
    """An upload's status, as the contract of the upload service names it."""

    PENDING = "UPLOAD_STATUS_PENDING"
    IN_PROGRESS = "UPLOAD_STATUS_IN_PROGRESS"
    COMPLETED = "UPLOAD_STATUS_COMPLETED"
    FAILED = "UPLOAD_STATUS_FAILED"
    CANCELLED = "UPLOAD_STATUS_CANCELLED"
    EXPIRED = "UPLOAD_STATUS_EXPIRED"


@dataclass(frozen=True, slots=True)
class ClipUpload:
    """What the merge service knows of an upload. ``progress`` is the fraction stored, 0 to 1."""

    id: str
    status: UploadStatus
    progress: float = 0.0
    object_key: str = ""
    completed_at: datetime | None = None
    error_type: str = ""
    error_message: str = ""
    chunk_size: int = 0
    total_chunks: int = 0


def plan(
    session: Session, uploads: Mapping[str, ClipUpload], now: datetime, processing: timedelta = PROCESSING
) -> Session:
    """The session as it should be, given its uploads by id. Answers its argument when nothing is to change.

    ``uploads`` may leave out those of clips whose source is known. ``processing`` is how long the video may take
    once the last clip is there, however late that was.
    """
    if session.state is not SessionState.ACTIVE:
        return session
    planned = _take_in_uploads(session, uploads, now, processing)
    for step in (_refuse_lost_clips, _refuse_failed_units):
        failure = step(planned, uploads, now)
        if failure is not None:
            return fail(planned, failure, now)
    if now >= planned.deadline and planned.done(JobKind.MERGE) is None:
        return fail(planned, _out_of_time(planned, now), now)
    planned = _retry_units(planned, now)
    planned = _add_units(planned, now)
    return session if planned == session else replace(planned, updated_at=now)


def seconds_until_retry(session: Session, now: datetime) -> float | None:
    """When the session wants to be planned again by itself: seconds until a failed unit's next attempt."""
    if session.state is not SessionState.ACTIVE:
        return None
    waits = [
        (u.retry_at - now).total_seconds()
        for u in session.units
        if u.state is UnitState.FAILED and u.retry_at is not None
    ]
    return max(0.05, min(waits)) if waits else None


def _take_in_uploads(
    session: Session, uploads: Mapping[str, ClipUpload], now: datetime, processing: timedelta
) -> Session:
    def taken(clip: Clip) -> Clip:
        upload = uploads.get(clip.upload_id)
        if clip.source_key or upload is None or upload.status is not UploadStatus.COMPLETED:
            return clip
        return replace(clip, source_key=upload.object_key, uploaded_at=upload.completed_at or now)

    clips = tuple(taken(clip) for clip in session.clips)
    session = replace(session, clips=clips)
    if session.all_uploaded and session.uploads_completed_at is None:
        session = replace(session, uploads_completed_at=now, deadline=now + processing)
    return session


def _refuse_lost_clips(session: Session, uploads: Mapping[str, ClipUpload], now: datetime) -> Failure | None:
    """A clip that can no longer come fails the session, until it is replaced."""
    why = {
        UploadStatus.CANCELLED: ("clip_cancelled", "the upload of clip {n} was cancelled"),
        UploadStatus.EXPIRED: ("clip_expired", "clip {n} was not uploaded in time"),
        UploadStatus.FAILED: ("clip_rejected", "clip {n} was refused: {detail}"),
    }
    for clip in session.clips:
        upload = uploads.get(clip.upload_id)
        if clip.source_key or upload is None or upload.status not in why:
            continue
        error_type, text = why[upload.status]
        message = text.format(n=clip.index + 1, detail=upload.error_message)
        return Failure(error_type, message, now, retry_available=False, clip_index=clip.index)
    return None


def _refuse_failed_units(session: Session, _: Mapping[str, ClipUpload], now: datetime) -> Failure | None:
    for unit in session.units:
        if unit.state is UnitState.FAILED and not _may_retry(session, unit):
            where = "" if unit.clip_index == WHOLE_SESSION else f"clip {unit.clip_index + 1}: "
            return Failure(
                unit.error_type,
                where + unit.error_message,
                now,
                retry_available=unit.retryable,
                clip_index=unit.clip_index,
            )
    return None


def _out_of_time(session: Session, now: datetime) -> Failure:
    if session.all_uploaded:
        return Failure("processing_timeout", "the video was not made in time", now, retry_available=True)
    return Failure("upload_timeout", "not all clips were uploaded in time", now, retry_available=False)


def _may_retry(session: Session, unit: Unit) -> bool:
    # Each RetryMerge by the player allows as many attempts again.
    return unit.retryable and unit.attempt < MAX_ATTEMPTS * (session.retry_count + 1)


def _retry_units(session: Session, now: datetime) -> Session:
    for unit in session.units:
        if unit.state is UnitState.FAILED and (unit.retry_at is None or now >= unit.retry_at):
            session = with_unit(session, next_attempt(unit, now))
    return session


def _add_units(session: Session, now: datetime) -> Session:
    """Probe each clip as it comes, normalise each once the canvas is known, merge when all are normalised."""

    def add(session: Session, kind: JobKind, clip_index: int = WHOLE_SESSION) -> Session:
        if session.unit(kind, clip_index) is not None:
            return session
        unit = Unit(kind, clip_index, now, generation=session.generation(clip_index), priority=session.priority)
        return with_unit(session, unit)

    for clip in session.clips:
        if clip.source_key:
            session = add(session, JobKind.PROBE, clip.index)
        if session.done(JobKind.PROBE, clip.index) is not None and session.canvas is not None:
            session = add(session, JobKind.NORMALISE, clip.index)
    if all(session.done(JobKind.NORMALISE, clip.index) is not None for clip in session.clips):
        session = add(session, JobKind.MERGE)
    return session
