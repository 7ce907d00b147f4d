"""The job queue: each job is delivered until it is acknowledged, to one worker at a time as far as anyone can.

"One at a time" cannot be promised (a worker that stopped answering may still be running), so the effect of
a job is fenced by its claim token in the state store, not by the queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol


class JobPriority(StrEnum):
    """Which queue a job waits in. LOW waits longest and is never starved."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


@dataclass(frozen=True, slots=True)
class Job:
    """A job: ``kind``, ``id`` and ``group`` are single subject tokens; the same id is one job, however often
    published. ``group`` says whose it is, for :meth:`JobQueue.unfinished`."""

    kind: str
    id: str
    payload: bytes
    priority: JobPriority = JobPriority.NORMAL
    headers: dict[str, str] = field(default_factory=dict)
    group: str = "-"


_HIGH_FIRST = (JobPriority.HIGH, JobPriority.NORMAL, JobPriority.LOW)
_TURNS = {
    0: (JobPriority.LOW, JobPriority.NORMAL, JobPriority.HIGH),
    4: (JobPriority.NORMAL, JobPriority.LOW, JobPriority.HIGH),
}


def order_of_fetch(
    number: int, kinds: Sequence[str], least: JobPriority = JobPriority.LOW
) -> Sequence[tuple[JobPriority, str]]:
    """Where a fetch looks, in this order, if it is ``number`` (from 1) of those for these kinds and priorities of
    at ``least`` this one. Among jobs of one priority each kind is first in its turn: an owner's backlog of one
    kind must not keep another owner's jobs of another waiting."""
    turn = _TURNS.get(number % 8)
    first = (number - 1 - number // 4 if turn is None else number // 8) % len(kinds)  # each sort of turn by itself
    allowed = _HIGH_FIRST[: _HIGH_FIRST.index(least) + 1]
    order = (*kinds[first:], *kinds[:first])
    return [(priority, kind) for priority in turn or _HIGH_FIRST if priority in allowed for kind in order]


class Publishes:
    """Counts what was published, for fetches that wait: each names the number up to which it has looked, so none
    misses what came while it looked, and none takes another's wake-up."""

    def __init__(self) -> None:
        self.number = 0
        self._next = asyncio.Event()

    def tell(self) -> None:
        """Something was published."""
        self.number += 1
        waiting, self._next = self._next, asyncio.Event()
        waiting.set()

    async def after(self, number: int) -> None:
        """Returns once more than ``number`` things were published."""
        while self.number <= number:
            await self._next.wait()


class Delivery(Protocol):
    """A job handed to this worker. It is delivered again if it is neither acknowledged nor kept."""

    @property
    def job(self) -> Job: ...

    @property
    def count(self) -> int:
        """How often the job was delivered, this time included: 1 the first time."""

    async def keep(self) -> None:
        """Says that work goes on; call it every third of :attr:`JobQueue.ack_wait`. Never raises."""

    async def ack(self) -> None:
        """Ends the job. Raises Unavailable when it is unknown whether that arrived."""

    async def release(self, delay: float = 0) -> None:
        """Gives the job back, to be delivered again after ``delay`` seconds. Never raises."""


class JobQueue(Protocol):
    """Publishes and fetches jobs. Methods raise Unavailable when the broker does not answer."""

    @property
    def ack_wait(self) -> float:
        """Seconds after which a job that nobody keeps is delivered again."""

    async def publish(self, job: Job) -> bool:
        """Queues a job. False when it is queued or delivered and not acknowledged already: both are success."""

    async def fetch(
        self, kinds: Sequence[str], timeout: float, *, least: JobPriority = JobPriority.LOW
    ) -> Delivery | None:
        """The next job of these kinds and of at ``least`` this priority, high first, or None after ``timeout``
        seconds. Of the fetches that ask for the same, one in eight looks at low priority first and another one at
        normal, and the kinds take turns in being first: nothing is ever starved."""

    async def unfinished(self, group: str) -> AbstractSet[str]:
        """The ids of the group's jobs that are queued, or delivered and not acknowledged."""

    async def drop(self, job: Job) -> None:
        """Removes a job that is queued or delivered; one that is not there is no error."""

    async def bury(self, job: Job, reason: str) -> None:
        """Keeps a job that failed for good among the dead, with its reason (one line)."""


@dataclass(frozen=True, slots=True)
class DeadJob:
    """A job that failed for good, why (one line) and when it was buried. ``sequence``: its place in the list."""

    id: str
    kind: str
    payload: bytes
    reason: str
    buried_at: datetime
    sequence: int


class DeadJobs(Protocol):
    """The jobs that :meth:`JobQueue.bury` keeps. Methods raise Unavailable when the broker does not answer."""

    def list(self) -> AsyncGenerator[DeadJob, None]:
        """All of them, the one that was buried first at first."""

    async def remove(self, job: DeadJob) -> None:
        """Forgets one; one that is not there is no error."""
