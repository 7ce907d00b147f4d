"""The process that reads hostile bytes: one job, then it ends. The nursery forks it; the runner never imports it.

Order matters: the nursery's canary has loaded what is loaded on first use, the job is waited for and read and its
files are opened, all while everything is allowed; then the lock closes, and only then a byte of a source is looked
at. The real stdout is kept aside for the protocol: whatever a library prints goes to stderr.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from contextlib import ExitStack
from dataclasses import replace
from typing import BinaryIO

from services.merge.media import merge, normalise, probe, sidecars
from services.merge.media.errors import ErrorType, MediaError
from services.merge.media.files import open_source, open_target
from services.merge.media.protocol import Job, Result, error_line, progress_line, result_line
from services.merge.media.sandbox import lock_down
from services.merge.media.sidecars import write_sidecars
from services.merge.media.source import Source
from services.merge.media.stills import Stills
from services.merge.timeline import MergedFile


class Channel:
    """Lines to the parent, one write each."""

    def __init__(self) -> None:
        self._fd = os.dup(1)
        os.dup2(2, 1)

    def send(self, line: bytes) -> None:
        os.write(self._fd, line)

    def report(self, done: int, expected: int) -> None:
        self.send(progress_line(done, expected))


def main(parent: int) -> int:
    """``parent`` is the process id that this one must not outlive. Returns the exit code."""
    channel = Channel()
    try:
        asked = sys.stdin.buffer.read()
        if not asked:  # the worker has ended, or has no job for this child
            return 0
        job = Job.from_json(asked)
        channel.send(result_line(_run(job, channel, parent)))
    except MediaError as error:
        if error.retryable:
            traceback.print_exception(error)
        elif error.__cause__ is not None:
            sys.stderr.write(f"{error.__cause__!r}\n")
        channel.send(error_line(error))
    except Exception as error:
        traceback.print_exc()
        channel.send(error_line(_unexpected(error)))
    return 0


def _run(job: Job, channel: Channel, parent: int) -> Result:
    with ExitStack() as files:
        sources = [Source(files.enter_context(open_source(path)), job.limits, job.threads) for path in job.sources]
        if job.kind == "probe":
            lock_down(job.limits, parent)
            with sources[0].explained():
                return probe.probe(sources[0])
        if job.kind == "sidecars":
            targets = [files.enter_context(open_target(path)) for path in job.targets]
            lock_down(job.limits, parent)
            return sidecars.make_sidecars(sources[0], targets, job.frames)
        target = files.enter_context(open_target(job.target))
        beside = [files.enter_context(open_target(path)) for path in job.targets]
        if job.kind == "normalise":
            lock_down(job.limits, parent)
            with sources[0].explained():
                return normalise.normalise(sources[0], target, job.canvas, job.quality, channel.report, job.piece)
        moved, result = (files.enter_context(open_source(job.target)) for _ in range(2))
        lock_down(job.limits, parent)
        return _merge(job, channel, sources, target, moved, result, beside)


def _merge(
    job: Job,
    channel: Channel,
    sources: list[Source],
    target: BinaryIO,
    moved: BinaryIO,
    result: BinaryIO,
    beside: list[BinaryIO],
) -> MergedFile:
    """The merge, and what lies beside it if it can be made. The merged file is told of first: whatever becomes of
    the others, it stands."""
    copied = job.kind == "copy"
    join = merge.agreed(merge.as_sent(sources) if copied else merge.normalised(sources, job.layout))
    stills = Stills(join.counts, join.aspect, job.threads)
    merged = merge.merge(
        join,
        target,
        moved=moved,
        result=result,
        quality=job.quality,
        report=channel.report,
        even_loudness=job.even_loudness,
        copied=copied,
        onlooker=stills if beside else None,
    )
    if not beside:
        return merged
    channel.send(result_line(merged))
    try:
        made = write_sidecars(stills, Source(result, job.limits, job.threads), beside, merged.frames)
    except Exception:
        traceback.print_exc()
        return merged
    return replace(merged, beside=made)


def _unexpected(error: Exception) -> MediaError:
    """Limits show up as ordinary errors; everything else is ours, and its text stays in the log."""
    if isinstance(error, MemoryError):
        return MediaError(ErrorType.MEMORY_EXCEEDED, "This video needs too much memory.")
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return MediaError(ErrorType.OUTPUT_TOO_LARGE, "The result would be too large.")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return MediaError(ErrorType.STORAGE_UNAVAILABLE, "A worker's disk is full.")
    return MediaError(ErrorType.WORKER_FAILED, "The video could not be processed.")
