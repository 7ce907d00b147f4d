"""Jobs of the merge service: which unit of which session, and how that travels in the queue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from services.common.jobs import Job, JobPriority
from services.common.state import owner_prefix
from services.common.tracing import TRACEPARENT
from services.merge.domain import JobKind, Priority, Session, Unit, UnitRef

ENCODES = tuple(kind.removeprefix("JOB_KIND_").lower() for kind in (JobKind.MERGE, JobKind.NORMALISE))
PROBES = (JobKind.PROBE.removeprefix("JOB_KIND_").lower(),)
KINDS = (*ENCODES, *PROBES)
"""The queue's kinds, what ends a session first; they take turns in being looked at first."""

_PRIORITIES = {
    Priority.HIGH: JobPriority.HIGH,
    Priority.NORMAL: JobPriority.NORMAL,
    Priority.LOW: JobPriority.LOW,
}


@dataclass(frozen=True, slots=True)
class MergeJob:
    """What a job says: message JobMessage of the contract. All else is in the session's record."""

    session_id: str
    owner: str
    kind: JobKind
    clip_index: int
    generation: int
    attempt: int
    chunk: int = 0

    @property
    def ref(self) -> UnitRef:
        return UnitRef(self.kind, self.clip_index, self.generation, self.attempt, self.chunk)


def job_for(session: Session, unit: Unit, encode: Callable[[MergeJob], bytes]) -> Job:
    """The queue's job for the current attempt of a unit."""
    message = MergeJob(
        session.id, session.owner, unit.kind, unit.clip_index, unit.generation, unit.attempt, unit.chunk
    )
    return Job(
        kind=unit.kind.removeprefix("JOB_KIND_").lower(),
        id=unit.ref.job_id(session.id),
        payload=encode(message),
        priority=_PRIORITIES[unit.priority],
        headers={TRACEPARENT: session.traceparent} if session.traceparent else {},
        group=owner_prefix(session.owner),
    )
