"""Every change that a merge session can go through.

All functions are pure: they take a session and answer the session after the change. The record is written by
compare-and-set, so a change is decided again from the newest record whenever someone else was faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from services.merge.domain import (
    COPY_REFUSED,
    Failure,
    Outcome,
    Priority,
    Session,
    SessionState,
    StaleClaim,
    Unit,
    UnitRef,
    UnitState,
)
from services.merge.timeline import canvas_for


def with_unit(session: Session, unit: Unit) -> Session:
    """The session with this unit in the place of the one of the same kind, clip, generation and chunk."""
    place = (unit.kind, unit.clip_index, unit.generation, unit.chunk)
    others = tuple(u for u in session.units if (u.kind, u.clip_index, u.generation, u.chunk) != place)
    return replace(session, units=(*others, unit))


def without_units(session: Session, unwanted: Callable[[Unit], bool]) -> Session:
    """The session without these units: whoever works on one has lost the claim."""
    return replace(session, units=tuple(unit for unit in session.units if not unwanted(unit)))


def claim(session: Session, ref: UnitRef, token: str, now: datetime) -> Session:
    """A worker takes an attempt; saying it again changes nothing. Raises StaleClaim when there is nothing (more)
    to do."""
    unit = _current(session, ref)
    if unit.claim_token == token:
        return session
    taken = replace(
        unit, state=UnitState.CLAIMED, claim_token=token, claimed_at=now, deliveries=unit.deliveries + 1
    )
    return with_unit(replace(session, updated_at=now), taken)


def give_back(session: Session, ref: UnitRef, token: str, now: datetime) -> Session:
    """The worker that claimed the attempt does not go on with it, through no fault of the job's: as if it had
    never been claimed. Raises StaleClaim when another claim counts."""
    unit = _claimed(session, ref, token)
    waiting = replace(
        unit,
        state=UnitState.QUEUED,
        claim_token="",
        claimed_at=None,
        queued_at=now,
        deliveries=unit.deliveries - 1,
    )
    return with_unit(replace(session, updated_at=now), waiting)


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


def supersede(unit: Unit, priority: Priority, now: datetime) -> Unit:
    """Another attempt in the place of one that did not fail: its job waits in another queue, or its work is
    another by now. It does not count among those that are allowed."""
    again = replace(next_attempt(unit, now), priority=priority, superseded=unit.superseded + 1)
    return replace(again, error_type="", error_message="", retryable=False)


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
    """A failed session is tried again: units that failed or were being worked on get their next attempt, those
    that waited wait anew, what is done is kept. A merge whose copy was refused has not failed: it waits for the
    clips to be encoded."""

    def again(unit: Unit) -> Unit:
        refused = unit.state is UnitState.FAILED and unit.error_type == COPY_REFUSED
        if unit.state is UnitState.DONE or refused:
            return unit
        return replace(unit, queued_at=now) if unit.state is UnitState.QUEUED else next_attempt(unit, now)

    units = tuple(again(unit) for unit in session.units)
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
        unit = session.unit(ref.kind, ref.clip_index, ref.chunk)
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
