"""What a player is told of a session: derived from the record, the uploads and the latest hints.

Pure. The phases of a clip weigh 40 (upload), 5 (probe), 45 (normalise) of 100 and the join 10, so that the
overall percentage never falls as a session moves on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from services.merge.delivery import ClipPlan, clip_plans, is_copied
from services.merge.domain import WHOLE_SESSION, Clip, JobKind, Reached, Session, SessionState, Unit, UnitState
from services.merge.planner import ClipUpload, UploadStatus

_UPLOAD, _PROBE, _NORMALISE, _MERGE = 40.0, 5.0, 45.0, 10.0


class OverallStatus(StrEnum):
    """A session's status, as the contract names it."""

    UPLOADING = "MERGE_STATUS_UPLOADING"
    QUEUED = "MERGE_STATUS_QUEUED"
    PROCESSING = "MERGE_STATUS_PROCESSING"
    COMPLETED = "MERGE_STATUS_COMPLETED"
    FAILED = "MERGE_STATUS_FAILED"
    CANCELLED = "MERGE_STATUS_CANCELLED"


class ClipStatus(StrEnum):
    """A clip's status, as the contract names it."""

    PENDING = "CLIP_STATUS_PENDING"
    UPLOADING = "CLIP_STATUS_UPLOADING"
    QUEUED = "CLIP_STATUS_QUEUED"
    PROCESSING = "CLIP_STATUS_PROCESSING"
    COMPLETED = "CLIP_STATUS_COMPLETED"
    FAILED = "CLIP_STATUS_FAILED"
    CANCELLED = "CLIP_STATUS_CANCELLED"
    EXPIRED = "CLIP_STATUS_EXPIRED"


@dataclass(frozen=True, slots=True)
class ClipView:
    """A clip's status; ``percent`` of upload, probe and normalising together, 0 to 100."""

    clip: Clip
    status: ClipStatus
    percent: float
    uploaded_at: datetime | None
    uploaded: bool
    error_type: str = ""
    error_message: str = ""


@dataclass(frozen=True, slots=True)
class SessionView:
    """A session's status; percentages 0 to 100."""

    session: Session
    status: OverallStatus
    clips: tuple[ClipView, ...]
    overall_percent: float
    merge_percent: float
    plan: tuple[ClipPlan, ...] = ()
    remaining_seconds: float | None = None


Fraction = Callable[[str, str], float]


def view(session: Session, uploads: Mapping[str, ClipUpload], fraction: Fraction) -> SessionView:
    """The session's status. ``fraction(session id, unit name)`` is the progress board's.

    It stays where it was according to its record, whatever is still known of its uploads and hints: when it failed
    or was cancelled, when something is tried again, and when others ask that have not heard the same.
    """
    seen = _view(session, uploads, fraction)
    there = session.state is SessionState.COMPLETED
    if there or session.reached is None or len(session.reached.clips) != len(seen.clips):
        return seen
    floors = zip(seen.clips, session.reached.clips, strict=True)
    return replace(
        seen,
        clips=tuple(replace(clip, percent=max(clip.percent, floor)) for clip, floor in floors),
        overall_percent=max(seen.overall_percent, session.reached.overall),
        merge_percent=max(seen.merge_percent, session.reached.merge),
    )


def reached(session: Session, uploads: Mapping[str, ClipUpload], fraction: Fraction) -> Session:
    """The session with how far it has come written down, which is never less than before."""
    seen = view(session, uploads, fraction)
    clips = tuple(clip.percent for clip in seen.clips)
    return replace(session, reached=Reached(seen.overall_percent, seen.merge_percent, clips))


def _view(session: Session, uploads: Mapping[str, ClipUpload], fraction: Fraction) -> SessionView:
    clips = tuple(_clip_view(session, clip, uploads.get(clip.upload_id), fraction) for clip in session.clips)
    if session.state is SessionState.COMPLETED:
        return SessionView(session, OverallStatus.COMPLETED, clips, 100.0, 100.0, clip_plans(session))
    phases = [_phases(session, clip, uploads.get(clip.upload_id), fraction) for clip in session.clips]
    uploaded = sum(p[0] for p in phases) / len(phases)
    worked = sum(_PROBE * p[1] + _NORMALISE * p[2] for p in phases) / len(phases)
    worked += _MERGE * _done(session, JobKind.MERGE, WHOLE_SESSION, fraction)
    work = _PROBE + _NORMALISE + _MERGE
    return SessionView(
        session,
        _overall(session),
        clips,
        overall_percent=_percent(uploaded * _UPLOAD + worked),
        merge_percent=_percent(100.0 * worked / work),
        plan=clip_plans(session),
    )


