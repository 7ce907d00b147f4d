"""How the processing is doing: the queue, the workers, the media library they have, the stores.

Workers report themselves; a report that is not renewed goes by itself, so who is listed is alive. All parts are
asked at the same time, and none may take long. A part that is away is told as a problem and leaves its numbers
out; the answer never fails for it. An answer serves everybody who asks within the next moment.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypeAlias, TypeVar

from services.common.clock import Clock
from services.common.errors import NotFound
from services.common.objects import ObjectStore
from services.common.state import StateStore

log = logging.getLogger(__name__)
T = TypeVar("T")

_PART_SECONDS = 2.0
_REMEMBERED_SECONDS = 1.0
_MOST_WORKERS = 1_000
_NEEDED_DECODER, _NEEDED_ENCODER = "h264", "libx264"
_PROBE_KEY = "health/probe"  # where no object ever is: that it is missing is an answer


@dataclass(frozen=True, slots=True)
class Library:
    """The media library: its version and, of the codecs that matter here, those it has."""

    version: str = ""
    decoders: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether it can decode what phones send and encode what they play."""
        return _NEEDED_DECODER in self.decoders and _NEEDED_ENCODER in self.encoders


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What a worker says of itself, message WorkerRecord of the contract. ``cpu_percent`` of one processor, with
    its jobs, since the report before; ``sandbox_lacks``: the locks that its kernel does not have."""

    id: str
    reported_at: datetime
    ffmpeg_version: str
    decoders: tuple[str, ...]
    encoders: tuple[str, ...]
    sandbox_lacks: tuple[str, ...]
    cpu_percent: float
    rss_bytes: int
    scratch_free_bytes: int

    @property
    def library(self) -> Library:
        return Library(self.ffmpeg_version, self.decoders, self.encoders)


WorkerReports: TypeAlias = StateStore[WorkerReport]
"""Reports by worker id; each has a TTL."""


@dataclass(frozen=True, slots=True)
class QueueLoad:
    """Jobs that ``waiting`` by priority, that run, and that failed for good in the last hour."""

    waiting: Mapping[str, int] = field(default_factory=dict)
    running: int = 0
    failed_last_hour: int = 0


@dataclass(frozen=True, slots=True)
class LaneLoad:
    """The jobs of one kind and priority: how many wait, how many were taken and are not ended (they run, or their
    worker is gone and they will be delivered again), and the ages in seconds of the oldest that waits and of the
    oldest of all."""

    kind: str
    priority: str
    waiting: int
    running: int
    oldest_seconds: float = 0.0
    unfinished_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class QueueState:
    """The queue by kind and priority, and how many jobs are among the dead."""

    lanes: tuple[LaneLoad, ...]
    dead: int


class QueueGauge(Protocol):
    """The job queue's counters."""

    async def read(self) -> QueueLoad:
        """Raises Unavailable."""


@dataclass(frozen=True, slots=True)
class Health:
    """What was found; None for a part that is away. ``problems`` has a line for each thing that is amiss."""

    checked_at: datetime
    queue: QueueLoad | None
    workers: tuple[WorkerReport, ...]
    store_reachable: bool
    free_bytes: Mapping[str, int]
    problems: tuple[str, ...]


class ProcessingHealth:
    """Use case. ``free_bytes()`` answers the free bytes of the places where this process keeps objects, and raises
    OSError for one that cannot be written to."""

    def __init__(
        self,
        queue: QueueGauge,
        reports: WorkerReports,
        objects: ObjectStore,
        free_bytes: Callable[[], Mapping[str, int]],
        *,
        clock: Clock,
        part_seconds: float = _PART_SECONDS,
    ) -> None:
        self._queue = queue
        self._reports = reports
        self._objects = objects
        self._free_bytes = free_bytes
        self._clock = clock
        self._part_seconds = part_seconds
        self._turn = asyncio.Lock()
        self._last: tuple[float, Health] | None = None

    async def check(self) -> Health:
        """How the processing is doing, as of a second ago at most. Never raises for a part that is away."""
        async with self._turn:
            now = asyncio.get_running_loop().time()
            if self._last is None or now - self._last[0] > _REMEMBERED_SECONDS:
                self._last = now, await self._look()
            return self._last[1]

    async def _look(self) -> Health:
        problems: list[str] = []
        queue, workers, reachable, free = await asyncio.gather(
            self._part("queue", self._queue.read(), problems),
            self._part("workers", self._alive(), problems),
            self._part("store", self._reach_store(), problems),
            self._part("disk", asyncio.to_thread(self._free_bytes), problems),
        )
        if workers is not None and not workers:
            problems.append("workers: none is running")
        if workers and not any(worker.library.usable for worker in workers):
            problems.append("ffmpeg: no worker can decode and encode")
        lacking = sorted({lock for worker in workers or () for lock in worker.sandbox_lacks})
        if lacking:
            problems.append(f"sandbox: media jobs run without {', '.join(lacking)}")
        return Health(
            checked_at=self._clock(),
            queue=queue,
            workers=workers or (),
            store_reachable=bool(reachable) and free is not None,
            free_bytes=free or {},
            problems=tuple(sorted(problems)),
        )

    async def _part(self, name: str, asked: Awaitable[T], problems: list[str]) -> T | None:
        try:
            async with asyncio.timeout(self._part_seconds):
                return await asked
        except Exception as error:
            log.info("a part is away", extra={"data": {"part": name, "error": repr(error)}})
            problems.append(f"{name}: does not answer")
            return None

    async def _alive(self) -> tuple[WorkerReport, ...]:
        found: dict[str, WorkerReport] = {}
        async for entry in self._reports.list():  # one that reports meanwhile comes twice, the later one last
            found[entry.key] = entry.value
            if len(found) == _MOST_WORKERS:
                break
        return tuple(sorted(found.values(), key=lambda worker: worker.id))

    async def _reach_store(self) -> bool:
        with suppress(NotFound):
            await self._objects.stat(_PROBE_KEY)
        return True
