"""The job queue: each job is delivered until it is acknowledged, to one worker at a time as far as anyone can.

"One at a time" cannot be promised (a worker that stopped answering may still be running), so the effect of
a job is fenced by its claim token in the state store, not by the queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class JobPriority(StrEnum):
    """Which queue a job waits in. LOW waits longest and is never starved."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


@dataclass(frozen=True, slots=True)
class Job:
    """A job: ``kind`` and ``id`` are single subject tokens; the same id is one job, however often published."""

    kind: str
    id: str
    payload: bytes
    priority: JobPriority = JobPriority.NORMAL
    headers: dict[str, str] = field(default_factory=dict)


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

    async def fetch(self, kinds: Sequence[str], timeout: float) -> Delivery | None:
        """The next job of these kinds, high priority first, or None after ``timeout`` seconds. Every eighth
        fetch looks at low priority first, so that it is never starved."""

    async def drop(self, job: Job) -> None:
        """Removes a job that is queued or delivered; one that is not there is no error."""

    async def bury(self, job: Job, reason: str) -> None:
        """Keeps a job that failed for good among the dead, with its reason (one line)."""
