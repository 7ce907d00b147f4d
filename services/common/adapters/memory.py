"""In-memory twins of the adapters, for tests and for reading: the shortest statement of each port's rules.

They pass the same contract suites as the real ones. They live in one process and forget everything.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.common.jobs import Job, JobPriority, Publishes, order_of_fetch
from services.common.progress import Progress
from services.common.state import Entry, RevisionConflict

T = TypeVar("T")


class MemoryStateStore(Generic[T]):
    """Twin of JetStreamStateStore; ``now`` (seconds) lets tests expire a TTL."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._records: dict[str, tuple[Entry[T], float]] = {}
        self._revision = 0
        self._feeds: list[MemoryChangeFeed[T]] = []

    async def get(self, key: str) -> Entry[T] | None:
        entry, expires = self._records.get(key, (None, 0.0))
        return entry if entry is not None and self._now() < expires else None

    async def create(self, key: str, value: T, *, ttl: float | None = None) -> Entry[T]:
        if await self.get(key) is not None:
            raise RevisionConflict(key)
        return self._write(key, value, ttl)

    async def update(self, key: str, value: T, revision: int, *, ttl: float | None = None) -> Entry[T]:
        entry = await self.get(key)
        if entry is None or entry.revision != revision:
            raise RevisionConflict(key)
        return self._write(key, value, ttl)

    async def delete(self, key: str, revision: int) -> None:
        entry = await self.get(key)
        if entry is None or entry.revision != revision:
            raise RevisionConflict(key)
        del self._records[key]
        self._tell(key, None)

    async def list(self, prefix: str = "") -> AsyncGenerator[Entry[T], None]:
        tokens = prefix.split(".") if prefix else []
        for key in list(self._records):
            entry = await self.get(key)
            if entry is not None and key.split(".")[: len(tokens)] == tokens:
                yield entry

    def feed(self) -> MemoryChangeFeed[T]:
        """The changes of this store: what is there now, then what changes."""
        feed: MemoryChangeFeed[T] = MemoryChangeFeed()
        for entry, _ in self._records.values():
            feed.tell(entry.key, entry.value)
        self._feeds.append(feed)
        return feed

    def _write(self, key: str, value: T, ttl: float | None) -> Entry[T]:
        self._revision += 1
        entry = Entry(key, value, self._revision)
        self._records.pop(key, None)  # so that what was written last comes last
        self._records[key] = (entry, float("inf") if ttl is None else self._now() + ttl)
        self._tell(key, value)
        return entry

    def _tell(self, key: str, value: T | None) -> None:
        for feed in self._feeds:
            feed.tell(key, value)


class MemoryChangeFeed(Generic[T]):
    """Twin of JetStreamChangeFeed: unread changes of a key are one change, the last."""

    def __init__(self) -> None:
        self._pending: dict[str, T | None] = {}
        self._changed = asyncio.Event()

    def tell(self, key: str, value: T | None) -> None:
        """Adds a change."""
        self._pending[key] = value
        self._changed.set()

    async def next(self, timeout: float) -> _MemoryChange[T] | None:
        try:
            async with asyncio.timeout(timeout):
                while not self._pending:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return None
        key = next(iter(self._pending))
        return _MemoryChange(self, key, self._pending.pop(key))

    async def close(self) -> None:
        """Nothing is waiting at a server."""


@dataclass
class _MemoryChange(Generic[T]):
    feed: MemoryChangeFeed[T]
    key: str
    value: T | None

    async def ack(self) -> None:
        """Taken when it was read."""

    async def retry(self, delay: float) -> None:
        asyncio.get_running_loop().call_later(delay, self.feed.tell, self.key, self.value)


