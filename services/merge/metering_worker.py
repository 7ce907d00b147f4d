"""What a merge worker counts: how long each kind of work takes, how it ends, which children had to be stopped."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram

from services.merge.delivery import PlanAction, clip_plans
from services.merge.domain import JobKind, Outcome, Session, UnitRef
from services.merge.media.errors import ErrorType, MediaError
from services.merge.metering import word
from services.merge.ports import Media, OnProgress, Work
from services.merge.timeline import (
    Canvas,
    ClipInfo,
    CutClip,
    MergedFile,
    NormalisedClip,
    Piece,
    Quality,
    SidecarFiles,
)

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1200)
_LIMITS: dict[str, str] = {
    ErrorType.TIME_EXCEEDED: "time",
    ErrorType.CPU_EXCEEDED: "cpu",
    ErrorType.MEMORY_EXCEEDED: "memory",
    ErrorType.OUTPUT_TOO_LARGE: "output",
}
_ACTIONS = {
    PlanAction.COPY: "copy",
    PlanAction.TRANSCODE: "transcode",
    PlanAction.UNDECIDED: "undecided",
}


class WorkerMetrics:
    """The metrics, in ``registry``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.seconds = Histogram(
            "twotruths_merge_job_duration_seconds",
            "What a worker took for a job that it did, by kind and by what was planned for its clips: copy, "
            "transcode, undecided (encoded ahead), or none yet (a probe).",
            ["kind", "plan"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.attempts = Counter(
            "twotruths_merge_job_attempts",
            "Jobs that a worker began, by how that ended: done, given_back, or the type of the error.",
            ["kind", "result"],
            registry=registry,
        )
        self.kills = Counter(
            "twotruths_merge_sandbox_kills",
            "Children that a limit of their sandbox stopped (time, cpu, memory, output), that made a forbidden "
            "system call (syscall), or that another signal ended (signal).",
            ["reason"],
            registry=registry,
        )
        self.nursery_restarts = Counter(
            "twotruths_merge_nursery_restarts",
            "How often the process that children are forked from had died.",
            registry=registry,
        )


class MeteredWork:
    """:class:`Work` that is timed and counted."""

    def __init__(self, inner: Work, metrics: WorkerMetrics) -> None:
        self._inner = inner
        self._metrics = metrics
        self.undo = inner.undo

    async def do(self, session: Session, ref: UnitRef, token: str, on_progress: OnProgress) -> Outcome:
        """Counts an attempt that was cut off, by whatever is no error of the work, as given back."""
        kind, began, result = word(ref.kind), time.perf_counter(), "given_back"
        try:
            outcome = await self._inner.do(session, ref, token, on_progress)
        except MediaError as error:
            result = error.error_type
            raise
        else:
            result = "done"
            self._metrics.seconds.labels(kind, planned(session, ref)).observe(time.perf_counter() - began)
            return outcome
        finally:
            self._metrics.attempts.labels(kind, result).inc()


def planned(session: Session, ref: UnitRef) -> str:
    """What was planned for what the unit works on."""
    if ref.kind is JobKind.PROBE:
        return "none"
    plans = [plan for plan in clip_plans(session) if plan.index == ref.clip_index or ref.kind is JobKind.MERGE]
    return _ACTIONS[plans[0].action] if plans else "none"


class MeteredMedia:
    """:class:`Media` whose children are counted that had to be stopped."""

    def __init__(self, inner: Media, metrics: WorkerMetrics) -> None:
        self._inner = inner
        self._kills = metrics.kills

    async def probe(self, source: Path) -> ClipInfo:
        with self._counted():
            return await self._inner.probe(source)

    async def normalise(
        self,
        source: Path,
        target: Path,
        canvas: Canvas,
        quality: Quality,
        on_progress: OnProgress,
        piece: Piece | None = None,
    ) -> NormalisedClip:
        with self._counted():
            return await self._inner.normalise(source, target, canvas, quality, on_progress, piece)

    async def merge(
        self,
        clips: Sequence[Path | CutClip],
        target: Path,
        quality: Quality,
        on_progress: OnProgress,
        beside: Sequence[Path] = (),
    ) -> MergedFile:
        with self._counted():
            return await self._inner.merge(clips, target, quality, on_progress, beside)

    async def copy(
        self,
        sources: Sequence[Path],
        target: Path,
        quality: Quality,
        on_progress: OnProgress,
        beside: Sequence[Path] = (),
    ) -> MergedFile:
        with self._counted():
            return await self._inner.copy(sources, target, quality, on_progress, beside)

    async def sidecars(self, merged: Path, targets: Sequence[Path], frames: tuple[int, ...]) -> SidecarFiles:
        with self._counted():
            return await self._inner.sidecars(merged, targets, frames)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except MediaError as error:
            reason = _LIMITS.get(error.error_type)
            if reason is None and error.signal:
                reason = "syscall" if error.signal == signal.SIGSYS else "signal"
            if reason is not None:
                self._kills.labels(reason).inc()
            raise
