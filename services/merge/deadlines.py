"""How long a unit of work may stay where it is: pure, enforced by whoever reconciles a session.

A session's own deadline bounds its uploading, and from the last clip on the whole of its processing; these bound
each step of it. A unit that waits longer than any sound queue fails its session; one whose worker holds the claim
for longer than any job may run is taken from it (the worker may be alive and stuck), as a failed attempt.

What waits for its owner's share of the queue is not in the queue yet, and nobody waits for what is done ahead at
low priority: only the session's own deadline bounds these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.merge.domain import Failure, Priority, Session, SessionState, Unit, UnitState
from services.merge.transitions import fail, give_up

QUEUE_TIMEOUT, CLAIM_TIMEOUT = "queue_timeout", "worker_lost"


@dataclass(frozen=True, slots=True)
class Deadlines:
    """A unit may be ``queued`` so long before a worker claims it, and then ``claimed`` so long."""

    queued: timedelta = timedelta(hours=3)
    claimed: timedelta = timedelta(minutes=25)


def overdue_claims(session: Session, now: datetime, deadlines: Deadlines) -> tuple[Unit, ...]:
    """The units of an active session whose workers have had their time."""
    if session.state is not SessionState.ACTIVE:
        return ()
    return tuple(
        unit
        for unit in session.units
        if unit.state is UnitState.CLAIMED
        and unit.claimed_at is not None
        and now - unit.claimed_at >= deadlines.claimed
    )


def enforce(
    session: Session, now: datetime, deadlines: Deadlines, seen_since: Callable[[Unit], datetime | None]
) -> Session:
    """The session with what is overdue ended. Answers its argument when nothing is. ``seen_since(unit)``: since
    when its job has been seen in the queue, None when it was not."""
    if session.state is not SessionState.ACTIVE:
        return session
    for unit in session.units:
        since = _waiting_since(unit, seen_since)
        if since is not None and now - since >= deadlines.queued:
            failure = Failure(QUEUE_TIMEOUT, "no worker had time for this video", now, retry_available=True)
            return fail(session, failure, now)
    for unit in overdue_claims(session, now, deadlines):
        text = "the worker that took this job did not finish it in time"
        session = give_up(session, unit.ref, unit.claim_token, CLAIM_TIMEOUT, text, retryable=True, now=now)
    return session


def _waiting_since(unit: Unit, seen_since: Callable[[Unit], datetime | None]) -> datetime | None:
    """Since when the unit waits for a worker; None when it does not, or nobody waits for it."""
    seen = seen_since(unit) if unit.state is UnitState.QUEUED and unit.priority is not Priority.LOW else None
    return seen if seen is None or unit.queued_at is None else max(seen, unit.queued_at)
