"""The worker's side: each job in a child process of its own, which is killed rather than trusted.

The worker itself is never forked (gRPC does not survive it): a warm process that it starts by exec is, the
nursery. A child has a session and an environment of its own. However a job ends (result, failure, limit, cancelled
coroutine), the child is gone and reaped before the call returns, and unless it succeeded its target is removed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from services.common import tracing
from services.merge.media.children import Children
from services.merge.media.errors import ErrorType, MediaError
from services.merge.media.forked import Child, Nursery
from services.merge.media.limits import Limits
from services.merge.media.protocol import (
    MAX_LINE_BYTES,
    Job,
    ProtocolError,
    ResultT,
    parse_error,
    parse_line,
    parse_progress,
    parse_result,
)
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

OnProgress = Callable[[int, int], None]

STDERR_BYTES = 16 * 1024
NO_CANVAS = Canvas(0, 0)
CRASHES = frozenset(
    {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS}
)

log = logging.getLogger(__name__)


class MediaRunner:
    """Runs media jobs, any number at once; ``spare`` children are started ahead (:meth:`warm`, :meth:`close`).

    Every method raises :class:`MediaError`. ``on_progress(frames_done, frames_expected)`` is called on
    the event loop and never goes back. ``threads`` is what decoder, filters and encoder may each use;
    ``even_loudness``: whether a merge makes its clips equally loud; ``probe_seconds``: the time limit of a probe,
    if that is less than the others'; ``on_restart`` is told when the process that forks the children had died.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        threads: int = 1,
        *,
        even_loudness: bool = True,
        spare: int = 0,
        probe_seconds: float = math.inf,
        on_restart: Callable[[], None] = lambda: None,
    ) -> None:
        self._limits = limits or Limits()
        self._probe_seconds = min(probe_seconds, self._limits.wall_seconds)
        self._threads = threads
        self._even_loudness = even_loudness
        self._nursery = Nursery(kept=spare > 0, on_restart=on_restart)
        self._children = Children(self._nursery.child, self._end, spare)

    async def warm(self) -> None:
        """Start the spare children."""
        await self._children.fill()

    async def close(self) -> None:
        """End the children that wait for a job."""
        await self._children.close()
        await self._nursery.close()

    async def probe(self, source: Path) -> ClipInfo:
        """Look at a clip: see :mod:`services.merge.media.probe`."""
        job = self._job("probe", [source])
        cpu = min(job.limits.cpu_seconds, math.ceil(self._probe_seconds * self._threads))
        limits = replace(job.limits, wall_seconds=self._probe_seconds, cpu_seconds=cpu)
        return await self._run(ClipInfo, replace(job, limits=limits), _ignore)

    async def normalise(
        self,
        source: Path,
        target: Path,
        canvas: Canvas,
        quality: Quality,
        on_progress: OnProgress,
        piece: Piece | None = None,
    ) -> NormalisedClip:
        """Write the clip, or a piece of it, to ``target`` (.mov): see :mod:`services.merge.media.normalise`."""
        job = replace(self._job("normalise", [source], target, canvas, quality), piece=piece)
        return await self._run(NormalisedClip, job, on_progress)

    async def merge(
        self,
        clips: Sequence[Path | CutClip],
        target: Path,
        quality: Quality,
        on_progress: OnProgress,
        beside: Sequence[Path] = (),
    ) -> MergedFile:
        """Join normalised clips in ``target`` (.mp4); progress counts each frame twice, copied and verified.
        ``beside`` are targets for sidecars; when they cannot be made, there are none, and that is no error."""
        cuts = [CutClip((), clip, "") if isinstance(clip, Path) else clip for clip in clips]
        sources = [file for cut in cuts for file in (*cut.chunks, cut.source)]
        layout = tuple((len(cut.chunks), cut.start) for cut in cuts)
        job = replace(self._job("merge", sources, target, quality=quality), layout=layout)
        return await self._merge(job, beside, on_progress)

    async def copy(
        self,
        sources: Sequence[Path],
        target: Path,
        quality: Quality,
        on_progress: OnProgress,
        beside: Sequence[Path] = (),
    ) -> MergedFile:
        """Join clips as they were sent, their video not encoded anew; progress counts each frame once."""
        return await self._merge(self._job("copy", sources, target, quality=quality), beside, on_progress)

    async def _merge(self, job: Job, beside: Sequence[Path], on_progress: OnProgress) -> MergedFile:
        merged = await self._run(MergedFile, replace(job, targets=_absolute(beside)), on_progress)
        if merged.beside is None:
            _remove(_absolute(beside))
        return merged

    async def sidecars(self, merged: Path, targets: Sequence[Path], frames: tuple[int, ...]) -> SidecarFiles:
        """Make what lies beside a merged file: see :mod:`services.merge.media.sidecars`."""
        job = replace(self._job("sidecars", [merged]), targets=_absolute(targets), frames=frames)
        return await self._run(SidecarFiles, job, _ignore)

    def _job(
        self,
        kind: str,
        sources: Sequence[Path],
        target: Path | None = None,
        canvas: Canvas = NO_CANVAS,
        quality: Quality = Quality.MEDIUM,
    ) -> Job:
        return Job(
            kind=kind,
            sources=_absolute(sources),
            target=os.path.abspath(target) if target else "",
            canvas=canvas,
            quality=quality,
            limits=self._limits.for_canvas(canvas),
            threads=self._threads,
            even_loudness=self._even_loudness,
        )

    async def _run(self, kind: type[ResultT], job: Job, on_progress: OnProgress) -> ResultT:
        done = False
        try:
            with tracing.span(f"media {job.kind}") as step:
                process = await self._children.take()
                step.set("process.pid", process.pid)
                try:
                    result = await _converse(process, kind, job, on_progress)
                finally:
                    await self._end(process)
            done = True
            return result
        finally:
            if not done:
                _remove([job.target, *job.targets])

    async def _end(self, process: Child) -> None:
        """Kill what is left of the child and see it reaped, even if the caller is cancelled again."""
        process.kill()
        waiting = asyncio.ensure_future(process.wait())
        cancelled: asyncio.CancelledError | None = None
        while not waiting.done():
            try:
                await asyncio.shield(waiting)
            except asyncio.CancelledError as error:
                cancelled = error
        await self._nursery.release(process)
        if cancelled is not None:
            raise cancelled