class MemoryProgressBus:
    """Twin of NatsProgressBus."""

    def __init__(self) -> None:
        self._subscribers: list[tuple[str, str, asyncio.Queue[Progress]]] = []
        self._latest: dict[tuple[str, str, str], Progress] = {}

    async def publish(self, progress: Progress) -> None:
        if progress.unit:
            self._latest[progress.kind, progress.id, progress.unit] = progress
        for kind, id_, queue in self._subscribers:
            if kind == progress.kind and id_ in {"*", progress.id}:
                if queue.full():
                    queue.get_nowait()
                queue.put_nowait(progress)

    @asynccontextmanager
    async def subscribe(self, kind: str, id_: str = "*") -> AsyncIterator[AsyncIterator[Progress]]:
        queue: asyncio.Queue[Progress] = asyncio.Queue(256)
        subscriber = (kind, id_, queue)
        self._subscribers.append(subscriber)
        try:
            yield _Hints(queue)
        finally:
            self._subscribers = [s for s in self._subscribers if s[2] is not queue]

    async def latest(self, kind: str) -> AsyncGenerator[Progress, None]:
        for progress in list(self._latest.values()):
            if progress.kind == kind:
                yield progress


class _Hints(AsyncIterator[Progress]):
    def __init__(self, queue: asyncio.Queue[Progress]) -> None:
        self._queue = queue

    async def __anext__(self) -> Progress:
        return await self._queue.get()


@dataclass
class _Queued:
    job: Job
    count: int = 0
    ready_at: float = field(default_factory=time.monotonic)


class MemoryJobQueue:
    """Twin of JetStreamJobQueue."""

    _LOOK_SECONDS = 0.02

    def __init__(self, *, ack_wait: float = 30.0) -> None:
        self._ack_wait = ack_wait
        self._jobs: dict[tuple[str, str, str], _Queued] = {}
        self._publishes = Publishes()
        self._fetches: Counter[tuple[tuple[str, ...], JobPriority]] = Counter()
        self.dead: list[tuple[Job, str]] = []

    @property
    def ack_wait(self) -> float:
        return self._ack_wait

    async def publish(self, job: Job) -> bool:
        key = (job.kind, job.priority, job.id)
        if key in self._jobs:
            return False
        self._jobs[key] = _Queued(job)
        self._publishes.tell()
        return True

    async def fetch(
        self, kinds: Sequence[str], timeout: float, *, least: JobPriority = JobPriority.LOW
    ) -> _MemoryDelivery | None:
        deadline = time.monotonic() + timeout
        self._fetches[lane := (tuple(kinds), least)] += 1
        order = order_of_fetch(self._fetches[lane], kinds, least)
        while True:
            looked, now = self._publishes.number, time.monotonic()
            for priority, wanted in order:
                for (kind, queued_as, _), queued in self._jobs.items():
                    if kind == wanted and queued_as == priority and queued.ready_at <= now:
                        queued.count += 1
                        queued.ready_at = now + self._ack_wait
                        return _MemoryDelivery(self, queued, queued.count)
            if now >= deadline:
                return None
            with suppress(TimeoutError):
                async with asyncio.timeout(min(self._LOOK_SECONDS, deadline - now)):
                    await self._publishes.after(looked)

    async def unfinished(self, group: str) -> AbstractSet[str]:
        return {queued.job.id for queued in self._jobs.values() if queued.job.group == group}

    async def drop(self, job: Job) -> None:
        self._jobs.pop((job.kind, job.priority, job.id), None)

    async def bury(self, job: Job, reason: str) -> None:
        self.dead.append((job, reason))

    def make_ready(self, queued: _Queued, after: float) -> None:
        """Lets a job be delivered (again) after so many seconds."""
        queued.ready_at = time.monotonic() + after
        self._publishes.tell()


@dataclass
class _MemoryDelivery:
    queue: MemoryJobQueue
    queued: _Queued
    count: int

    @property
    def job(self) -> Job:
        return self.queued.job

    async def keep(self) -> None:
        self.queue.make_ready(self.queued, self.queue.ack_wait)

    async def ack(self) -> None:
        # As in JetStream, an acknowledgement is not fenced: a late one removes the job all the same.
        await self.queue.drop(self.job)

    async def release(self, delay: float = 0) -> None:
        self.queue.make_ready(self.queued, delay)