def _overall(session: Session) -> OverallStatus:
    if session.state is SessionState.FAILED:
        return OverallStatus.FAILED
    if session.state is SessionState.CANCELLED:
        return OverallStatus.CANCELLED
    if not session.all_uploaded:
        return OverallStatus.UPLOADING
    begun = any(u.state in (UnitState.CLAIMED, UnitState.DONE) for u in session.units)
    return OverallStatus.PROCESSING if begun else OverallStatus.QUEUED


def _clip_view(session: Session, clip: Clip, upload: ClipUpload | None, fraction: Fraction) -> ClipView:
    uploaded, probed, normalised = _phases(session, clip, upload, fraction)
    percent = 100.0 * (_UPLOAD * uploaded + _PROBE * probed + _NORMALISE * normalised) / (100.0 - _MERGE)
    error_type, error_message = "", ""
    failure = session.failure
    if failure is not None and failure.clip_index == clip.index:
        error_type, error_message = failure.error_type, failure.message
    status = _clip_status(session, clip, upload)
    uploaded_whole = bool(clip.source_key) or (upload is not None and upload.status is UploadStatus.COMPLETED)
    return ClipView(clip, status, _percent(percent), clip.uploaded_at, uploaded_whole, error_type, error_message)


def _clip_status(session: Session, clip: Clip, upload: ClipUpload | None) -> ClipStatus:
    if session.state is SessionState.CANCELLED and not session.normalised(clip.index):
        return ClipStatus.CANCELLED
    if not clip.source_key:
        return _UPLOAD_TO_CLIP[upload.status] if upload is not None else ClipStatus.PENDING
    if session.failure is not None and session.failure.clip_index == clip.index:
        return ClipStatus.FAILED
    if session.normalised(clip.index) or is_copied(session):
        return ClipStatus.COMPLETED
    units = [u for u in session.units if u.clip_index == clip.index and u.generation == clip.generation]
    begun = any(u.state is not UnitState.QUEUED for u in units) and session.state is not SessionState.FAILED
    return ClipStatus.PROCESSING if begun else ClipStatus.QUEUED


_UPLOAD_TO_CLIP = {
    UploadStatus.PENDING: ClipStatus.PENDING,
    UploadStatus.IN_PROGRESS: ClipStatus.UPLOADING,
    UploadStatus.COMPLETED: ClipStatus.QUEUED,
    UploadStatus.FAILED: ClipStatus.FAILED,
    UploadStatus.CANCELLED: ClipStatus.CANCELLED,
    UploadStatus.EXPIRED: ClipStatus.EXPIRED,
}


def _phases(
    session: Session, clip: Clip, upload: ClipUpload | None, fraction: Fraction
) -> tuple[float, float, float]:
    if session.state is SessionState.COMPLETED:
        return 1.0, 1.0, 1.0
    uploaded = 1.0 if clip.source_key else (upload.progress if upload is not None else 0.0)
    probed = 1.0 if session.done(JobKind.PROBE, clip.index) is not None else 0.0
    if is_copied(session):  # there is nothing to normalise: what was done of it in vain must not be missed
        return uploaded, probed, 1.0
    chunks = [_part(session, unit, fraction) for unit in session.normalising(clip.index)]  # about equally long
    return uploaded, probed, sum(chunks) / max(1, len(chunks))


def _done(session: Session, kind: JobKind, clip_index: int, fraction: Fraction) -> float:
    unit = session.unit(kind, clip_index)
    return 0.0 if unit is None else _part(session, unit, fraction)


def _part(session: Session, unit: Unit, fraction: Fraction) -> float:
    return 1.0 if unit.state is UnitState.DONE else fraction(session.id, unit.ref.heard_as)


def _percent(value: float) -> float:
    return round(min(100.0, max(0.0, value)), 1)