async def _converse(process: Child, kind: type[ResultT], job: Job, on_progress: OnProgress) -> ResultT:
    """Send the job, follow it, and turn every way it can end into a result or a MediaError."""
    tail = asyncio.create_task(_tail(process.stderr))
    try:
        result = await _answer(process, kind, job, on_progress)
        if isinstance(result, MergedFile) and result.beside is None and job.targets:
            process.kill()
            log.warning("%s made nothing beside its video\n%s", job.kind, await tail)
    except MediaError as error:
        process.kill()
        tracing.current().fail(error.error_type)
        level = logging.WARNING if error.retryable else logging.INFO
        log.log(level, "%s failed: %s\n%s", job.kind, error, await tail)
        raise
    except ProtocolError as error:
        process.kill()
        log.warning("%s broke the protocol: %s\n%s", job.kind, error, await tail)
        raise MediaError(ErrorType.WORKER_FAILED, "The video could not be processed.") from error
    else:
        return result
    finally:
        tail.cancel()


async def _answer(process: Child, kind: type[ResultT], job: Job, on_progress: OnProgress) -> ResultT:
    """The last result. What was told stands, whatever becomes of the child after it."""
    results: list[ResultT] = []
    try:
        async with asyncio.timeout(job.limits.wall_seconds):
            await _follow(process, kind, job, on_progress, results)
    except TimeoutError as error:
        if not results:
            raise MediaError(ErrorType.TIME_EXCEEDED, "Processing this video takes too long.") from error
    return results[-1]


async def _follow(
    process: Child, kind: type[ResultT], job: Job, on_progress: OnProgress, results: list[ResultT]
) -> None:
    step = tracing.current()
    process.give(job.to_json())
    while line := await _read_line(process.stdout):
        match parse_line(line):
            case {"progress": value}:
                done, expected = parse_progress(value)
                on_progress(done, expected)
                if done in {0, expected}:
                    step.event("frames done" if done else "frames begun", {"frames": expected})
            case {"result": value}:
                results.append(parse_result(kind, value))
                step.event("result")
            case {"error": value}:
                raise parse_error(value)
            case _:
                raise ProtocolError("an unknown message")
    code = await process.wait()
    if not results:
        raise _death(code)


def _death(code: int) -> MediaError:
    """A child that ended without an answer: its own limit, a crash on this input, or killed from outside."""
    number = max(0, -code)
    if number == signal.SIGXCPU:
        text = "Processing this video takes too much computing time."
        return MediaError(ErrorType.CPU_EXCEEDED, text, signal=number)
    if number in CRASHES:
        return MediaError(ErrorType.DECODE_FAILED, "This video cannot be decoded.", signal=number)
    return MediaError(ErrorType.WORKER_FAILED, "The video could not be processed.", signal=number)


async def _read_line(stream: asyncio.StreamReader) -> bytes:
    try:
        return await stream.readline()
    except ValueError as error:  # how asyncio says that the limit was passed
        raise ProtocolError(f"a line longer than {MAX_LINE_BYTES} bytes") from error


async def _tail(stream: asyncio.StreamReader) -> str:
    """Read to the end, so that the child never blocks on a full pipe, but keep only the last bytes."""
    kept = b""
    while block := await stream.read(STDERR_BYTES):
        kept = (kept + block)[-STDERR_BYTES:]
    return kept.decode(errors="replace")


def _absolute(paths: Sequence[Path]) -> tuple[str, ...]:
    return tuple(os.path.abspath(path) for path in paths)


def _remove(paths: Sequence[str]) -> None:
    """A few system calls, which must not be cancelled."""
    for path in filter(None, paths):
        Path(path).unlink(missing_ok=True)


def _ignore(done: int, expected: int) -> None:
    """Neither a probe nor sidecars report progress."""
