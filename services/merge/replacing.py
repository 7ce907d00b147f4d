"""How one clip of a session comes to be another, as pure changes of the record.

The clip that is to come is written down first (an *intent*), then its upload is made, and only then it takes the
place of the old one: until that moment nothing of the old one is lost, and a new one that the upload service
refuses changes nothing. Whoever finds an intent may carry it out. The clip in the place is of the next generation,
so what workers made of the one before no longer counts; the other clips keep theirs, and the canvas stays.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from services.common.errors import FailedPrecondition
from services.merge.domain import Clip, JobKind, Reason, Session, SessionState, UnitState
from services.merge.transitions import retry


def require_replaceable(session: Session) -> None:
    """Raises FailedPrecondition (ALREADY_COMPLETED, MERGE_CANCELLED, CLIPS_GONE) when no clip can be replaced."""
    if session.state is SessionState.COMPLETED or session.done(JobKind.MERGE) is not None:
        raise FailedPrecondition(
            "the video is there already: begin a new session", reason=Reason.ALREADY_COMPLETED
        )
    if session.state is SessionState.CANCELLED:
        raise FailedPrecondition("the session was cancelled: begin a new one", reason=Reason.MERGE_CANCELLED)
    if session.closed:
        raise FailedPrecondition("the other clips have gone: begin a new session", reason=Reason.CLIPS_GONE)


def intend(session: Session, clip: Clip) -> Session:
    """The clip is to take the place of the one with its index; one that was to do so before is not any more.
    Raises FailedPrecondition."""
    require_replaceable(session)
    if clip in session.replacements or session.clips[clip.index].upload_id == clip.upload_id:
        return session
    others = tuple(c for c in session.replacements if c.index != clip.index)
    given_up = tuple(
        c.upload_id for c in session.replacements if c.index == clip.index and c.upload_id != clip.upload_id
    )
    return replace(session, replacements=(*others, clip), superseded=(*session.superseded, *given_up))


def take_place(session: Session, upload_id: str, deadline: datetime, now: datetime) -> Session:
    """The intended clip with this upload, which is made, takes its place, and the session is active again.

    An intent that is no longer there changes nothing; one that came too late is withdrawn.
    """
    new = next((c for c in session.replacements if c.upload_id == upload_id), None)
    if new is None:
        return session
    try:
        require_replaceable(session)
    except FailedPrecondition:
        return withdraw(session, upload_id)
    if session.state is SessionState.FAILED:
        session = _taken_up_again(session, deadline, now)
    old = session.clips[new.index]
    new = replace(new, generation=old.generation + 1)
    session = replace(session, clips=tuple(new if clip.index == new.index else clip for clip in session.clips))
    return replace(
        session,
        # What is done may serve again, should the new clip have the same bytes.
        units=tuple(
            u
            for u in session.units
            if u.generation == session.generation(u.clip_index) or u.state is UnitState.DONE
        ),
        replacements=tuple(c for c in session.replacements if c.upload_id != upload_id),
        superseded=(*session.superseded, old.upload_id),
        uploads_completed_at=None,
        reached=None,
        deadline=deadline,
        updated_at=now,
    )


def _taken_up_again(session: Session, deadline: datetime, now: datetime) -> Session:
    """As by RetryMerge; yet what no other attempt can help stays failed, and counts if it is of another clip."""
    tried = retry(session, deadline, now)
    hopeless = {u.name: u for u in session.units if u.state is UnitState.FAILED and not u.retryable}
    helped = session.failure is not None and session.failure.retry_available
    return replace(
        tried,
        units=tuple(hopeless.get(unit.name, unit) for unit in tried.units),
        retry_count=tried.retry_count if helped else session.retry_count,
    )


def withdraw(session: Session, upload_id: str) -> Session:
    """The intended clip does not come; its upload, should there be one, is to go."""
    left = tuple(c for c in session.replacements if c.upload_id != upload_id)
    if len(left) == len(session.replacements):
        return session
    return replace(session, replacements=left, superseded=(*session.superseded, upload_id))


def released(session: Session, upload_ids: tuple[str, ...]) -> Session:
    """These superseded uploads are gone."""
    left = tuple(id_ for id_ in session.superseded if id_ not in upload_ids)
    return session if left == session.superseded else replace(session, superseded=left)
