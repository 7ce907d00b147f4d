"""Many small hostile files through the media jobs quickly: one locked child does one after the other.

A worker's child does one job and ends, which takes a tenth of a second. Here the same code runs behind the same
lock on bytes from a pipe, and only a child that died is replaced. So what a job says of a file is the same; that
a worker outlives it and leaves nothing is held by the tests that use a worker's own runner.
"""

from __future__ import annotations

import io
import os
import select
import signal
import struct
import subprocess
import sys
import traceback
from datetime import UTC, datetime
from typing import BinaryIO, cast

from typing_extensions import Buffer

from services.merge.delivery import is_copied
from services.merge.domain import Clip, JobKind, Outcome, Session, Unit, UnitState
from services.merge.media import canary, merge, normalise, probe
from services.merge.media.errors import RETRYABLE, ErrorType, MediaError
from services.merge.media.forked import ROOT
from services.merge.media.limits import Limits
from services.merge.media.runner import CRASHES
from services.merge.media.sandbox import lock_down
from services.merge.media.sidecars import write_sidecars
from services.merge.media.source import Source
from services.merge.media.stills import Stills
from services.merge.timeline import Canvas, ClipInfo, Quality

LIMITS = Limits(max_clip_seconds=2, wall_seconds=60)
OURS = Limits(cpu_seconds=7_200, wall_seconds=7_200)  # of a child that does thousands of jobs
CANVAS = Canvas(64, 48)
DONE = "done"
PRECISE = frozenset({DONE, *(str(kind) for kind in ErrorType)} - {str(kind) for kind in RETRYABLE})


class LockedJobs:
    """``outcome`` is "done", the ``error_type`` of the first job that failed, or how a child ended over a file."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self.deaths = 0

    def outcome(self, data: bytes) -> str:
        """All jobs of a session, see :func:`_session`. A crash is what the runner makes of it."""
        child = self._child or self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(struct.pack("=I", len(data)) + data)
        child.stdin.flush()
        ready, _, _ = select.select([child.stdout], [], [], LIMITS.wall_seconds)
        line = child.stdout.readline() if ready else b""
        if line:
            return line.decode().strip()
        self.close()
        self.deaths += 1
        if not ready:
            return ErrorType.TIME_EXCEEDED
        return ErrorType.DECODE_FAILED if -child.returncode in CRASHES else f"ended with {child.returncode}"

    def close(self) -> None:
        if self._child is not None:
            assert self._child.stdin is not None
            assert self._child.stdout is not None
            if select.select([self._child.stdout], [], [], 0)[0]:
                self._child.wait(10)  # it is dying by itself: how, counts
            else:
                self._child.kill()
                self._child.wait()
            self._child.stdin.close()
            self._child.stdout.close()
            self._child = None

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {"PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", "MALLOC_ARENA_MAX": "2"}
        self._child = subprocess.Popen(
            [sys.executable, __file__, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            bufsize=0,
        )
        return self._child


def _serve(parent: int) -> None:
    canary.sing()
    lock_down(OURS, parent)
    while head := _read(4):
        answer = _all(_read(*struct.unpack("=I", head)))
        os.write(1, f"{answer}\n".encode())


def _all(data: bytes) -> str:
    try:
        _session(data)
    except MediaError as error:
        if error.retryable:
            traceback.print_exception(error)
        return error.error_type
    except MemoryError:
        return ErrorType.MEMORY_EXCEEDED
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return DONE


def _session(data: bytes) -> None:
    """What becomes of a session whose two clips are this file. Raises MediaError."""
    source = Source(io.BytesIO(data), LIMITS, 1)
    with source.explained():
        info = probe.probe(source)
    if _is_copied(info):
        try:
            _joined(merge.as_sent([source, source]), copied=True)
        except MediaError as error:  # then a worker has them encoded
            if error.error_type != ErrorType.VERIFICATION_FAILED:
                raise
    normalised = cast("BinaryIO", Shared(bytearray()))
    with source.explained():
        normalise.normalise(source, normalised, CANVAS, Quality.LOW, lambda done, expected: None)
    clip = Source(normalised, LIMITS, 1)
    _joined(merge.normalised([clip, clip]), copied=False)


def _is_copied(info: ClipInfo) -> bool:
    now, probed = datetime.now(UTC), Outcome(clip=info)
    clips = tuple(Clip(i, f"u{i}", "a.mp4", 1, 1.0, "video/mp4") for i in range(2))
    units = tuple(Unit(JobKind.PROBE, i, now, state=UnitState.DONE, outcome=probed) for i in range(2))
    return is_copied(Session("s", "alice", "", "", clips, now, now, now, units=units))


def _joined(clips: list[merge.Clip], *, copied: bool) -> None:
    """The video and what lies beside it."""
    join = merge.agreed(clips)
    data = bytearray()
    target, moved, result, again = (cast("BinaryIO", Shared(data)) for _ in range(4))
    stills = Stills(join.counts, join.aspect, 1)
    merged = merge.merge(
        join,
        target,
        moved=moved,
        result=result,
        quality=Quality.LOW,
        report=lambda done, expected: None,
        copied=copied,
        onlooker=stills,
    )
    beside = [io.BytesIO() for _ in (*merged.frames, "sheet", "rendition")]
    try:
        write_sidecars(stills, Source(again, LIMITS, 1), beside, merged.frames)
    except Exception:  # a video may go out without them
        if not copied:
            raise


class Shared(io.RawIOBase):
    """A file in memory that several handles are open on, each with a place of its own."""

    def __init__(self, data: bytearray) -> None:
        self.data = data
        self._place = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer)
        piece = bytes(self.data[self._place : self._place + len(view)])
        view[: len(piece)] = piece
        self._place += len(piece)
        return len(piece)

    def write(self, data: Buffer) -> int:
        piece = bytes(data)
        self.data += bytes(max(0, self._place - len(self.data)))
        self.data[self._place : self._place + len(piece)] = piece
        self._place += len(piece)
        return len(piece)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._place = offset + (0, self._place, len(self.data))[whence]
        return self._place


def _read(size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := os.read(0, size - len(data))):
        data += piece
    return data


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    _serve(int(sys.argv[1]))
    os._exit(0)
