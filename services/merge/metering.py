"""What the merge controller counts: sessions and their jobs' retries, where they become true.

A change of a session counts when its compare-and-set succeeds, which of all controllers one alone wins. What
changed follows from the record at the revision that the write names, so the records read last are remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing

from prometheus_client import CollectorRegistry, Counter, Histogram

from services.common.state import Entry
from services.merge.domain import JobKind, Session, SessionState, Unit
from services.merge.ports import Sessions

_SECONDS = (0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 120, 300, 900, 3600)
_REMEMBERED = 1_000


def word(kind: JobKind) -> str:
    """A job's kind as the queue and the metrics call it."""
    return kind.removeprefix("JOB_KIND_").lower()


class MergeMetrics:
    """The metrics, in ``registry``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"twotruths_{name}", text, labels, registry=registry)

        self.started = counter("merges_started", "Merge sessions made.")
        self.completed = counter("merges_completed", "Sessions whose video is there, by how it was made.", "plan")
        self.failed = counter("merges_failed", "Sessions that failed, each time.", "error_type")
        self.cancelled = counter("merges_cancelled", "Sessions given up by their owners.")
        self.retried = counter("merges_retried", "Failed sessions that are tried again.")
        self.job_retries = counter(
            "merge_job_retries",
            "Further attempts of jobs, by why the attempt before did not succeed.",
            "kind",
            "error_type",
        )
        self.sweeps = counter("merge_sweeps", "Sweeps of the controller that came to their end.")
        self.waited = Histogram(
            "twotruths_merge_wait_seconds",
            "From a session's last upload until its video is there: what a player waits, by how it was made.",
            ["plan"],
            buckets=_SECONDS,
            registry=registry,
        )

    def changed(self, before: Session, after: Session) -> None:
        """Counts what one write changed."""
        earlier = {_place(unit): unit for unit in before.units}
        for unit in after.units:
            last = earlier.get(_place(unit))
            # One that was superseded has not failed.
            if last is not None and unit.attempt > last.attempt and unit.superseded == last.superseded:
                self.job_retries.labels(word(unit.kind), last.error_type or "none").inc()
        if after.uploads_ready and not before.uploads_ready:  # until then it may be refused, as over a quota
            self.started.inc()
        if after.state is before.state:
            return
        if after.state is SessionState.ACTIVE:
            self.retried.inc()
        elif after.state is SessionState.CANCELLED:
            self.cancelled.inc()
        elif after.state is SessionState.FAILED:
            self.failed.labels(after.failure.error_type if after.failure else "none").inc()
        else:
            self._count_completed(after)

    def _count_completed(self, session: Session) -> None:
        merged = session.done(JobKind.MERGE)
        plan = "copy" if merged is not None and merged.copied else "transcode"
        self.completed.labels(plan).inc()
        if session.uploads_completed_at is not None and session.completed_at is not None:
            self.waited.labels(plan).observe((session.completed_at - session.uploads_completed_at).total_seconds())


def _place(unit: Unit) -> tuple[JobKind, int, int, int]:
    return unit.kind, unit.clip_index, unit.generation, unit.chunk


class MeteredSessions:
    """:data:`Sessions` whose changes are counted."""

    def __init__(self, inner: Sessions, metrics: MergeMetrics) -> None:
        self._inner = inner
        self._metrics = metrics
        self._read: OrderedDict[str, Entry[Session]] = OrderedDict()
        self.delete = inner.delete

    async def get(self, key: str) -> Entry[Session] | None:
        entry = await self._inner.get(key)
        if entry is not None:
            self._remember(entry)
        return entry

    async def create(self, key: str, value: Session, *, ttl: float | None = None) -> Entry[Session]:
        entry = await self._inner.create(key, value, ttl=ttl)
        self._remember(entry)
        return entry

    async def update(self, key: str, value: Session, revision: int, *, ttl: float | None = None) -> Entry[Session]:
        before = self._read.get(key)
        entry = await self._inner.update(key, value, revision, ttl=ttl)
        if before is not None and before.revision == revision:
            self._metrics.changed(before.value, value)
        return entry

    async def list(self, prefix: str = "") -> AsyncGenerator[Entry[Session], None]:
        async with aclosing(self._inner.list(prefix)) as entries:
            async for entry in entries:
                yield entry

    def _remember(self, entry: Entry[Session]) -> None:
        self._read[entry.key] = entry
        self._read.move_to_end(entry.key)
        if len(self._read) > _REMEMBERED:
            self._read.popitem(last=False)
