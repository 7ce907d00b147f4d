"""What is to be done next for a session: pure, and the same whoever asks and how often.

The controller hands in the session and its uploads as they are and gets the session as it should be. Every
unit that is unfinished then belongs into the queue; publishing one that is there already changes nothing.

What becomes of a clip is :mod:`services.merge.delivery`'s to say. A clip that is to be encoded is normalised at
once; one that may yet be copied at low priority, by workers that have nothing else to do. If copying wins, what is
unfinished of that is taken back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from services.merge.delivery import PlanAction, clip_plans, is_copied
from services.merge.domain import (
    COPY_REFUSED,
    STORAGE_UNAVAILABLE,
    WHOLE_SESSION,
    Clip,
    Failure,
    JobKind,
    Outcome,
    Priority,
    Session,
    SessionState,
    Unit,
    UnitState,
)
from services.merge.timeline import FPS
from services.merge.transitions import fail, next_attempt, supersede, with_unit, without_units

MAX_ATTEMPTS = 3
PROCESSING = timedelta(hours=1)
_MOST_CHUNKS = 1_000  # whatever a probe says: each is a unit of the record


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
    session: Session,
    uploads: Mapping[str, ClipUpload],
    now: datetime,
    processing: timedelta = PROCESSING,
    *,
    whole_seconds: float = math.inf,
) -> Session:
    """The session as it should be, given its uploads by id. Answers its argument when nothing is to change.

    ``uploads`` may leave out those of clips whose source is known. ``processing`` is how long the video may take
    once the last clip is there, however late that was. A clip longer than ``whole_seconds`` is cut into chunks.
    """
    if session.state is not SessionState.ACTIVE:
        return session
    planned = _forget_replaced(_take_back_copy(_take_in_uploads(session, uploads, now, processing)))
    for step in (_refuse_lost_clips, _refuse_failed_units):
        failure = step(planned, uploads, now)
        if failure is not None:
            return fail(planned, failure, now)
    if now >= planned.deadline and planned.done(JobKind.MERGE) is None:
        return fail(planned, _out_of_time(planned, now), now)
    planned = _retry_units(planned, now)
    planned = _add_units(planned, now, whole_seconds)
    return session if planned == session else replace(planned, updated_at=now)


def seconds_until_retry(session: Session, now: datetime) -> float | None:
    """When the session wants to be planned again by itself: seconds until a failed unit's next attempt."""
    if session.state is not SessionState.ACTIVE:
        return None
    waits = [
        (u.retry_at - now).total_seconds()
        for u in session.units
        if u.state is UnitState.FAILED and u.retry_at is not None and not _was_copy(u)
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


def _take_back_copy(session: Session) -> Session:
    """A copy that did not stand its verification, or failed in all its attempts: the clips are encoded instead.
    Encoding reads them in another way, so it may well do what copying could not; no way leads around the store."""
    merge = session.unit(JobKind.MERGE)
    if merge is None or merge.state is not UnitState.FAILED or session.copy_refused:
        return session
    spent = merge.retryable and not _may_retry(session, merge)
    if spent and is_copied(session) and merge.error_type != STORAGE_UNAVAILABLE:
        merge = replace(merge, error_type=COPY_REFUSED, retryable=False)
    if not _was_copy(merge):
        return session
    return replace(with_unit(session, merge), copy_refused=merge.error_message)


def _forget_replaced(session: Session) -> Session:
    """Of a clip that was replaced only what is done counts for anything."""
    return without_units(
        session, lambda u: u.generation != session.generation(u.clip_index) and u.state is not UnitState.DONE
    )


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
        if unit.state is UnitState.FAILED and not _may_retry(session, unit) and not _was_copy(unit):
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
    return unit.retryable and unit.attempt - unit.superseded < MAX_ATTEMPTS * (session.retry_count + 1)


def _was_copy(unit: Unit) -> bool:
    return unit.kind is JobKind.MERGE and unit.error_type == COPY_REFUSED


def _retry_units(session: Session, now: datetime) -> Session:
    for unit in session.units:
        due = unit.retry_at is None or now >= unit.retry_at
        if unit.state is UnitState.FAILED and due and not _was_copy(unit):
            session = with_unit(session, next_attempt(unit, now))
    return session


def _add_units(session: Session, now: datetime, whole_seconds: float) -> Session:
    """Probe each clip as it comes; normalise it if that is, or may be, its plan; merge when nothing is missing."""
    for clip in session.clips:
        if clip.source_key:
            session = _with_probe(session, clip, now)
    if is_copied(session):
        return _with_merge(_without_unfinished_normalising(session), now)
    for plan in clip_plans(session):
        if session.canvas is None:
            continue
        clip, urgent = session.clips[plan.index], plan.action is PlanAction.TRANSCODE
        if not session.normalising(clip.index):
            priority = session.priority if urgent else Priority.LOW
            session = _with_chunks(session, clip, whole_seconds, priority, now)
        elif urgent:
            session = _hurried(session, clip, now)
    if all(session.normalised(clip.index) for clip in session.clips):
        session = _with_merge(session, now)
    return session


def _without_unfinished_normalising(session: Session) -> Session:
    """A clip's chunks stay or go together: some of them would pass for the whole clip, were it encoded yet."""

    def is_unfinished(unit: Unit) -> bool:
        if unit.kind is not JobKind.NORMALISE or unit.generation != session.generation(unit.clip_index):
            return False
        return not session.normalised(unit.clip_index)

    return without_units(session, is_unfinished)


def _with_probe(session: Session, clip: Clip, now: datetime) -> Session:
    if session.unit(JobKind.PROBE, clip.index) is not None:
        return session
    unit = Unit(JobKind.PROBE, clip.index, now, generation=clip.generation, priority=session.priority)
    return with_unit(session, unit)


def _with_chunks(session: Session, clip: Clip, whole_seconds: float, priority: Priority, now: datetime) -> Session:
    probe = session.done(JobKind.PROBE, clip.index)
    assert probe is not None, "only a clip that was probed has a plan"
    assert probe.clip is not None
    # Attempts that were taken back for a copy may still be in the queue: theirs are other numbers.
    before = MAX_ATTEMPTS * (session.retry_count + 1) if session.copy_refused else 0
    for chunk, (first, end) in enumerate(chunks(probe.clip.duration, whole_seconds)):
        unit = Unit(
            JobKind.NORMALISE,
            clip.index,
            now,
            generation=clip.generation,
            attempt=before + 1,
            superseded=before,
            priority=priority,
            chunk=chunk,
            first_frame=first,
            end_frame=end,
        )
        made = _made_before(session, probe.clip.sha256, unit)
        if made is not None:
            unit = replace(unit, state=UnitState.DONE, outcome=made, finished_at=now)
        session = with_unit(session, unit)
    return session


def _hurried(session: Session, clip: Clip, now: datetime) -> Session:
    """What waits at low priority waits at the session's own from now on."""
    for unit in session.normalising(clip.index):
        if unit.state is UnitState.QUEUED and unit.priority is Priority.LOW != session.priority:
            session = with_unit(session, supersede(unit, session.priority, now))
    return session


def chunks(seconds: float, whole_seconds: float) -> list[tuple[int, int]]:
    """The frames, first and end, of the pieces that a clip of so many seconds is encoded in: one up to
    ``whole_seconds``, else of at most half of that, all equally long. The last one's end is 0: how many frames a
    clip really has is known once it is decoded to its end."""
    count = 1 if seconds <= whole_seconds else min(_MOST_CHUNKS, math.ceil(2 * seconds / whole_seconds))
    starts = [round(seconds * FPS * i / count) for i in range(count)]
    return list(zip(starts, [*starts[1:], 0], strict=True))


def _made_before(session: Session, sha256: str, wanted: Unit) -> Outcome | None:
    """The normalised frames of the same bytes, if this session has made them. Canvas and quality never change in a
    session, so the source's digest alone tells."""
    same = {
        (unit.clip_index, unit.generation)
        for unit in session.units
        if unit.kind is JobKind.PROBE and unit.outcome is not None and unit.outcome.clip is not None
        if sha256 and unit.outcome.clip.sha256 == sha256
    }
    piece = (JobKind.NORMALISE, wanted.chunk, wanted.first_frame, wanted.end_frame)
    alike = (u for u in session.units if (u.kind, u.chunk, u.first_frame, u.end_frame) == piece)
    return next((u.outcome for u in alike if u.outcome and (u.clip_index, u.generation) in same), None)


def _with_merge(session: Session, now: datetime) -> Session:
    unit = session.unit(JobKind.MERGE)
    if unit is None:
        generation = session.generation(WHOLE_SESSION)
        return with_unit(
            session, Unit(JobKind.MERGE, WHOLE_SESSION, now, generation=generation, priority=session.priority)
        )
    if unit.state is UnitState.FAILED and _was_copy(unit):
        # What the copy tried does not count among the attempts to encode.
        return with_unit(session, replace(supersede(unit, session.priority, now), superseded=unit.attempt))
    return session
